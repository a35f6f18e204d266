// Which kernel this processor and this system can run.
#include <cstring>

#include "kernel.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bliss {
namespace {

#ifdef __aarch64__
bool has_dotprod() {
#ifdef __linux__
  return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  int found = 0;
  std::size_t size = sizeof found;
  return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) && found;
#else
  return false;
#endif
}

bool has_i8mm() {
#ifdef __linux__
  return getauxval(AT_HWCAP2) & (1ul << 13);  // HWCAP2_I8MM
#elif defined(__APPLE__)
  int found = 0;
  std::size_t size = sizeof found;
  return !sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, nullptr, 0) && found;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Kernel*> usable_kernels() {
  std::vector<const Kernel*> kernels;
#ifdef __aarch64__
  if (has_dotprod() && has_i8mm()) kernels.push_back(&neon_i8mm_kernel);
  if (has_dotprod()) kernels.push_back(&neon_dotprod_kernel);
#else
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
#ifdef BLISS_HAS_AMX
  if (wide && narrow && amx_is_usable()) kernels.push_back(&amx_kernel);
#endif
  if (wide && narrow) kernels.push_back(&avx512_kernel);
  if (narrow) kernels.push_back(&avx2_kernel);
#endif
  return kernels;
}

const Kernel* find_kernel(const char* name) {
  for (const Kernel* kernel : usable_kernels())
    if (!*name || !std::strcmp(name, kernel->name)) return kernel;
  return nullptr;
}

}  // namespace bliss
