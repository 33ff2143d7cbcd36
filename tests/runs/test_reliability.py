"""The promises of docs/reliability.md."""

import ast
import pathlib
import re

TESTS = pathlib.Path(__file__).parents[1]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS.parent / "docs" / "reliability.md").read_text())


def test_each_promise_names_a_test_that_exists():
    missing = []
    for file, name in NAMED:
        path = TESTS / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([])
        if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert len(NAMED) > 30 and not missing
