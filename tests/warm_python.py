"""A `python` that has done its imports, for tests that start many commands, as a user would.

Importing JAX and TensorFlow takes three seconds. The server below imports them once, and forks a child for each
command. Neither library has started a thread or opened a device by then, so the child is like a fresh process after its
imports. `python` itself is the client below: it hands its arguments, environment, folder, input and output over, and
ends as the child ends. Whoever kills the client kills the child.
"""

import contextlib
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Variables that libraries read when they are imported: a command that has others starts afresh.
READ_EARLY = ("JAX_", "XLA_", "TF_", "PYTHONPATH")
IMPORTED = (
    "clu.metric_writers",
    "google.cloud.storage",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "sklearn.model_selection",
    "tensorboard.summary.v2",
    "tensorflow",
    "tensorflow_datasets",
    "skipnet_jax.data.augment",
    "skipnet_jax.evaluate",
    "skipnet_jax.predict",
    "skipnet_jax.train",
)

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"!"], [0, 1, 2])
order = dict(argv=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
server.sendall(json.dumps(order).encode() + b"\\n")
answer = server.makefile().readline()
if answer == "afresh\\n":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
status = os.waitstatus_to_exitcode(int(answer))
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """The program to start in place of `sys.executable`."""
    folder = tmp_path_factory.mktemp("warm")
    program, address = folder / "python", folder / "server"
    program.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    command = [sys.executable, "-m", "tests.warm_python", str(address)]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline() == b"ready\n"
    yield program
    server.communicate()


def prepare_to_fork() -> None:
    """Imports what commands import when they need it, and keeps the memory of these modules from being copied.

    Otherwise each child's garbage collector would look at all of them, and so copy their pages: 3 s for each child.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()


def _serve(address: str) -> None:
    """Takes orders until standard input is closed. Returns in a child, after its command."""
    early = _read_early(os.environ)
    prepare_to_fork()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that keep the children
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, 0], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
        else:
            return
    _keep(connection, early)


def _keep(connection: socket.socket, early: dict[str, str]) -> None:
    """Has a child run the client's command, and tells the client how it ended. Only the child returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    order = json.loads(connection.makefile().readline())
    if _read_early(order["environment"]) != early:
        connection.sendall(b"afresh\n")
        os._exit(0)
    child = os.fork()
    if not child:
        connection.close()
        _run(files, **order)
        return
    with contextlib.suppress(BrokenPipeError):
        if connection in select.select([connection, os.pidfd_open(child)], [], [])[0]:
            os.kill(child, signal.SIGKILL)  # the client has gone
        connection.sendall(b"%d\n" % os.waitpid(child, 0)[1])
    os._exit(0)


def _read_early(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


def _run(files: list[int], argv: list[str], environment: dict[str, str], folder: str) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    match argv:
        case ["-m", module, *rest]:
            sys.argv, sys.path[0] = [module, *rest], folder
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv, sys.path[0] = ["-c", *rest], ""
            exec(code, {"__name__": "__main__"})
        case [script, *_]:
            sys.argv, sys.path[0] = argv, str(pathlib.Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
