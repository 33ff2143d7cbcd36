import os
import signal
import subprocess
import sys
import threading

import pytest

from skipnet_jax.runs import signals


@pytest.mark.parametrize("number", signals.WATCHED)
def test_the_first_signal_is_noted_and_nothing_is_left_behind(number):
    before = signal.getsignal(number)
    with signals.Signals() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.number == number
        with pytest.raises(signals.Requested):
            stop.check()
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_signal_ends_a_process_that_does_not_listen():
    """No instruction of Python runs in the main thread, as in a compilation: C waits for a lock."""
    program = (
        "import ctypes\n"
        "from skipnet_jax.runs import signals\n"
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)\n"
        "with signals.Signals():\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(2): libc.pthread_mutex_lock(mutex)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith(b"SIGTERM: stopping after this step")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.communicate()


def test_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with signals.Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_hosts_act_on_a_signal_when_all_have_heard_of_it():
    """The second of three hosts gets it between its votes 2 and 3; what is cast is heard one call later."""
    hosts = [signals.Signals(cast=lambda vote, i=i: hear(i, vote)) for i in range(3)]
    cast = []

    def hear(host, vote):
        if host == 0:
            cast.append([])
        cast[-1].append(vote)
        return cast[-2] if len(cast) > 1 else ()

    for step in range(1, 5):
        if step == 3:
            with hosts[1]:
                os.kill(os.getpid(), signal.SIGTERM)
                hosts[1].check()  # does nothing: the others have to come along
        for host in hosts:
            host.agree()
        assert [host.number for host in hosts] == [signal.SIGTERM if step > 3 else 0] * 3
    assert [host.hosts for host in hosts] == [[1]] * 3
    with pytest.raises(signals.Requested):
        hosts[0].check()


def test_what_stops_a_run_says_how_to_exit():
    stop = signals.Stopped("stopped at step 3", signal.SIGTERM)
    assert (stop.exit_status, stop.why, str(stop)) == (143, "SIGTERM", "stopped at step 3")
    assert isinstance(stop, KeyboardInterrupt)
