#!/usr/bin/env bash
# Trains on a TPU VM or on all workers of a TPU pod slice. Run it on a machine with gcloud.
#
#   bash scripts/run_tpu_pod.sh --name=NAME --zone=ZONE --project=PROJECT [OPTIONS] -- FLAGS OF skipnet_jax.main
#   bash scripts/run_tpu_pod.sh --name=NAME --zone=ZONE --project=PROJECT --stop
#
#   --dry_run                 prints the commands without running them; needs no gcloud
#   --create                  creates the TPU if it does not exist, and replaces it if it was preempted. Needs
#     --accelerator_type=...  such as v5litepod-32
#     --version=...           of the TPU's software, such as v2-alpha-tpuv5-lite
#     --spot, --preemptible   (optional) a cheaper TPU, which may be preempted at any time
#   --stop                    asks the run to save and stop; the script that shows the run, and a loop around it, end
#
# It copies the last commit to all workers, installs what the run needs, and starts the same command on all of them,
# each in the restart loop of keep_running.sh. The run outlives this script: Ctrl-C or a broken connection only ends the
# output here, and the same command shows it again. The script creates nothing without --create, and deletes nothing but
# a preempted or terminated TPU. To survive preemption, put `bash scripts/keep_running.sh` before the whole command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() {
    echo "run_tpu_pod.sh: $1" >&2
    exit 2
}

name='' zone='' project='' accelerator_type='' version=''
create=false dry_run=false stop=false
kind=() # --spot or --preemptible
while [ $# -gt 0 ]; do
    case "$1" in
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --accelerator_type=*) accelerator_type=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --spot | --preemptible) kind+=("$1") ;;
        --create) create=true ;;
        --dry_run) dry_run=true ;;
        --stop) stop=true ;;
        --)
            shift
            break
            ;;
        *) refuse "got $1, expected --name=, --zone= and so on (see the top of $0), and main's flags after --." ;;
    esac
    shift
done

require_name() { # flag, value, pattern
    [[ $2 =~ ^$3$ ]] || refuse "$1: got '$2', expected a name that matches $3. Give $1=..."
}
require_name --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?'
require_name --zone "$zone" '[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]'
require_name --project "$project" '[a-z]([-a-z0-9.:]{0,61}[a-z0-9])?'
if $create; then
    require_name --accelerator_type "$accelerator_type" '[a-z0-9]+-[0-9]+'
    require_name --version "$version" '[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?'
elif [ -n "$accelerator_type$version${kind[*]-}" ]; then
    refuse "--accelerator_type, --version, --spot, --preemptible: got one, expected them with --create only. Add --create."
fi
[ "${#kind[@]}" -lt 2 ] || refuse "got ${kind[*]}, expected one of them. Leave the other out."
if $stop; then
    [ $# -eq 0 ] || refuse "--stop: got flags after --, expected none. Leave them out."
else
    workdir=
    for flag in "$@"; do
        case "$flag" in
            --workdir=*) workdir=${flag#*=} ;;
            --distributed*) refuse "got $flag, expected no such flag, since this script adds it. Leave it out." ;;
        esac
    done
    case "$workdir" in
        gs://?*) ;;
        *) refuse "--workdir: got '$workdir', expected gs://BUCKET/..., since a TPU's disks vanish with the TPU. Give it after --." ;;
    esac
fi

quoted() {
    local word separator=
    for word in "$@"; do
        case "$word" in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        printf '%s%s' "$separator" "$word"
        separator=' '
    done
}

call() {
    if $dry_run; then
        quoted "$@"
        echo
    else
        "$@" </dev/null # no command may ask a question
    fi
}

tpu() { # action, arguments...
    call gcloud compute tpus tpu-vm "$1" "$name" "--zone=$zone" "--project=$project" "${@:2}"
}

on_all() { tpu ssh --worker=all "--command=$1"; }

create() { tpu create "--accelerator-type=$accelerator_type" "--version=$version" ${kind[@]+"${kind[@]}"}; }

make_ready() {
    local state said
    if $dry_run; then
        tpu describe '--format=value(state)'
        if $create; then
            echo "# if it is PREEMPTED or TERMINATED:"
            tpu delete --quiet
            echo "# if there is none:"
            create
        fi
        echo "# if it is READY:"
        return
    fi
    said=$(mktemp)
    state=$(tpu describe '--format=value(state)' 2>"$said") || state=none
    if [ "$state" = none ] && ! grep -qi 'not_\?found' "$said"; then
        cat "$said" >&2
        echo "run_tpu_pod.sh: got gcloud's error above, expected the state of $name. Mend it and try again." >&2
        rm "$said"
        exit 1
    fi
    rm "$said"
    case "$state" in
        READY) ;;
        none | PREEMPTED | TERMINATED)
            $create || refuse "--name: got $name ($state), expected a TPU that is READY. Add --create."
            [ "$state" = none ] || tpu delete --quiet
            create
            ;;
        STOPPED)
            refuse "--name: got $name (STOPPED), expected a TPU that is READY. Start it: gcloud compute tpus tpu-vm start $name --zone=$zone --project=$project"
            ;;
        *)
            echo "run_tpu_pod.sh: got $name, which is $state, expected a TPU that is READY. Try again later." >&2
            exit 1
            ;;
    esac
}

if ! $dry_run; then
    command -v gcloud >/dev/null || refuse "got no gcloud, expected it in PATH: https://cloud.google.com/sdk/docs/install. --dry_run needs none."
    git rev-parse --verify --quiet HEAD >/dev/null || refuse "got no git clone, expected one, since the workers get its last commit."
    changes=$(git status --porcelain)
    [ -z "$changes" ] || $stop || refuse "got uncommitted changes, expected none, since the workers get the last commit. Commit or stash:
$changes"
fi

tell_costs() {
    echo "# The TPU still exists and costs money. Delete it with"
    echo "#   gcloud compute tpus tpu-vm delete $name --zone=$zone --project=$project"
}

worker='bash skipnet_jax/scripts/pod_worker.sh'
if $stop; then
    on_all "$worker stop"
    tell_costs
    exit
fi
make_ready
trap tell_costs EXIT # however this ends: the TPU is there now
$dry_run || mkdir -p .cache
bundle=.cache/skipnet_jax.bundle
call git bundle create --quiet "$bundle" HEAD
call gcloud compute tpus tpu-vm scp "$bundle" "$name:" "--zone=$zone" "--project=$project" --worker=all
on_all "$worker is_running 2>/dev/null || {\
 git init --quiet skipnet_jax &&\
 git -C skipnet_jax fetch --quiet ../skipnet_jax.bundle HEAD &&\
 git -C skipnet_jax checkout --quiet --force --detach FETCH_HEAD &&\
 $worker prepare; }"
on_all "$worker start $(quoted "$@")"
