"""Trains on the digits what docs/results.md reports, and writes that page.

    python scripts/digits_results.py --workdirs=runs/digits_results --output=docs/results.md

Every run has a workdir of its own, so an interrupted call goes on where it was. About an hour on two CPU cores.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Sequence

import tqdm

JUNCTIONS = {
    "resnet20": "addition",
    "skip_resnet20": "gate over the states at distances 0, 1 (3, 7, ...)",
    "dense_resnet20": "gate over the states at distances 0, 1, 2 (3)",
    "dynamic_resnet20": "gate without the branch's own weight",
    "static_resnet20": "learnt weights, the same for every image",
    "mean_resnet20": "mean of the states",
    "sum_resnet20": "sum of the states",
}
EPOCHS = 12
FINETUNING_EPOCHS = 2
FIRST_HALF, SECOND_HALF = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)

PAGE = """# Results on real images

Everything on this page was trained by `{command}` on two CPU cores, and comes out of the
workdirs that it leaves. The data set is the one that comes with scikit-learn: 1,437 images of handwritten digits to
train, {test_images} to test. That is small: one test image more or less is {one_image:.2%}, and differences of that
size say nothing. All figures are those of the last epoch; none is the best of several.

## Junctions

The recipe of `configs/digits.py`, {epochs} epochs instead of 24, seeds {seeds}; only the junction differs. A section
of this small network has three blocks, so the distances in brackets do not occur.

{junctions}

The seven medians lie within {range} of each other: on this data set no junction can be told from another. (The
published differences are those of 110 layers on CIFAR-100 and of ImageNet; they have not been reproduced here yet.)

## Fine-tuning

`skip_resnet20` learns the digits 0 to 4 with that recipe (24 epochs), and then has {finetuning_epochs} epochs for the
digits 5 to 9 ({half_images} test images), with the same settings as a network that starts from random numbers and has
the same {finetuning_epochs} epochs. The classifier is made anew; all else is taken over.

    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/0to4 \\
        --config.data.classes=0,1,2,3,4 --config.model.num_classes=5 --config.batch_size=64
    python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/5to9 \\
        --config.data.classes=5,6,7,8,9 --config.model.num_classes=5 --config.batch_size=64 \\
        --config.epochs={finetuning_epochs} --config.optim.warmup_epochs=1 --config.init_from=runs/0to4

{finetuning}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the page."""
    root = pathlib.Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))  # for configs/, which is no package that gets installed
    from configs import recipes
    from skipnet_jax.config import train_spec
    from skipnet_jax.models.complexity import count

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", type=pathlib.Path, default=root / "runs" / "digits_results")
    parser.add_argument("--output", type=pathlib.Path, default=root / "docs" / "results.md")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind")
    arguments = parser.parse_args(argv)
    seeds, digits = range(arguments.seeds), train_spec(recipes.digits())

    specs = {}
    for seed in seeds:
        for name in JUNCTIONS:
            model = dataclasses.replace(digits.model, name=name)
            specs[name, seed] = dataclasses.replace(digits, model=model, epochs=EPOCHS, seed=seed)
        specs["first half", seed] = first = _half(digits, FIRST_HALF, seed)
        optim = dataclasses.replace(first.optim, warmup_epochs=1)
        second = dataclasses.replace(_half(digits, SECOND_HALF, seed), epochs=FINETUNING_EPOCHS, optim=optim)
        start = str(_workdir(arguments.workdirs, "first half", seed))
        gentle = dataclasses.replace(optim, layer_lr_ratio=0.3)
        specs["from random numbers", seed] = second
        specs["from the digits 0 to 4", seed] = dataclasses.replace(second, init_from=start)
        specs["the same, `layer_lr_ratio=0.3`", seed] = dataclasses.replace(second, init_from=start, optim=gentle)

    results = {}
    for (kind, seed), spec in tqdm.tqdm(specs.items(), unit="run"):
        results[kind, seed] = _train(spec, _workdir(arguments.workdirs, kind, seed))
    kinds = [kind for kind, seed in specs if seed == 0]

    def row(kind: str, *first_columns: str) -> str:
        accuracies = sorted(results[kind, seed]["accuracy"] for seed in seeds)
        losses = [results[kind, seed]["loss"] for seed in seeds]
        columns = (
            *first_columns,
            f"{statistics.median(accuracies):.2%}",
            f"{accuracies[0]:.2%} to {accuracies[-1]:.2%}",
            f"{statistics.median(losses):.4f}",
        )
        return f"| {' | '.join(columns)} |"

    header = "median accuracy | lowest to highest | median loss |\n"
    medians = [statistics.median(results[name, seed]["accuracy"] for seed in seeds) for name in JUNCTIONS]
    between = round((max(medians) - min(medians)) * results["resnet20", 0]["count"])
    images = results["resnet20", 0]["count"]
    page = PAGE.format(
        command="python scripts/digits_results.py",
        test_images=images,
        one_image=1 / images,
        range="one test image" if between == 1 else f"{between} test images",
        epochs=EPOCHS,
        seeds=", ".join(map(str, seeds)),
        junctions=f"| network | junction | parameters | {header}| --- | --- | ---: | ---: | ---: | ---: |\n"
        + "\n".join(
            row(name, f"`{name}`", what, f"{count(name, num_classes=10).params:,}") for name, what in JUNCTIONS.items()
        ),
        finetuning_epochs=FINETUNING_EPOCHS,
        half_images=results["from random numbers", 0]["count"],
        finetuning=f"| start | {header}| --- | ---: | ---: | ---: |\n"
        + "\n".join(row(kind, kind) for kind in kinds[-3:]),
    )
    arguments.output.write_text(page)
    print(page)


def _half(spec, classes, seed):
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


def _train(spec, workdir: pathlib.Path) -> dict[str, float | int]:
    """Trains, or reads what an earlier call left; the run's own lines go to a file beside the workdir."""
    from skipnet_jax.train import train_and_evaluate

    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log):
        return train_and_evaluate(spec, workdir)


if __name__ == "__main__":
    main()
