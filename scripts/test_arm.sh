#!/usr/bin/env bash
# Run the tests of the native search for 64-bit Arm, as dist/ has it, in an emulator on an x86-64 Debian or Ubuntu.
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
  # Without torch's requirements: pip takes them to be those of this processor, with CUDA.
  arm=(--target "$site" --python-version 3.11 --implementation cp --only-binary=:all:)
  for glibc in 2_28 2_27 2_17; do arm+=(--platform "manylinux_${glibc}_aarch64"); done
  arm+=(--platform manylinux2014_aarch64)
  "$python" -m pip install -q "${arm[@]}" numpy pyarrow threadpoolctl typer rich hypothesis pytest \
    pytest-timeout pytest-benchmark filelock typing_extensions sympy networkx jinja2 fsspec
  "$python" -m pip install -q "${arm[@]}" --no-deps --upgrade torch==2.7.1
fi

# The module of the wheel, as it is released.
wheel=(dist/bliss_index-*-cp311-*aarch64.whl)
if [ ! -f "${wheel[0]}" ]; then
  bash scripts/build_wheels.sh
  wheel=(dist/bliss_index-*-cp311-*aarch64.whl)
fi

rm -rf "$app"
mkdir -p "$app"
cp -r bliss_index tests pyproject.toml "$app"
rm -f "$app"/bliss_index/search/*.so
unzip -q "${wheel[0]}" 'bliss_index/search/_native*' -d "$app"
[ $# -gt 0 ] || set -- tests/test_native_kernel.py tests/test_rescoring.py tests/test_calibration.py
cd "$app"
export PYTHONHOME=$root/usr PYTHONPATH=$app:$app/tests:$site PYTHONDONTWRITEBYTECODE=1
# Signals of other machines' processes and clocks do not belong to what is tested.
qemu-aarch64 -cpu max,sve=off -L "$root" "$root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider \
  --timeout 3000 -k "not interrupt and not permission" "$@"
