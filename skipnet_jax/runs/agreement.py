"""Checks that all hosts of a run were started alike, before they compute anything together.

Hosts with different configs or code would wait for each other for ever, or train something that nobody asked for.
"""

import hashlib
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import flax
import jax
from jax._src import distributed  # JAX has no public name for the store that its hosts share

from skipnet_jax import __version__, libraries
from skipnet_jax.errors import UserError
from skipnet_jax.runs import events

SECONDS = 60  # for the slowest host to report; all have joined already
_NAMED_AT_MOST = 5
_OF_EACH_HOST = {"data.dir"}  # each host may have its own copy


def require_alike(settings: Mapping[str, Any]) -> int:
    """Compares settings, code, libraries and devices between all hosts. Call it once, right after joining.

    Args:
      settings: names and values, which may be nested, as in a config's dict.

    Returns:
      This process's number among the hosts.

    Raises:
      UserError: on every host; says what differs.
      RuntimeError: a host says nothing within `SECONDS`; `hosts.is_lost` recognises the error.
    """
    flat = flax.traverse_util.flatten_dict(dict(settings), sep=".")
    facts = {name: repr(value) for name, value in flat.items() if name not in _OF_EACH_HOST}
    _require_same("settings, code and libraries", {**facts, **_code_and_libraries()})
    libraries.require_devices()
    # Only now, since counting devices already needs the other hosts, and the same JAX on them.
    _require_same("number of devices", {"number of devices": str(jax.local_device_count())})
    return distributed.global_state.process_id


def _require_same(what: str, facts: Mapping[str, str]) -> None:
    state = distributed.global_state  # not jax.process_count(), which needs the devices
    count, index, store = state.num_processes, state.process_id, state.client
    if count == 1 or store is None:
        return
    prefix = f"skipnet_jax/{what}"
    try:
        store.key_value_set(f"{prefix}/{index}", json.dumps(dict(facts)))
        if index == 0:
            told = [json.loads(store.blocking_key_value_get(f"{prefix}/{i}", SECONDS * 1000)) for i in range(count)]
            store.key_value_set(f"{prefix}/differ", json.dumps(_differences(told)))
        differ = json.loads(store.blocking_key_value_get(f"{prefix}/differ", (SECONDS + 10) * 1000))
    except RuntimeError as error:
        raise RuntimeError(f"coordination service: a host did not report its {what} within {SECONDS} s") from error
    if differ:
        more = f"; and {len(differ) - _NAMED_AT_MOST} more" if len(differ) > _NAMED_AT_MOST else ""
        raise UserError(
            "distributed",
            "; ".join(differ[:_NAMED_AT_MOST]) + more,
            f"the same {what} on all {count} hosts",
            "Start the same command with the same code and libraries on each, or give each --distributed=no to run "
            "alone.",
        )


def _code_and_libraries() -> dict[str, str]:
    """The version of this package, with a checksum of its files, and the versions of Python and of the libraries."""
    folder = pathlib.Path(__file__).resolve().parents[1]
    checksum = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        checksum.update(file.relative_to(folder).as_posix().encode())
        checksum.update(file.read_bytes())
    revision = events.git_revision() or "no git"
    code = f"{__version__} ({revision}, checksum {checksum.hexdigest()[:12]})"
    return {"skipnet_jax": code, "python": platform.python_version(), **events.versions()}


def _differences(told: list[dict[str, str]]) -> list[str]:
    """Describes each fact that is not the same on all hosts."""
    texts = []
    for name in dict.fromkeys(name for facts in told for name in facts):
        hosts: dict[str, list[int]] = {}
        for host, facts in enumerate(told):
            hosts.setdefault(facts.get(name, "nothing"), []).append(host)
        if len(hosts) > 1:
            values = (f"{value} on host {', '.join(map(str, numbers))}" for value, numbers in hosts.items())
            texts.append(f"{name} is {' and '.join(values)}")
    return texts
