"""Starts runs within a second: a process that has imported everything forks one child per run.

Imports of JAX and TensorFlow take most of the time of a short run. Neither library has started a thread or opened a
device when this process forks, so a child is like a fresh process after its imports, and may be killed like one. The
process reads {"argv": [...], "output": FILE} line by line, if need be with "errors" (another file), "env" and "folder",
and answers "started PROCESS" and, once it has ended, "ended PROCESS STATUS" with the status of `os.waitpid`. The
network is tiny, so that it compiles fast.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import pytest

from skipnet_jax import main
from skipnet_jax.runs import lease
from tests import warm_python
from tests.tiny_runs import TinyNet, use_network


def shorten_leases(renew_seconds: float, stale_seconds: float) -> None:
    lease.RENEW_SECONDS, lease.STALE_SECONDS = renew_seconds, stale_seconds


def serve(in_child: Callable[[dict[str, Any]], None] = lambda asked: None) -> None:
    """Reads orders until there are no more, and all children have ended.

    Args:
      in_child: called with the order in each child, before the command.
    """
    warm_python.prepare_to_fork()
    children: set[int] = set()
    orders = bytearray()
    asking = True
    while asking or children:
        # Wakes up often to look for children that have ended; a signal handler would be inherited.
        if asking and select.select([0], [], [], 0.02)[0]:
            read = os.read(0, 65536)
            asking = bool(read)
            orders += read
            while b"\n" in orders:
                line, _, orders = orders.partition(b"\n")
                children.add(_fork(json.loads(line), in_child))
        elif not asking:
            time.sleep(0.02)
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                print("ended", child, status, flush=True)


def _fork(asked: dict[str, Any], in_child: Callable[[dict[str, Any]], None]) -> int:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(asked["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        os.dup2(os.open(asked["errors"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY) if "errors" in asked else 1, 2)
        sys.argv = ["skipnet_jax", *asked["argv"]]
        os.environ.update(asked.get("env", {}))
        os.chdir(asked.get("folder", "."))
        in_child(asked)
        main.run()
    print("started", child, flush=True)
    return child


if __name__ == "__main__":
    use_network(pytest.MonkeyPatch(), TinyNet())
    shorten_leases(*map(float, sys.argv[1:]))
    serve()
