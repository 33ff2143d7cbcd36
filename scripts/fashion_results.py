"""Keeps what runs on Fashion-MNIST recorded, and makes their tables and curves in docs/results.md.

    python -m skipnet_jax.main --mode=evaluate --workdir=runs/resnet20_seed0 --checkpoint=latest
    python -m scripts.fashion_results --keep runs/resnet20_seed0 ...
    python -m scripts.fashion_results --write

--keep copies the small files of a finished run into docs/fashion_mnist: its config, metrics, results and starts,
without the paths of the machine that it ran on. --write makes everything from there, and needs no workdir. The last
epoch counts; the best is not shown.
"""

import argparse
import itertools
import pathlib
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence

from etils import epath

from scripts import pages
from scripts.digits_results import JUNCTIONS
from skipnet_jax import files
from skipnet_jax.analysis import curves, run_groups
from skipnet_jax.errors import UserError
from skipnet_jax.models import zoo
from skipnet_jax.models.complexity import count
from skipnet_jax.runs import events
from skipnet_jax.runs import workdir as workdirs

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
KEPT, PAGE, PICTURE = DOCS / "fashion_mnist", DOCS / "results.md", DOCS / "fashion_mnist_curves.png"
TABLES = "tables of Fashion-MNIST"
CIRCUMSTANCES = ("time", "event", "step", "git", "python", "libraries", "devices", "device_kind", "hosts")
# Test error in percent after 300 epochs, without random erasing, of the two networks that are the same as ours. Source:
# Zhong et al., Random Erasing Data Augmentation, AAAI 2020, the table of Fashion-MNIST.
PUBLISHED = {"resnet20": 4.39, "resnet32": 4.16}


def keep(workdir: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies the records of a finished run, and returns where they are.

    Raises:
      UserError: the run is not finished, or its last checkpoint was not evaluated.
    """
    run = run_groups.read(workdir)
    if not run.finished:
        raise UserError("--keep", f"{workdir}, which is not finished", "a run that was trained to its last epoch")
    if final(run) is None:
        mend = f"Run: python -m skipnet_jax.main --mode=evaluate --workdir={workdir} --checkpoint=latest"
        raise UserError("--keep", f"{workdir}, whose last checkpoint was not evaluated", "its results", mend)
    kept = folder / f"{run.spec.model.name}_seed{run.spec.seed}"
    kept.mkdir(parents=True, exist_ok=True)
    config = files.read_json(workdir / workdirs.CONFIG)
    config["data"]["dir"] = ""
    files.write_json(kept / workdirs.CONFIG, config)
    results = [{name: record[name] for name in record if name != "checkpoint"} for record in run.results]
    files.write_json(kept / workdirs.RESULTS, results)
    for name in (workdirs.DATA, workdirs.METRICS):
        shutil.copy(workdir / name, kept / name)
    lines = ({name: event[name] for name in CIRCUMSTANCES if name in event} for event in events.read(workdir))
    files.write_lines(kept / workdirs.EVENTS, lines)
    return kept


def read(folder: pathlib.Path) -> list[run_groups.Group]:
    """The runs that are kept, grouped by network."""
    return run_groups.group_by_config(run_groups.read(path) for path in sorted(folder.glob("*/")))


def final(run: run_groups.Run) -> run_groups.Score | None:
    """The last epoch's score on the test images, as `--mode=evaluate` recorded it; None without such a record."""
    score = run.scores[run_groups.Condition(run.trained_on, run.spec.data.image_size)]
    return score if (score.step, score.source) == (run.tests[-1].step, workdirs.RESULTS) else None


def error(run: run_groups.Run) -> float:
    """The test error of the last epoch in percent."""
    score = final(run)
    assert score is not None  # `keep` requires it
    return 100 * (1 - score.accuracy)


def hours(run: run_groups.Run) -> float:
    """The time that the run spent on training."""
    timed = [line for line in run.metrics if "images_per_second" in line]
    steps = [now["step"] - before for now, before in zip(timed, [0, *(line["step"] for line in timed)], strict=False)]
    images = [count * run.spec.batch_size for count in steps]
    return sum(n / line["images_per_second"] for n, line in zip(images, timed, strict=True)) / 3600


def junction(network: str) -> str:
    """Describes the junction of any network."""
    prefix = zoo.find(network)[1].published_prefix.lower().replace("-", "_")
    return JUNCTIONS[f"{prefix}resnet20"]


def tables(groups: Sequence[run_groups.Group]) -> str:
    """The results, and the circumstances of each run, as Markdown."""
    lines = [
        "| network | junction | parameters | runs | test error, % | mean | published, 300 epochs |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for group in groups:
        errors = [error(run) for run in group.runs]
        listed, mean = ", ".join(f"{value:.2f}" for value in errors), f"{statistics.mean(errors):.2f}"
        published = f"{PUBLISHED[group.network]:.2f}" if group.network in PUBLISHED else "-"
        params = f"{count(group.network, num_classes=10).params:,}"
        cells = [f"`{group.network}`", junction(group.network), params, f"{len(errors)}", listed, mean, published]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| run | epochs | hours of training | starts | devices | JAX | git revision of the last start |",
        "| --- | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for run in itertools.chain.from_iterable(group.runs for group in groups):
        starts = [event for event in events.read(run.path) if event["event"] == "start"]
        last = starts[-1]
        devices = f"{last['devices']} {last['device_kind']}"
        cells = [f"{run.path.name}", f"{run.spec.epochs}", f"{hours(run):.1f}", f"{len(starts)}", devices]
        lines.append(f"| {' | '.join([*cells, last['libraries']['jax'], (last['git'] or '-')[:12]])} |")
    return "\n".join(lines) + "\n"


def draw(groups: Iterable[run_groups.Group], file: pathlib.Path) -> None:
    """Draws losses and test accuracy over the epochs, in one colour for each network."""
    curves.plot_runs({group.label: [run.metrics for run in group.runs] for group in groups}, epath.Path(file))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fashion_results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", nargs="+", type=pathlib.Path, default=[], metavar="WORKDIR", help="of finished runs")
    parser.add_argument("--write", action="store_true", help="make the tables and the picture")
    arguments = parser.parse_args(argv)
    try:
        for workdir in arguments.keep:
            print(f"kept: {keep(workdir, KEPT)}")
        if arguments.write:
            groups = read(KEPT)
            pages.replace(PAGE, TABLES, tables(groups))
            draw(groups, PICTURE)
            print(f"written: {PAGE}, {PICTURE}")
    except UserError as mistake:
        parser.exit(2, f"error: {mistake}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
