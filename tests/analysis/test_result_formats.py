import csv

import pytest

from skipnet_jax.analysis import result_formats, result_tables, run_groups
from tests.analysis import made_runs

DASH = "\N{EN DASH}"
MARKDOWN = f"""\
## ImageNet

Top-1 accuracy in %: the median, with the number of runs as subscript; in brackets the published figure and the \
difference from it.

| network | parameters | FLOPs | 224 px | 256 px | 288 px | 320 px |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| ResNet-50 (epochs=1) | 25.56M | 4.138G | 77.00<sub>1</sub> (79.01<sub>5</sub>, -2.01) | {DASH} (79.53<sub>5</sub>) \
| {DASH} (79.64<sub>5</sub>) | {DASH} (79.54<sub>5</sub>) |
| ResNet-50 (epochs=2) | 25.56M | 4.138G | 79.11<sub>3</sub> (79.01<sub>5</sub>, +0.10) | 79.53<sub>3</sub> \
(79.53<sub>5</sub>, +0.00) | {DASH} (79.64<sub>5</sub>) | {DASH} (79.54<sub>5</sub>) |
| Dense-ResNet-50 | 42.93M | 4.212G | 79.00<sub>1</sub> ({DASH}) | {DASH} | {DASH} | {DASH} |

## Digits

Top-1 accuracy in %: the median, with the number of runs as subscript.

| network | parameters | FLOPs | 16 px |
| --- | ---: | ---: | ---: |
| Skip-ResNet-20 | 316.7k | 10.64M | 90.00<sub>1</sub> |
"""

LATEX = r"""\begin{table}
\centering
\caption{Digits. Top-1 accuracy in \%: the median, with the number of runs as subscript.}
\begin{tabular}{lrrr}
\toprule
network & parameters & FLOPs & 16 px \\
\midrule
Skip-ResNet-20 & 316.7k & 10.64M & 90.00$_{1}$ \\
\bottomrule
\end{tabular}
\end{table}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, accuracy in enumerate((0.7911, 0.7, 0.9)):
        spec = made_runs.spec_of("resnet50", "imagenet2012", 1000, 224, seed=seed)
        scored = [("imagenet2012", 224, accuracy), ("imagenet2012", 256, 0.7953)]
        made_runs.write(folder / f"resnet50-{seed}", spec, scored=scored)
    short = made_runs.spec_of("resnet50", "imagenet2012", 1000, 224, epochs=1)
    made_runs.write(folder / "short", short, accuracies=(0.77,))
    made_runs.write(
        folder / "dense", made_runs.spec_of("dense_resnet50", "imagenet2012", 1000, 224), accuracies=(0.5, 0.79)
    )
    made_runs.write(folder / "digits", made_runs.DIGITS)
    paths = [folder / name for name in ("digits", "dense", "short", "resnet50-0", "resnet50-1", "resnet50-2")]
    return result_tables.build(run_groups.group_by_config(map(run_groups.read, paths)))


def test_markdown(tables):
    assert result_formats.markdown(tables) == MARKDOWN


def test_latex(tables):
    imagenet, digits = result_formats.latex(tables).split("\n\n")
    assert digits == LATEX
    assert r"79.11$_{3}$ (79.01$_{5}$, $+0.10$) & 79.53$_{3}$ (79.53$_{5}$, $+0.00$) & -- (79.64$_{5}$)" in imagenet
    assert r"Dense-ResNet-50 & 42.93M & 4.212G & 79.00$_{1}$ (--) & -- & -- & -- \\" in imagenet


def test_special_characters_in_labels_are_escaped(tmp_path):
    for seed, start in enumerate(("", "a_b|c%")):
        spec = made_runs.spec_of("resnet20", "digits", 10, 16, seed=seed, init_from=start)
        made_runs.write(tmp_path / str(seed), spec)
    tables = result_tables.build(run_groups.group_by_config(map(run_groups.read, sorted(tmp_path.iterdir()))))
    assert r"ResNet-20 (init\_from=a\_b|c\%) &" in result_formats.latex(tables)
    assert r"| ResNet-20 (init_from=a_b\|c%) |" in result_formats.markdown(tables)


def test_special_characters_in_class_names_are_escaped(tmp_path):
    names = ["a|b", "<b>", "~^\\", "__x_y__"]
    spec = made_runs.spec_of("resnet20", "folder", 4, 32)
    made_runs.write(tmp_path, spec, learnt={"class_names": names, "training_images": 9})
    tables = result_tables.build(run_groups.group_by_config([run_groups.read(tmp_path)]))
    assert r"## folder, classes a\|b, \<b>, ~^\\, \_\_x_y\_\_" in result_formats.markdown(tables)
    latex = result_formats.latex(tables)
    assert r"classes a|b, <b>, \textasciitilde{}\textasciicircum{}\textbackslash{}, \_\_x\_y\_\_." in latex


def test_a_name_with_control_characters_stays_one_cell(tmp_path):
    spec = made_runs.spec_of("resnet20", "folder", 2, 32)
    made_runs.write(tmp_path, spec, learnt={"class_names": ["a\nb", "\x1b[2J"], "training_images": 9})
    tables = result_tables.build(run_groups.group_by_config([run_groups.read(tmp_path)]))
    assert r"classes a\\nb, \\x1b[2J" in result_formats.markdown(tables)
    for text in (result_formats.markdown(tables), result_formats.latex(tables)):
        assert "\x1b" not in text and "a\nb" not in text


def test_csv(tables):
    lines = list(csv.DictReader(result_formats.comma_separated(tables).splitlines()))
    assert len(lines) == 3 * 4 + 1
    assert lines[4] == {
        **{"data": "imagenet2012", "classes": "", "eval_classes": "all", "flip": "False", "image_size": "224"},
        **{"network": "resnet50", "label": "ResNet-50 (epochs=2)", "params": "25560000", "flops": "4138000000"},
        **{"runs": "3", "seeds": "0 1 2", "median": "79.11", "lowest": "70.00", "highest": "90.00"},
        **{"published": "79.01", "published_runs": "5", "difference": "+0.10"},
    }
    missing = ("median", "lowest", "highest", "difference", "seeds")
    assert lines[7]["runs"] == "0" and not any(lines[7][name] for name in missing)
    assert lines[8]["published"] == lines[8]["published_runs"] == "" and lines[8]["median"] == "79.00"


def test_heads_of_both_cifars(tmp_path):
    for data, classes in (("cifar10", 10), ("cifar100", 100)):
        made_runs.write(tmp_path / data, made_runs.spec_of("resnet110", data, classes, 32))
    paths = sorted(tmp_path.iterdir())
    tables = result_tables.build(run_groups.group_by_config(map(run_groups.read, paths)))
    assert "| network | parameters | FLOPs | CIFAR-10 | CIFAR-100 |\n" in result_formats.markdown(tables)
    spec = made_runs.spec_of("resnet110", "cifar10", 10, 32)
    made_runs.write(paths[0], spec, scored=[("cifar10", 40, 0.5)])
    tables = result_tables.build(run_groups.group_by_config(map(run_groups.read, paths)))
    assert "| CIFAR-10, 32 px | CIFAR-10, 40 px | CIFAR-100, 32 px |\n" in result_formats.markdown(tables)
