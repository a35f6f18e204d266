#!/usr/bin/env bash
# Make the virtual environment, check style and types, run tests.
#   scripts/test.sh              all that take no long time; on two processors some three minutes
#   scripts/test.sh --fast       the ones to run while writing: three quarters of a minute
#   scripts/test.sh --slow       what takes more than about ten seconds each
#   scripts/test.sh ARGUMENTS    go to pytest: a file, -k WORDS, -m gpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment clip,faiss,object-stores,ray,report,review,docs,dev
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
# Else every process that a test starts compiles the package anew.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A process for each processor, of one thread of BLAS each: more would only wait for each other.
processes=$(.venv/bin/python -c 'import os; print(min(8, len(os.sched_getaffinity(0))))')
together=(-q -n "$processes" --dist worksteal)
quick="not slow and not gpu"
case "${1:-}" in
  "") set -- "${together[@]}" -m "$quick" ;;
  --fast)
    mapfile -t chosen < <(grep -v '^#' tests/fast.txt)
    set -- "${together[@]}" -m "$quick" "${chosen[@]}" "${@:2}"
    ;;
  --slow) set -- "${together[@]}" -m "slow and not gpu" "${@:2}" ;;
  *) exec .venv/bin/python -m pytest "$@" ;;
esac
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest "$@"
