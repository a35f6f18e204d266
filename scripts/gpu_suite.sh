#!/usr/bin/env bash
# Check and time everything that runs on a GPU, in at most nine minutes, and write the figures.
# Usage: bash scripts/gpu_suite.sh [RESULT.json]
#
# Takes the Python of `PYTHON`, else .venv's, else python3. It needs torch with CUDA, triton, numpy
# and pyarrow; faiss-gpu is compared where it can be imported. The package itself need not be
# installed: it is taken from this checkout, and its native kernels are built where they can be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
result=${1:-benchmarks/results/gpu.json}
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" - <<'CHECK'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU; see 'bliss-index info' for the reason")
print(torch.cuda.get_device_name(0))
CHECK
# The tests of the device search first, if pytest is there: what is wrong need not be timed.
if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
  timeout 120 "$python" -m pytest -q -x -p no:cacheprovider -o addopts= -o filterwarnings=default \
    -o timeout=0 -m gpu tests/test_device_search.py
fi
exec "$python" benchmarks/gpu_suite.py --seconds 400 --json "$result"
