#!/usr/bin/env bash
# Is this machine's GPU right, and how fast? bash infra/gpu_check.sh [minutes] [options of gpu_check.py]
# It installs nothing: torch with CUDA must be there already, in .venv or in the active environment.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
exec "$python" infra/gpu_check.py "$@"
