import os
import signal
import subprocess
import sys
import threading

import pytest

from skipnet_jax import interruption


@pytest.mark.parametrize("number", interruption.WATCHED)
def test_the_first_signal_is_noted_and_nothing_is_left_behind(number):
    before = signal.getsignal(number)
    with interruption.Signals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert signals.number == number
        with pytest.raises(interruption.Requested):
            signals.check()
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_signal_ends_a_process_that_does_not_listen():
    """No instruction of Python runs in the main thread, as in a compilation: C waits for a lock."""
    program = (
        "import ctypes\n"
        "from skipnet_jax import interruption\n"
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)\n"
        "with interruption.Signals():\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(2): libc.pthread_mutex_lock(mutex)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith(b"SIGTERM: stopping after this step")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        process.communicate()


def test_other_threads_and_hosts_that_must_agree_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with interruption.Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    with interruption.Signals(enabled=False):
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen == [before, before]


def test_what_stops_a_run_says_how_to_exit():
    stop = interruption.Stopped("stopped at step 3", signal.SIGTERM)
    assert (stop.exit_status, stop.why, str(stop)) == (143, "SIGTERM", "stopped at step 3")
    assert isinstance(stop, KeyboardInterrupt)
