#!/usr/bin/env bash
# Install what scripts/build_wheels.sh left in dist/ into new environments, and use it as a stranger would:
# README's example, `demo`, `verify`. Prints a row of a table for every way to install.
#   scripts/check_wheels.sh FOLDER PYTHON ...     FOLDER holds an environment at a time, some GB
# The ways: the wheel beside numpy 1.26 and beside the newest numpy, the sdist with and without a compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
uv=$folder/tools/bin/uv  # links the large libraries of torch's CUDA build into every environment
[ -x "$uv" ] || { python3 -m venv "$folder/tools" && "$folder/tools/bin/pip" install --quiet uv; }
export HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
failed=0

step() {  # prints ok, or failed and the log's end
  if "$@" >"$folder/log" 2>&1; then
    printf ' ok |'
  else
    printf ' **failed** |'
    failed=1
    tail -n 15 "$folder/log" >&2
  fi
}
snippet() { # README's example, whose last line says which are normal
  sed -n '/^```python$/,/^```$/p' README.md | sed '/^```/d' >"$folder/example.py"
  "$here/bin/python" "$folder/example.py" | tee "$folder/said"
  [ "$(tail -n 1 "$folder/said")" = "[ 1  1 -1 -1]" ]
}
demo() { rm -rf "$folder/demo" && "$here/bin/bliss-index" demo --out "$folder/demo"; }
verify() { "$here/bin/bliss-index" verify "$folder/demo/screen/scores" && "$here/bin/bliss-index" verify "$folder/demo/corpus"; }
install_package() {  # WAY
  case $1 in
    wheel) "$here/bin/pip" install --no-index --find-links dist --only-binary :all: --no-deps --force-reinstall bliss-index ;;
    sdist) "$here/bin/pip" install --no-binary bliss-index --no-deps --force-reinstall --no-cache-dir dist/*.tar.gz ;;
    bare) CC=/none CXX=/none "$here/bin/pip" install --no-deps --force-reinstall --no-cache-dir dist/*.tar.gz ;;
  esac
}
row() {  # WAY, VERSIONS
  rm -rf "$here"
  "$uv" venv --quiet --seed --python "$python" "$here"
  if ! "$uv" pip install --quiet --python "$here" -c scripts/constraints.txt --find-links dist \
      --only-binary :all: 'bliss-index[clip,faiss,report]' "${@:2}" >"$folder/log" 2>&1; then
    echo "not to be had for $version: ${*:2}" >&2
    return
  fi
  printf '| %s | %s | %s |' "$version" "$("$here/bin/python" -c 'import numpy; print(numpy.__version__)')" "$1"
  step install_package "$1"
  printf ' %s |' "$(cd / && "$here/bin/python" -c 'from bliss_index import exact_search
import numpy; print(exact_search(numpy.eye(8, dtype="f"), k=2).backend)')"
  step "$here/bin/pip" check
  step snippet
  step demo
  step verify
  echo
}

echo '| Python | numpy | from | install | search | pip check | example | demo | verify |'
echo '| --- | --- | --- | --- | --- | --- | --- | --- | --- |'
for python in "$@"; do
  version=$("$python" -c 'import platform; print(platform.python_version())')
  here=$folder/$version
  # From 26 on pyarrow refuses numpy 1 when it is imported, and does not declare it.
  row wheel 'numpy==1.26.*' 'pyarrow<26'
  row wheel 'numpy>=2'
  row sdist 'numpy>=2'
  row bare 'numpy>=2'
done
exit $failed
