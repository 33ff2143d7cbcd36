#!/usr/bin/env bash
# Keeps a run alive on a TPU worker when the connection breaks. run_tpu_pod.sh calls it on each worker.
#
#   bash scripts/pod_worker.sh prepare          makes .venv; first installs Python if the system's is too old
#   bash scripts/pod_worker.sh start FLAGS...   starts skipnet_jax.main with these flags, unless it is running; shows
#                                               its output, and ends with its exit status
#   bash scripts/pod_worker.sh is_running       ends with 0 if so
#   bash scripts/pod_worker.sh stop             asks the run to save and stop, and waits
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p runs
state=runs/pod # .pid .flags .log .status .stopped

is_running() {
    # After a reboot the process number may belong to another process.
    [ -f $state.pid ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat $state.pid)/cmdline" | grep -q "pod_run"
}

start() {
    local wanted
    wanted=$(printf '%q ' "$@")
    if is_running; then
        if [ "$wanted" != "$(cat $state.flags)" ]; then
            echo "pod_worker.sh: got $wanted, expected $(cat $state.flags), which is running here. Stop that one first." >&2
            exit 2
        fi
        echo "already running"
        tail -n 20 -f --pid="$(cat $state.pid)" $state.log
    else
        echo "$wanted" >$state.flags
        rm -f $state.status $state.stopped
        : >$state.log # tail must find the file
        export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
        # A session of its own survives the connection. A signal to the session ends the loop, while the outer shell
        # stays to record its status.
        # shellcheck disable=SC2016 # the inner shell expands
        setsid bash -c 'trap : TERM; bash scripts/keep_running.sh "$@"; echo $? >'"$state.status" pod_run \
            .venv/bin/python -m skipnet_jax.main --distributed "$@" >>$state.log 2>&1 </dev/null &
        echo $! >$state.pid
        tail -n +1 -f --pid=$! $state.log
    fi
    if [ -f $state.stopped ]; then
        echo "pod_worker.sh: the run was stopped by --stop. The same command starts it again." >&2
        exit 2 # a loop around run_tpu_pod.sh would start it again
    fi
    exit "$(cat $state.status 2>/dev/null || echo 137)" # no status: the run was killed
}

stop() {
    if is_running; then
        local shown
        shown=$(wc -l <$state.log)
        touch $state.stopped
        kill -s TERM -- "-$(cat $state.pid)"
        tail -n +$((shown + 1)) -f --pid="$(cat $state.pid)" $state.log
    else
        echo "nothing is running"
    fi
}

prepare() {
    if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        command -v python3.11 >/dev/null || sudo apt-get install --quiet --yes python3.11 python3.11-venv
    fi
    bash scripts/setup_venv.sh tpu
}

action=${1:-}
case "$action" in
    prepare | start | is_running | stop) "$@" ;;
    *)
        echo "pod_worker.sh: got '$action', expected prepare, start, is_running or stop" >&2
        exit 2
        ;;
esac
