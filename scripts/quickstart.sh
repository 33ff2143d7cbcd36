#!/usr/bin/env bash
# Sets everything up, then trains and evaluates a SkipResNet on the embedded data set, on a CPU.
#
#   bash scripts/quickstart.sh                      writes to runs/digits
#   WORKDIR=/data/run bash scripts/quickstart.sh    writes to another folder
#   bash scripts/quickstart.sh --config.epochs=2    passes flags on to skipnet_jax.main
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${WORKDIR:-$PWD/runs/digits}
case "$workdir" in
    *://*)
        echo "WORKDIR: got $workdir, expected a local folder. For a bucket see docs/running.md." >&2
        exit 2
        ;;
    /*) ;;
    *) workdir=$caller/$workdir ;;
esac

for flag in "$@"; do
    case "$flag" in
        --workdir | --workdir=* | -workdir | -workdir=*)
            echo "quickstart.sh: got $flag, expected the folder in WORKDIR. Run: WORKDIR=DIR bash scripts/quickstart.sh" >&2
            exit 2
            ;;
    esac
done

bash scripts/setup_venv.sh run

# The next start reads the compiled programs from this cache.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
.venv/bin/python -m skipnet_jax.main --config=configs/digits.py --workdir="$workdir" "$@"

cat <<END

Everything about the run is in $workdir:
$(ls -1 "$workdir" | sed 's/^/  /')
For its curves see $workdir/curves.png, or run .venv/bin/tensorboard --logdir "$workdir"
To evaluate it again: .venv/bin/python -m skipnet_jax.main --mode=evaluate --workdir="$workdir"
END
