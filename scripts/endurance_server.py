"""Forks the lives that `endurance.py` kills; each tells in which phase it is, where that cannot be seen from outside.

`tests.lives.Forks` runs it, in place of `tests/fork_server.py`.
"""

import dataclasses
import functools
import os
import sys
from typing import Any

from orbax.checkpoint._src.serialization import ocdbt_utils

from scripts import endurance
from skipnet_jax.evaluation import scoring
from skipnet_jax.exports import export
from skipnet_jax.models import zoo
from skipnet_jax.runs import hosts
from tests import fork_server

BEFOREHAND = (export,)
JOIN_SECONDS, HEARTBEAT_SECONDS = 20, 10  # so that the survivor of two hosts does not wait for minutes
NETWORK = "resnet20"


def make_short() -> None:
    """Leaves one block, which compiles fast, and patience of seconds."""
    whole = zoo.NETWORKS[NETWORK]
    zoo.NETWORKS[NETWORK] = dataclasses.replace(whole, blocks=whole.blocks[:1])
    hosts.JOIN_SECONDS, hosts.HEARTBEAT_SECONDS = JOIN_SECONDS, HEARTBEAT_SECONDS
    fork_server.shorten_leases(*map(float, sys.argv[1:]))


def announce(asked: dict[str, Any]) -> None:
    """Lets a child say when it evaluates, and when it compacts: Orbax then joins the files of a save."""
    file = os.open(endurance.told_by(asked["output"]), os.O_CREAT | os.O_WRONLY)

    def tell(phase: str, inside: bool) -> None:
        os.pwrite(file, b"1" if inside else b"0", endurance.TOLD[phase])

    evaluate, merge = scoring.evaluate_state, ocdbt_utils.merge_ocdbt_per_process_files

    @functools.wraps(evaluate)
    def evaluate_state(*args: Any, **kwargs: Any) -> Any:
        tell(endurance.EVALUATION, True)
        try:
            return evaluate(*args, **kwargs)
        finally:
            tell(endurance.EVALUATION, False)

    @functools.wraps(merge)
    async def compact(*args: Any, **kwargs: Any) -> None:
        tell(endurance.COMPACTION, True)
        try:
            await merge(*args, **kwargs)
        finally:
            tell(endurance.COMPACTION, False)

    scoring.evaluate_state, ocdbt_utils.merge_ocdbt_per_process_files = evaluate_state, compact


if __name__ == "__main__":
    make_short()
    fork_server.serve(announce)
