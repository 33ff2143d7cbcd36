"""A process that compiles: what comes back, and what a crash does."""

import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from skipnet_jax import errors
from skipnet_jax.analysis import compiler_process


def speak_and_add(left, *, right):
    os.write(2, b"a compiler's noise\n")
    print("working", file=sys.stderr)
    return left + right


def raise_it(error):
    raise error


def crash():
    os.write(2, b"a compiler's last words\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_results_and_python_s_words_come_back_and_noise_does_not(capfd):
    assert compiler_process.call("v6e:2x4", functools.partial(speak_and_add, 1, right=2)) == 3
    assert capfd.readouterr().err == "working\n"


def test_errors_come_back():
    mistake = errors.UserError("batch_size", "7", "a multiple of 8", "Change `batch_size`.")
    with pytest.raises(errors.UserError, match="batch_size: got 7, expected a multiple of 8") as caught:
        compiler_process.call("v6e:2x4", functools.partial(raise_it, mistake))
    assert caught.value.field == "batch_size" and not hasattr(caught.value, "__notes__")
    with pytest.raises(ZeroDivisionError, match="by chance") as bug:
        compiler_process.call("v6e:2x4", functools.partial(raise_it, ZeroDivisionError("by chance")))
    assert "in raise_it" in bug.value.__notes__[0]


def test_a_crash_is_a_line_and_a_file():
    with pytest.raises(errors.UserError) as caught:
        compiler_process.call("v6e:2x4", crash)
    text = str(caught.value)
    assert text.startswith("topology: got v6e:2x4, on which XLA's compiler crashed (SIGSEGV), expected ")
    log = pathlib.Path(re.search(r"; (\S+) says where", text)[1])
    assert "a compiler's last words\n" in log.read_text()
    log.unlink()


@pytest.fixture
def compiling(tmp_path):
    """A process that waits for another, which compiles, and the other's number."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, sys, tempfile, time
        from skipnet_jax.analysis import compiler_process

        def compile_for_minutes():
            unfinished = tempfile.mkdtemp()
            print(os.getpid(), flush=True)
            time.sleep(60)

        if __name__ == "__main__":
            compiler_process.call("v6e:2x4", compile_for_minutes)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def test_an_interrupt_ends_both_processes_at_once_and_leaves_no_file(compiling, tmp_path):
    process, other = compiling
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and told.count("Traceback") == 1 and "KeyboardInterrupt" in told
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["program.py"]


def test_no_process_compiles_on_alone(compiling):
    process, other = compiling
    process.kill()
    process.communicate(timeout=30)  # returns when both have closed the pipes
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(other, 0)
            time.sleep(0.1)
