// Which kernel this processor and this system can run.
#include <cstring>

#include "kernel.h"

namespace bliss {

const Kernel* find_kernel(const char* name) {
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
  const auto wanted = [name](const Kernel& k) { return !*name || !std::strcmp(name, k.name); };
#ifdef BLISS_HAS_AMX
  if (wide && narrow && wanted(amx_kernel) && amx_is_usable()) return &amx_kernel;
#endif
  if (wide && narrow && wanted(avx512_kernel)) return &avx512_kernel;
  if (narrow && wanted(avx2_kernel)) return &avx2_kernel;
  return nullptr;
}

}  // namespace bliss
