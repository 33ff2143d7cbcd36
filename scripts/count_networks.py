"""Counts parameters, FLOPs and features of every network, for `skipnet models` to print.

    python -m scripts.count_networks

Run it after changing a network. It traces all networks, which takes some minutes, and writes
skipnet_jax/models/counts.json and the table in docs/networks.md.
"""

import json
import pathlib

from tqdm import tqdm

from skipnet_jax.models import complexity, table, zoo

ROOT = pathlib.Path(__file__).parents[1]
COUNTS = ROOT / "skipnet_jax" / "models" / "counts.json"
PAGE = ROOT / "docs" / "networks.md"


def serialize(counts: dict[str, complexity.Complexity]) -> str:
    """The counts as JSON, one network per line."""
    lines = (f"{json.dumps(name)}: {json.dumps([c.params, c.flops, c.features])}" for name, c in counts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def with_table(page: str) -> str:
    """The page, with its table rewritten from the counts."""
    text, _, _ = page.partition("| name |")
    infos = map(table.model_info, zoo.list_models())
    return text + "\n".join(table.markdown_lines(infos, table.columns(xla=False, features=True))) + "\n"


def main() -> None:
    """Traces all networks and writes both files."""
    COUNTS.write_text(serialize({name: complexity.count(name) for name in tqdm(zoo.list_models())}))
    PAGE.write_text(with_table(PAGE.read_text()))


if __name__ == "__main__":
    main()
