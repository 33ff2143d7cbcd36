#!/usr/bin/env bash
# Runs a command again and again until it is done: on machines that are taken away, and for runs of days.
#
#   bash scripts/keep_running.sh python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits
#
# By the command's exit status:
#
#   0          done: ends with 0
#   2          a mistake of the user's, which would come again: ends with 2 (126, 127: no such command, likewise)
#   130, 143   interrupted (SIGINT, SIGTERM), and has saved: starts it again
#   others     failed: starts it again, but ends with that status after too many failures in a row
#
# SIGINT (Ctrl-C), SIGTERM and SIGHUP are passed on to the command, and are the end of this too, with its status.
#
#   WAIT_SECONDS=10    before it starts again; twice as long after each failure in a row, up to MAX_WAIT_SECONDS=300
#   MAX_FAILURES=5     in a row; one after more than HEALTHY_SECONDS=3600 of work is the first of a new row
set -uo pipefail

if [ $# -eq 0 ]; then
    echo "keep_running.sh: got no command, expected one: bash scripts/keep_running.sh python -m skipnet_jax.main ..." >&2
    exit 2
fi
WAIT_SECONDS=${WAIT_SECONDS:-10}
MAX_WAIT_SECONDS=${MAX_WAIT_SECONDS:-300}
MAX_FAILURES=${MAX_FAILURES:-5}
HEALTHY_SECONDS=${HEALTHY_SECONDS:-3600}
for name in WAIT_SECONDS MAX_WAIT_SECONDS MAX_FAILURES HEALTHY_SECONDS; do
    if ! [[ ${!name} =~ ^(0|[1-9][0-9]{0,5})$ ]]; then
        echo "keep_running.sh: got $name=${!name}, expected a whole number. Change $name." >&2
        exit 2
    fi
done

say() { printf '%s keep_running.sh: %s\n' "$(date '+%F %T')" "$1" >&2; }

# With job control a command is a process group of its own, so that Ctrl-C reaches it once and through here: of two
# signals the second would make a run stop without saving.
set -m
child=
signals=0

told= # the child has been

pass_on() {
    signals=$((signals + 1))
    if [ -n "$child" ]; then
        kill -s "$1" -- "-$child" 2>/dev/null
        told=yes
    fi
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on HUP' HUP

# Runs a command to its end, whatever signals come meanwhile; $status is then its exit status.
run() {
    local before
    told=
    "$@" &
    child=$!
    [ "$signals" -eq 0 ] || [ -n "$told" ] || kill -s TERM -- "-$child" 2>/dev/null # one came when there was none yet
    while :; do
        before=$signals
        wait "$child" 2>/dev/null # else bash says where in this script the command was killed
        status=$?
        [ "$signals" -ne "$before" ] || break # it was the signal that ended the wait
    done
    child=
}

failures=0
while :; do
    began=$SECONDS
    run "$@"
    [ "$signals" -eq 0 ] || exit "$status"
    pause=$WAIT_SECONDS
    case "$status" in
        0) exit 0 ;;
        2 | 126 | 127)
            say "ended with status $status, a mistake that would come again; not started again"
            exit "$status"
            ;;
        130 | 143)
            failures=0
            say "interrupted (status $status); starts again in $pause s"
            ;;
        *)
            [ $((SECONDS - began)) -le "$HEALTHY_SECONDS" ] || failures=0
            failures=$((failures + 1))
            if [ "$failures" -ge "$MAX_FAILURES" ]; then
                say "failed (status $status), $failures of at most $MAX_FAILURES times in a row; given up"
                exit "$status"
            fi
            for ((i = 1; i < failures && pause < MAX_WAIT_SECONDS; i++)); do
                pause=$((pause * 2))
            done
            [ "$pause" -le "$MAX_WAIT_SECONDS" ] || pause=$MAX_WAIT_SECONDS
            say "failed (status $status), $failures of at most $MAX_FAILURES times in a row; starts again in $pause s"
            ;;
    esac
    last=$status
    run sleep "$pause"
    [ "$signals" -eq 0 ] || exit "$last"
done
