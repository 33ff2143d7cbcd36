"""Makes the tables of docs/tpu.md: plans of networks on slices of TPUs, and of one network on more and more chips.

    python -m scripts.tpu_tables --folder=plans
    python -m scripts.tpu_tables --folder=plans --scaling --quick
    python -m scripts.tpu_tables --folder=plans --write=docs/tpu.md

The folder keeps each plan: call the script again to go on, as often as needed. A whole plan takes up to an hour. A
quick plan takes a minute or two, but has no cycles; a whole plan replaces it. --write compiles nothing; it puts the
folder's plans into the page, and leaves the page's other rows as they are. Needs libtpu: pip install -e ".[tpu]".
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts import pages
from skipnet_jax import config_files
from skipnet_jax.analysis import chips
from skipnet_jax.errors import UserError
from skipnet_jax.specs import TrainSpec

NETWORKS = (
    "resnet50",
    "skip_resnet50",
    "skip_resnext101_32x4d",
    "skip_regnety_032",
    "skip_convnext_base",
    "skip_swin_small",
)
TOPOLOGIES = ("v3:2x2", "v4:2x2x1", "v4:4x4x4", "v5e:2x4", "v5e:16x16", "v5p:2x2x1", "v6e:2x4")
SCALED = "skip_resnet50"
SHAPES = ("1x1", "2x2", "4x4", "8x8", "16x16")  # of v5e: 1 to 256 chips
GROUP = 128  # model.bn_group_size
SERIES = {  # name -> function from the number of chips to the batch
    "weak, a group on each chip": lambda count: GROUP * count,
    "weak, groups straddle two chips": lambda count: GROUP // 2 * count,
    "strong": lambda count: 1024,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan to make.

    Args:
      batch_size: None = the recipe's.
      series: of the scaling table; empty = a row of the table of networks.
    """

    network: str
    topology: str
    batch_size: int | None = None
    series: str = ""

    def file(self, folder: pathlib.Path) -> pathlib.Path:
        """Where its plan is kept."""
        batch = f"_batch{self.batch_size}" if self.batch_size else ""
        return folder / f"{self.network}_{self.topology.replace(':', '-')}{batch}.json"


def network_rows(networks: Sequence[str], topologies: Sequence[str]) -> list[Row]:
    """Each network on each topology."""
    return [Row(network, topology) for network in networks for topology in topologies]


def scaling_rows() -> Iterator[Row]:
    """The series of the scaling table; a batch that is not a whole number of groups or of chips has no row."""
    for series, batch in SERIES.items():
        for shape in SHAPES:
            count = chips.chips_of(shape)
            if batch(count) % GROUP == 0 and batch(count) % count == 0:
                yield Row(SCALED, f"v5e:{shape}", batch(count), series)


def make(row: Row, folder: pathlib.Path, *, quick: bool = False) -> None:
    """Compiles a row, and keeps its plan."""
    from skipnet_jax import config, plan
    from skipnet_jax.data import sizes

    spec: TrainSpec = config.train_spec(config_files.load(row.network))
    if row.batch_size:
        spec = dataclasses.replace(spec, batch_size=row.batch_size)
    made = plan.plan_apart(spec, row.topology, None, images=sizes.count_images(spec.data), quick=quick)
    file = row.file(folder)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(plan.as_json(made, [])) + "\n")
    unfinished.rename(file)


def read(row: Row, folder: pathlib.Path) -> dict[str, Any] | None:
    """The plan of a row, if it was made."""
    file = row.file(folder)
    return json.loads(file.read_text()) if file.exists() else None


def _needs(row: Row, folder: pathlib.Path, quick: bool) -> bool:
    """Whether a row has no plan yet, or only a quick one where a whole one is wanted and XLA can make it."""
    plan = read(row, folder)
    return plan is None or bool(not quick and plan["quick"] and plan["hbm_bytes"])


def cells(plan: Mapping[str, Any]) -> list[str]:
    """The numbers of a plan."""
    memory = plan["memory"]
    held = max(memory["total"], memory["evaluation"]) / 2**30
    reduced = sum(traffic["bytes"] for traffic in plan["collectives"].values())
    count = sum(traffic["count"] for traffic in plan["collectives"].values())
    numbers = [f"{plan['chips']}", f"{plan['batch_size']:,}", f"{held:.2f}{'' if plan['fits'] else ' (too much)'}"]
    if plan["estimated_cycles"] is None:
        moved = f"{plan['hbm_bytes'] / 1e9:.1f}" if plan["hbm_bytes"] else UNKNOWN
        return [*numbers, moved, UNKNOWN, f"{count}, {reduced / 1e6:,.0f}", UNKNOWN, UNKNOWN, UNKNOWN]
    return [
        *numbers,
        f"{plan['hbm_bytes'] / 1e9:.1f}",
        f"{plan['estimated_cycles'] / 1e6:.1f}",
        f"{count}, {reduced / 1e6:,.0f}",
        f"{plan['images_per_second']:,.0f}",
        f"{plan['host_images_per_second']:,.0f}",
        f"{plan['chip_hours']:,.0f}",
    ]


UNKNOWN = "-"
TITLES = ["chips", "batch", "GiB", "GB moved", "Mcycles", "collectives, MB", "images/s", "per host", "chip-hours"]


def tables(folder: pathlib.Path, before: str) -> str:
    """All rows that were made, as Markdown.

    Args:
      before: the page's present tables; their rows stay where the folder has no plan.
    """
    kept = {tuple(line.split(" | ")[:2]): line for line in before.splitlines()}
    parts = []
    first = [([row.network, row.topology], row) for row in network_rows(NETWORKS, TOPOLOGIES)]
    second = [([row.series, row.topology], row) for row in scaling_rows()]
    for kind, heads, rows in (("slices", ["network", "slice"], first), ("scaling", [SCALED, "slice"], second)):
        lines = []
        for names, row in rows:
            plan, line = read(row, folder), kept.get((f"| {names[0]}", names[1]))
            if plan and (line is None or not plan["quick"] or _lacks_cycles(line)):
                line = _line([*names, *cells(plan)])
            if line:
                lines.append(line)
        if lines:
            titles = [_line([*heads, *TITLES]), _line(["---"] * 2 + ["---:"] * len(TITLES))]
            parts.append("\n".join([*titles, *lines]))
        missing = len(rows) - len(lines)
        if missing:
            parts.append(f"{missing} of {len(rows)} rows of the table of {kind} are not filled in yet.")
        quick = sum(map(_lacks_cycles, lines))
        if quick:
            parts.append(f"{quick} of {len(rows)} rows of the table of {kind} have no cycles yet.")
    return "\n\n".join(parts) + "\n"


def _lacks_cycles(line: str) -> bool:
    """Whether a row of the page has bytes, but no cycles."""
    moved, cycles = line.split(" | ")[5:7]
    return moved != UNKNOWN and cycles == UNKNOWN


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tpu_tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="keeps the plans")
    parser.add_argument("--networks", type=lambda text: text.split(","), default=NETWORKS, help="comma-separated")
    parser.add_argument("--topologies", type=lambda text: text.split(","), default=TOPOLOGIES, help="comma-separated")
    parser.add_argument("--scaling", action="store_true", help="make the rows of the scaling table instead")
    parser.add_argument("--quick", action="store_true", help="leave out machine code and its cycles")
    parser.add_argument("--write", type=pathlib.Path, help="a page whose tables to update; compiles nothing")
    arguments = parser.parse_args(argv)
    try:
        if arguments.write:
            before = pages.read(arguments.write, "tables")
            pages.replace(arguments.write, "tables", tables(arguments.folder, before))
            return 0
        for network in arguments.networks:
            config_files.find(network)  # mistakes first: a plan takes up to an hour
        arguments.folder.mkdir(parents=True, exist_ok=True)
        wanted = list(scaling_rows()) if arguments.scaling else network_rows(arguments.networks, arguments.topologies)
        needed = {row.file(arguments.folder): row for row in wanted if _needs(row, arguments.folder, arguments.quick)}
        rows = list(needed.values())  # two series may share a plan
        for number, row in enumerate(rows, start=1):
            begin = time.perf_counter()
            make(row, arguments.folder, quick=arguments.quick)
            took = time.perf_counter() - begin
            print(f"{number} of {len(rows)}: {row.file(arguments.folder)}, {took:.0f} s", file=sys.stderr, flush=True)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
