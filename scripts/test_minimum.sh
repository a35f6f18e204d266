#!/usr/bin/env bash
# Install the oldest version of everything that pyproject.toml declares, and run the quick tests with it.
#   scripts/test_minimum.sh [PYTEST ARGUMENTS]     takes some GB: torch's old releases are CUDA builds
# PYTHON names the oldest Python (python3.10); the environment is build/minimum.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3.10}
here=$PWD/build/minimum
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' ||
  { echo "this is about Python 3.10; name it: PYTHON=/path/to/python3.10" >&2; exit 1; }
[ -x "$here/tools/bin/uv" ] || { "$python" -m venv "$here/tools" && "$here/tools/bin/pip" install --quiet uv; }
uv=$here/tools/bin/uv
"$uv" venv --quiet --clear --seed --python "$python" "$here/env"
# Direct requirements in the oldest version, what they require in the newest, as pip would take it today.
"$uv" pip install --quiet --python "$here/env" --resolution lowest-direct -r pyproject.toml \
  --extra clip --extra faiss --extra heic --extra object-stores --extra report --extra review
"$uv" pip install --quiet --python "$here/env" --no-deps .
"$uv" pip freeze --python "$here/env" >"$here/before"
"$uv" pip install --quiet --python "$here/env" -c "$here/before" \
  pytest pytest-timeout pytest-xdist hypothesis pandas
"$uv" pip check --python "$here/env"
# Tests read no source tree but their own: the package is the installed one.
rm -rf "$here/run"
mkdir -p "$here/run"
cp -r tests ./*.md pyproject.toml docs benchmarks scripts examples "$here/run"
for name in $(grep -oE '"[A-Za-z_-]+>=' pyproject.toml | tr -d '">=' | sort -u); do
  grep -i "^${name//[-_]/[-_]}==" "$here/before" || true
done
if [ $# -eq 0 ]; then
  # Not what reads the package's sources, which are not there.
  mapfile -t files < <(grep -vE '^#|test_architecture|test_examples' tests/fast.txt)
  # Nor view types, which an old pyarrow neither writes to Parquet nor cuts: an error says so.
  set -- -q -n 2 --dist worksteal -m "not slow and not gpu" -k "not view" "${files[@]}"
fi
cd "$here/run"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Old releases announce to each other what newer ones have long replaced.
exec "$here/env/bin/python" -m pytest -W ignore::DeprecationWarning "$@"
