#!/usr/bin/env bash
# Every check of this repository: format, lint, types, tests. Stops at the first that fails.
#
#   bash scripts/check.sh                       on a fresh machine too: it sets up .venv by itself
#   bash scripts/check.sh tests/test_config.py  arguments are pytest's
#   CHECK_WITH=peer bash scripts/check.sh       with PyTorch and timm, without which their tests are skipped
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

section() { printf '\n=== %s ===\n' "$1"; }

section "environment"
bash scripts/setup_venv.sh "${CHECK_WITH:-test}"
python=$PWD/.venv/bin/python
"$python" --version

section "format (mend with: .venv/bin/ruff format)"
"$python" -m ruff format --check .

section "lint (mend with: .venv/bin/ruff check --fix)"
"$python" -m ruff check .

section "types"
"$python" -m mypy

section "tests"
# Compiling is most of the tests' time: the second run finds it done.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
"$python" -m pytest -q -n 2 --durations=40 "$@"

section "all passed"
