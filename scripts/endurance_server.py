"""Forks the lives that `endurance.py` kills; each announces the phases that cannot be seen from outside.

`tests.lives.Forks` runs it in place of `tests/fork_server.py`.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from orbax.checkpoint._src.serialization import ocdbt_utils

from scripts import endurance
from skipnet_jax.evaluation import scoring
from skipnet_jax.exports import export
from skipnet_jax.models import zoo
from skipnet_jax.runs import hosts
from tests import fork_server

BEFOREHAND = (export,)
JOIN_SECONDS, HEARTBEAT_SECONDS = 20, 10  # so that the survivor of two hosts ends within seconds, not minutes
NETWORK = "resnet20"


def make_short() -> None:
    """Cuts the network to one block, which compiles fast, and the waiting times to seconds."""
    whole = zoo.NETWORKS[NETWORK]
    zoo.NETWORKS[NETWORK] = dataclasses.replace(whole, blocks=whole.blocks[:1])
    hosts.JOIN_SECONDS, hosts.HEARTBEAT_SECONDS = JOIN_SECONDS, HEARTBEAT_SECONDS
    fork_server.shorten_leases(*map(float, sys.argv[1:]))


def announce(asked: dict[str, Any]) -> None:
    """Makes a child announce when it evaluates, and when it compacts a save (Orbax joins the files of the hosts)."""
    file = os.open(endurance.told_by(asked["output"]), os.O_CREAT | os.O_WRONLY)

    @contextlib.contextmanager
    def telling(phase: str) -> Iterator[None]:
        os.pwrite(file, b"1", endurance.TOLD[phase])
        try:
            yield
        finally:
            os.pwrite(file, b"0", endurance.TOLD[phase])

    @contextlib.asynccontextmanager
    async def telling_meanwhile(phase: str) -> AsyncIterator[None]:
        with telling(phase):
            yield

    scoring.evaluate_state = telling(endurance.EVALUATION)(scoring.evaluate_state)
    merge = telling_meanwhile(endurance.COMPACTION)(ocdbt_utils.merge_ocdbt_per_process_files)
    ocdbt_utils.merge_ocdbt_per_process_files = merge


if __name__ == "__main__":
    make_short()
    fork_server.serve(announce)
