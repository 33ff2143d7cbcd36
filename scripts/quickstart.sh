#!/usr/bin/env bash
# From nothing to a trained and evaluated SkipResNet on the embedded data set, on a CPU.
#
#   bash scripts/quickstart.sh                      into runs/digits
#   WORKDIR=/data/run bash scripts/quickstart.sh    into another folder
#   bash scripts/quickstart.sh --config.epochs=2    arguments are those of skipnet_jax.main
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${WORKDIR:-$PWD/runs/digits}
case "$workdir" in
    /* | *://*) ;;
    *) workdir=$caller/$workdir ;;
esac

bash scripts/setup_venv.sh run

# A second start finds the step compiled.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
.venv/bin/python -m skipnet_jax.main --config=configs/digits.py --workdir="$workdir" "$@"

cat <<END

All of the run is in $workdir:
$(ls -1 "$workdir" | sed 's/^/  /')
Curves: $workdir/curves.png, or .venv/bin/tensorboard --logdir "$workdir"
Evaluate it again: .venv/bin/python -m skipnet_jax.main --mode=evaluate --workdir="$workdir"
END
