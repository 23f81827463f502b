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
check pytest --quiet "$@"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
