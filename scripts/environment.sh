# Sourced by the other scripts: makes the virtual environment .venv with this package in it.
# Usage: prepare_environment EXTRAS   (comma-separated, such as clip,faiss)

prepare_environment() {
  local extras=$1 python=${PYTHON:-python3} log
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "Python 3.10 or newer is needed; name one: PYTHON=/path/to/python3 bash $0" >&2
    exit 1
  fi
  # An environment without pip was interrupted while it was made.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv || exit 1
  # Install again only after the package's metadata or its C++ sources changed.
  local stamp
  stamp="$extras $(cat pyproject.toml scripts/constraints.txt bliss_index/search/native/*.* | sha256sum)"
  if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
    log=$(mktemp)
    echo "installing into .venv (about a minute) ..." >&2
    # torch first: a CPU build, where the index has one, must not be replaced by a CUDA build.
    if ! { .venv/bin/python -m pip install --quiet --disable-pip-version-check \
             -c scripts/constraints.txt torch &&
           .venv/bin/python -m pip install --quiet --disable-pip-version-check \
             -c scripts/constraints.txt -e ".[$extras]"; } >"$log" 2>&1; then
      cat "$log" >&2
      echo "the installation failed; see above" >&2
      exit 1
    fi
    rm -f "$log"
    echo "$stamp" >.venv/installed
  fi
}
