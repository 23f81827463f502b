#!/usr/bin/env bash
# From nothing to a look at the result: installs into .venv, then compresses and decodes a few
# photographs on this machine. Writes to quickstart/, which it empties first.
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/setup.sh
setup quickstart
exec .venv/bin/python infra/quickstart.py "$@"
