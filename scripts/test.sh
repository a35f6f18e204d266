#!/usr/bin/env bash
# Make the virtual environment, check style and types, run the tests.
# Arguments go to pytest: `bash scripts/test.sh -m slow` runs the slow ones.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment clip,faiss,object-stores,ray,report,dev
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ $# -eq 0 ]; then
  set -- -m "not slow and not gpu"
fi
.venv/bin/python -m pytest "$@"
