#!/usr/bin/env bash
# Makes .venv beside this repository's setup.cfg, or brings it up to date.
#
#   bash scripts/setup_venv.sh run     what training needs
#   bash scripts/setup_venv.sh test    also the tools that check.sh needs
#   bash scripts/setup_venv.sh peer    also PyTorch and timm, which some tests compare with
#   bash scripts/setup_venv.sh gpu     what training on GPUs needs, and workdirs in a bucket
#   bash scripts/setup_venv.sh tpu     what training on TPUs needs, and workdirs in a bucket
#
# Does nothing if the last installation is still up to date. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=${1:?expected run, test, peer, gpu or tpu}
case "$wanted" in # enough: the installations that include this one
    run) target=. enough="run test peer gpu tpu" ;;
    test) target=".[test]" enough="test peer" ;;
    peer) target=".[test,peer]" enough=peer ;;
    gpu) target=".[gpu,gcs]" enough=gpu ;;
    tpu) target=".[tpu,gcs]" enough=tpu ;;
    *) echo "setup_venv.sh: got '$wanted', expected run, test, peer, gpu or tpu" >&2; exit 2 ;;
esac

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    local found
    found=$("${PYTHON:-python3}" --version 2>&1) || found="none"
    echo "Python 3.11, 3.12 or 3.13 is needed; found: $found." >&2
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name one: PYTHON=/path/to/python3.11 bash ..." >&2
    return 1
}

version_of() { "$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null; }

# Whether .venv lies where it was made, since its scripts hold that path, and has the version that PYTHON names.
fits() {
    [ "$(. .venv/bin/activate 2>/dev/null && printf %s "$VIRTUAL_ENV")" -ef .venv ] &&
        .venv/bin/python -c '' 2>/dev/null &&
        { [ -z "${PYTHON:-}" ] || [ "$(version_of .venv/bin/python)" = "$(version_of "$PYTHON")" ]; }
}

# The fingerprint includes the folder: a moved checkout would go on importing the old one.
fingerprint=$(printf '%s' "$PWD" | cat - setup.cfg pyproject.toml | cksum)
for each in $enough; do
    stamp=.venv/installed-$each
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && fits; then
        exit 0
    fi
done

if ! fits || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "Python's venv module does not work. Install it (Debian, Ubuntu: apt install python3-venv) and try again." >&2
        exit 1
    fi
fi

echo "Installing skipnet_jax's dependencies into .venv (2.5 GB; a minute or more the first time)"
rm -f .venv/installed-*
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$target"
echo "$fingerprint" >".venv/installed-$wanted"
