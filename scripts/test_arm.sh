#!/usr/bin/env bash
# Build the native search for 64-bit Arm and run its tests in an emulator, on an x86-64 Debian or Ubuntu.
#   scripts/test_arm.sh FOLDER [PYTEST ARGUMENTS]     FOLDER takes about 1 GB and is used again
# Needs: apt-get install g++-aarch64-linux-gnu qemu-user, the package lists of arm64
# (dpkg --add-architecture arm64; apt-get update), and .venv (scripts/test.sh makes it). An emulator says
# what is computed, never how fast.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$folder/root site=$folder/site app=$folder/app
python=$PWD/.venv/bin/python

if [ ! -x "$root/usr/bin/python3.11" ]; then
  mkdir -p "$folder/deb" "$root"
  (cd "$folder/deb" && apt-get download -qq {python3.11,python3.11-minimal,libpython3.11-stdlib,libpython3.11-minimal,libpython3.11,libpython3.11-dev,libc6,libgcc-s1,libstdc++6,zlib1g,libexpat1,libssl3,libffi8,libbz2-1.0,liblzma5,libsqlite3-0,libuuid1,libncursesw6,libtinfo6,libreadline8,libcrypt1}:arm64)
  for package in "$folder"/deb/*.deb; do dpkg -x "$package" "$root"; done
fi
if [ ! -d "$site/torch" ]; then  # of the releases for Arm, this one is for processors alone
  "$python" -m pip install -q --target "$site" --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --only-binary=:all: \
    numpy pyarrow threadpoolctl typer rich hypothesis pytest pytest-timeout pytest-benchmark \
    torch==2.7.1
fi

native=$PWD/bliss_index/search/native
nanobind=$("$python" -c 'import nanobind, pathlib; print(pathlib.Path(nanobind.__file__).parent)')
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
compile() { aarch64-linux-gnu-g++ -std=c++17 -O3 -fPIC -Wall -Wextra -ffp-contract=off "${@:2}" -c "$1" -o "$objects/$(basename "$1").o"; }
bindings=(-fvisibility=hidden -fno-strict-aliasing "-I$nanobind/include" "-I$nanobind/ext/robin_map/include" "-I$root/usr/include/python3.11" "-I$root/usr/include")
for source in dispatch engine workspace rescoring parallel ordering score_kernel variances; do
  compile "$native/$source.cpp"
done
compile "$native/kernel_neon_dotprod.cpp" -march=armv8.2-a+dotprod
compile "$native/kernel_neon_i8mm.cpp" -march=armv8.2-a+dotprod+i8mm
compile "$native/module.cpp" "${bindings[@]}"
compile "$nanobind/src/nb_combined.cpp" "${bindings[@]}" -DNDEBUG

rm -rf "$app"
mkdir -p "$app"
cp -r bliss_index tests pyproject.toml "$app"
rm -f "$app"/bliss_index/search/*.so
aarch64-linux-gnu-g++ -shared -o "$app/bliss_index/search/_native.cpython-311-aarch64-linux-gnu.so" "$objects"/*.o -lpthread
[ $# -gt 0 ] || set -- tests/test_native_kernel.py tests/test_rescoring.py tests/test_calibration.py
cd "$app"
export PYTHONHOME=$root/usr PYTHONPATH=$app:$app/tests:$site PYTHONDONTWRITEBYTECODE=1
# Signals of other machines' processes and clocks do not belong to what is tested.
qemu-aarch64 -cpu max,sve=off -L "$root" "$root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider \
  --timeout 3000 -k "not interrupt and not permission" "$@"
