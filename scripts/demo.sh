#!/usr/bin/env bash
# Make the virtual environment, run the whole chain on drawn scenes, and say where to look.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment clip,faiss,report
.venv/bin/bliss-index demo "$@"
