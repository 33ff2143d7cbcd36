"""Damaged input for fuzz tests: JSON and bytes in which something is changed."""

import json
import os
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

from skipnet_jax.errors import UserError


def settings(max_examples: int) -> hypothesis.settings:
    """Settings that try the same examples on every run, so that no unrelated change fails.

    To look for new failures, set FUZZ=100: it tries a hundred times as many examples, different ones each time.
    """
    times = int(os.environ.get("FUZZ", "0"))
    return hypothesis.settings(
        max_examples=max_examples * max(times, 1),
        derandomize=not times,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def own_error(call: Callable[[], Any]) -> UserError | None:
    """The user error that a call raises, or None if it succeeds. Any other error is a bug and goes on."""
    try:
        call()
    except UserError as error:
        return error
    return None


NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, float("nan"), float("inf"), 1e308]),
)
NAMES = st.one_of(
    st.text(), st.sampled_from(["", ".", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "~", "gs://"])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def changed_json(draw: st.DrawFn, content: Any) -> Any:
    """The JSON with one or two changes at any depth: another value, a missing key, a new key."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(content))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            holder[key] = draw(VALUES)
        elif what == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(NAMES)] = draw(VALUES)
        else:
            holder.append(draw(VALUES))
    return draw(st.sampled_from([content] * 9 + [draw(VALUES)]))


def _places(content: Any) -> Any:
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with up to three changes: some are replaced, removed, inserted or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(result) - 1, 0)))
        what = draw(st.sampled_from(["byte", "bytes", "cut", "remove", "insert", "number"]))
        if what == "byte" and result:
            result[at] = draw(st.integers(0, 255))
        elif what == "bytes":
            result[at : at + 8] = draw(st.binary(max_size=16))
        elif what == "cut":
            del result[at:]
        elif what == "remove":
            del result[at : at + draw(st.integers(1, 64))]
        elif what == "insert":
            result[at:at] = draw(st.binary(max_size=64))
        else:
            size = draw(st.sampled_from([4, 8]))
            result[at : at + size] = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(size, "little")
    return bytes(result)


# Not JSON, or JSON that Python's parser cannot take.
HOSTILE_JSON = (b"", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff", b"NaN", b"null")


def json_files(content: Any) -> st.SearchStrategy[bytes]:
    """Contents of a file that should hold this JSON."""
    text = json.dumps(content).encode()
    changed = changed_json(content).map(lambda other: json.dumps(other).encode())
    return st.one_of(changed, changed, changed_bytes(text), st.sampled_from(HOSTILE_JSON), st.binary(max_size=40))
