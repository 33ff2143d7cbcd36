#!/usr/bin/env bash
# Restarts a command until it is done: for preemptible machines, and for runs of several days.
#
#   bash scripts/keep_running.sh python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits
#
# The command's exit status decides:
#
#   0          done: ends with 0
#   2          a mistake of the user's, which a restart would repeat: ends with 2 (126 and 127, no such command, too)
#   130, 143   interrupted (SIGINT, SIGTERM) after saving: restarts
#   others     failed: restarts, but ends with that status after too many failures in a row
#
# SIGINT (Ctrl-C), SIGTERM and SIGHUP go to the command; when it ends, this script ends with its status.
#
#   WAIT_SECONDS=10    before a restart; doubles with each failure in a row, up to MAX_WAIT_SECONDS=300
#   MAX_FAILURES=5     in a row; a failure after more than HEALTHY_SECONDS=3600 of work starts a new row
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

# Job control gives the command a process group of its own, so that Ctrl-C reaches it once, through this script. A
# second signal would make a run stop without saving.
set -m
child=
signals=0

passed_on= # whether the child has received a signal

pass_on() {
    signals=$((signals + 1))
    if [ -n "$child" ]; then
        kill -s "$1" -- "-$child" 2>/dev/null
        passed_on=yes
    fi
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on HUP' HUP

# Runs a command to its end, whatever signals come meanwhile, and sets $status to its exit status.
run() {
    local before
    passed_on=
    "$@" &
    child=$!
    # Pass on a signal that came before the child was there.
    [ "$signals" -eq 0 ] || [ -n "$passed_on" ] || kill -s TERM -- "-$child" 2>/dev/null
    while :; do
        before=$signals
        wait "$child" 2>/dev/null # hides bash's message about where the command was killed
        status=$?
        [ "$signals" -eq "$before" ] || continue # a signal ends the wait too
        kill -0 "$child" 2>/dev/null || break # and so does SIGSTOP to the command, which may go on later
        sleep 1
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
            say "ended with status $status, a mistake that a restart would repeat; giving up"
            exit "$status"
            ;;
        130 | 143)
            failures=0
            say "interrupted (status $status); restarting in $pause s"
            ;;
        *)
            [ $((SECONDS - began)) -le "$HEALTHY_SECONDS" ] || failures=0
            failures=$((failures + 1))
            if [ "$failures" -ge "$MAX_FAILURES" ]; then
                say "failed (status $status), $failures of at most $MAX_FAILURES times in a row; giving up"
                exit "$status"
            fi
            for ((i = 1; i < failures && pause < MAX_WAIT_SECONDS; i++)); do
                pause=$((pause * 2))
            done
            [ "$pause" -le "$MAX_WAIT_SECONDS" ] || pause=$MAX_WAIT_SECONDS
            say "failed (status $status), $failures of at most $MAX_FAILURES times in a row; restarting in $pause s"
            ;;
    esac
    last=$status
    run sleep "$pause"
    [ "$signals" -eq 0 ] || exit "$last"
done
