#!/usr/bin/env bash
# Lint, types and the whole test suite, in .venv. Arguments go to pytest: bash infra/test.sh -k images
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/setup.sh
setup test
. infra/browser.sh
find_browser

failed=()
check() {
    say "$*"
    .venv/bin/python -m "$@" || failed+=("$*")
}
check ruff check .
check ruff format --check .
check mypy
# A file of tests at a time, and three processes for two processors: many tests wait for other
# processes more than they work. A process takes up to 4 GB with its Ray.
processes=3
if [ "$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)" -lt 12 ]; then
    processes=2
fi
export OMP_NUM_THREADS=1
check pytest --quiet --numprocesses $processes --dist loadfile --no-loadscope-reorder "$@"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
