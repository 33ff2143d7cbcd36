"""Trains the runs of docs/results.md on the digits, and prints the tables of that page.

    python scripts/digits_results.py --workdirs=runs/digits_results

Each run has a workdir of its own, so an interrupted call resumes where it stopped. It takes about an hour on two cores.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
JUNCTIONS = {
    "resnet20": "addition",
    "skip_resnet20": "gate over the states at distances 0, 1 (3, 7, ...)",
    "dense_resnet20": "gate over the states at distances 0, 1, 2 (3)",
    "dynamic_resnet20": "gate without the branch's own weight",
    "static_resnet20": "learnt weights, the same for every image",
    "mean_resnet20": "mean of the states",
    "sum_resnet20": "sum of the states",
}
STARTS = ("from random numbers", "from the digits 0 to 4", "the same, `layer_lr_ratio=0.3`")
EPOCHS = 12
FINETUNING_EPOCHS = 2
FIRST_HALF, SECOND_HALF = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
COLUMNS = "median accuracy | lowest to highest | median loss |"

Metrics = Mapping[str, float | int]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing and prints the tables."""
    sys.path.insert(0, str(ROOT))  # for configs/, which is not installed
    from scripts.benchmarks.arguments import at_least
    from skipnet_jax.errors import UserError
    from skipnet_jax.models.complexity import count

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", type=pathlib.Path, default=ROOT / "runs" / "digits_results")
    parser.add_argument("--seeds", type=at_least(1), default=5, help="runs of each kind; default: 5")
    arguments = parser.parse_args(argv)
    results: dict[str, list[Metrics]] = {}
    try:
        for (kind, seed), spec in tqdm.tqdm(make_specs(arguments.workdirs, arguments.seeds).items(), unit="run"):
            results.setdefault(kind, []).append(_train(spec, _workdir(arguments.workdirs, kind, seed)))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: --workdirs: got {error}, expected a folder that can be written. Give another.\n")

    print(f"| network | junction | parameters | {COLUMNS}\n| --- | --- | ---: | ---: | ---: | ---: |")
    for name, junction in JUNCTIONS.items():
        params = count(name, num_classes=10).params
        print(f"| `{name}` | {junction} | {params:,} | {_cells(results[name])} |")
    print(f"\n| start | {COLUMNS}\n| --- | ---: | ---: | ---: |")
    for start in STARTS:
        print(f"| {start} | {_cells(results[start])} |")


def make_specs(workdirs: pathlib.Path, seeds: int):
    """The config of every run, by its kind and seed."""
    from skipnet_jax import config_files
    from skipnet_jax.config import train_spec

    digits = train_spec(config_files.load("digits"))
    specs = {}
    for seed in range(seeds):
        for name in JUNCTIONS:
            model = dataclasses.replace(digits.model, name=name)
            specs[name, seed] = dataclasses.replace(digits, model=model, epochs=EPOCHS, seed=seed)
        specs["first half", seed] = first = _half(digits, FIRST_HALF, seed)
        optim = dataclasses.replace(first.optim, warmup_epochs=1)
        scratch = dataclasses.replace(_half(digits, SECOND_HALF, seed), epochs=FINETUNING_EPOCHS, optim=optim)
        finetuned = dataclasses.replace(scratch, init_from=str(_workdir(workdirs, "first half", seed)))
        gentle = dataclasses.replace(finetuned, optim=dataclasses.replace(optim, layer_lr_ratio=0.3))
        specs |= {(start, seed): spec for start, spec in zip(STARTS, (scratch, finetuned, gentle), strict=True)}
    return specs


def _half(spec, classes: tuple[int, ...], seed: int):
    return dataclasses.replace(
        spec,
        model=dataclasses.replace(spec.model, num_classes=len(classes)),
        data=dataclasses.replace(spec.data, classes=classes),
        batch_size=64,
        eval_batch_size=64,
        seed=seed,
    )


def _workdir(parent: pathlib.Path, kind: str, seed: int) -> pathlib.Path:
    return parent / f"{''.join(c if c.isalnum() else '_' for c in kind)}-{seed}"


def _train(spec, workdir: pathlib.Path) -> Metrics:
    """Trains, or reads the results of an earlier call; the run prints into a file beside its workdir."""
    from skipnet_jax.train import train_and_evaluate

    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log):
        return train_and_evaluate(spec, workdir)


def _cells(runs: Sequence[Metrics]) -> str:
    accuracies = sorted(run["accuracy"] for run in runs)
    median, loss = statistics.median(accuracies), statistics.median(run["loss"] for run in runs)
    return f"{median:.2%} | {accuracies[0]:.2%} to {accuracies[-1]:.2%} | {loss:.4f}"


if __name__ == "__main__":
    main()
