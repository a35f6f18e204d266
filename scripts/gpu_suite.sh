#!/usr/bin/env bash
# Check and time everything that runs on a GPU, in at most nine minutes, and write the figures.
# Usage: bash scripts/gpu_suite.sh [RESULT.json] [OPTIONS OF benchmarks/gpu_suite.py]
#
#   bash scripts/gpu_suite.sh gpu.json --seconds 350        # this, without --seconds
#   bash scripts/gpu_suite.sh gpu.json --skip tiles,growth
#
# The result file is whole after every row, so a run that is cut off keeps what it has. The tests that
# need a card follow; the end of their output lies beside the result, as RESULT.tests.txt.
# The exit status is 0 if the main case was exact and timed, and no test failed.
#
# Takes the Python of `PYTHON`, else .venv's, else python3. It needs torch with CUDA, triton and
# numpy; pyarrow and threadpoolctl for a whole job, pytest and pyarrow for the tests. faiss-gpu is
# compared where it can be imported. The package itself need not be installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
result=benchmarks/results/gpu.json
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then result=$1; shift; fi
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
timeout 60 "$python" - <<'CHECK'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU; see 'bliss-index info' for the reason")
print(torch.cuda.get_device_name(0))
CHECK
status=0
"$python" benchmarks/gpu_suite.py --seconds 350 --json "$result" "$@" || status=$?
# Tests of kernels that elsewhere run in Triton's interpreter run on the card here.
log=${result%.json}.tests.txt
tests=0
mapfile -t files < <(grep -lE 'mark\.(gpu|triton)' tests/test_*.py)
timeout -k 5 150 "$python" -m pytest -v -p no:cacheprovider -o addopts= -o filterwarnings=default \
  -o timeout=0 -m "gpu or triton" "${files[@]}" >"$log.part" 2>&1 || tests=$?
{ tail -c 20000 "$log.part"; echo; echo "exit status $tests (5: no tests, 124: out of time)"; } >"$log"
rm -f "$log.part"
tail -n 5 "$log"
if [ "$tests" -ne 0 ]; then status=1; fi
exit "$status"
