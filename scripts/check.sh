#!/usr/bin/env bash
# Runs the checks of this repository: format, lint, imports, types, tests. Stops at the first that fails.
#
#   bash scripts/check.sh                       what every commit needs, in a few minutes
#   bash scripts/check.sh --full                everything
#   bash scripts/check.sh tests/test_config.py  other arguments go to pytest
#   CHECK_WITH=peer bash scripts/check.sh       with PyTorch and timm, without which their tests are skipped
#
# On a fresh machine it sets up .venv first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

section() { printf '\n=== %s (%d s) ===\n' "$1" "$SECONDS"; }

section "environment"
bash scripts/setup_venv.sh "${CHECK_WITH:-test}"
export PATH=$PWD/.venv/bin:$PATH
python --version

section "format (fix with: .venv/bin/ruff format)"
ruff format --check .

section "lint (fix with: .venv/bin/ruff check --fix)"
ruff check .

section "imports between rooms (the rules are in pyproject.toml)"
lint-imports --no-logo

section "types"
mypy

section "tests"
# Python caches its bytecode even where the machine's settings forbid it: tests start a hundred processes.
unset PYTHONDONTWRITEBYTECODE
# XLA's compilation takes most of the tests' time; a second run reads the programs from this cache.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
# Three processes for two cores, because some tests wait for other programs. Each module stays in one process, which
# makes its fixtures once.
run_tests() { python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=20 "$@"; }

if [[ $* == --full ]]; then
    run_tests
    section "slow tests"
    # The tests above check the shapes in signatures, which takes a third of the time of tracing a network, and compile
    # programs as users do. The slow tests skip that check, and XLA optimises less.
    XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=1" run_tests --full -m slow --jaxtyping-packages= \
        $(grep -rl --include='test_*.py' 'mark\.slow' tests)
else
    run_tests "$@"
fi

section "all passed"
