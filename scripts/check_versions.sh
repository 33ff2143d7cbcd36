#!/usr/bin/env bash
# Runs the fast tests with the oldest and with the newest libraries that setup.cfg allows.
#
#   bash scripts/check_versions.sh                      both ends
#   bash scripts/check_versions.sh newest               one end
#   bash scripts/check_versions.sh oldest tests/models  other arguments go to pytest
#
# Each end has an environment of its own: .venv-oldest with Python 3.11, .venv-newest with Python 3.13.
# PYTHON_OLDEST=... and PYTHON_NEWEST=... name other interpreters.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ends="oldest newest"
case "${1:-}" in oldest | newest) ends=$1; shift ;; esac

check() {
    local end=$1 python=$2
    shift 2
    local folder=.venv-$end
    printf '\n=== the %s libraries, %s ===\n' "$end" "$("$python" --version)"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    # pip cannot choose the lowest versions that fit together; uv can.
    "$folder"/bin/python -m pip install --quiet --disable-pip-version-check uv
    local resolution=highest
    if [ "$end" = oldest ]; then resolution=lowest-direct; fi
    "$folder"/bin/uv pip install --quiet --python "$folder"/bin/python --resolution "$resolution" --editable ".[test]"
    "$folder"/bin/uv pip freeze --quiet --python "$folder"/bin/python |
        grep -E -i '^(jax|flax|optax|orbax-checkpoint|tensorflow|tensorflow-cpu|tensorflow-datasets|clu|numpy)=='
    # Programs compiled by one version are no use to another.
    JAX_COMPILATION_CACHE_DIR=$PWD/.cache/jax-$end JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 \
        PATH=$PWD/$folder/bin:$PATH python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder "$@"
}

for end in $ends; do
    if [ "$end" = oldest ]; then python=${PYTHON_OLDEST:-python3.11}; else python=${PYTHON_NEWEST:-python3.13}; fi
    check "$end" "$python" "$@"
done
