import pytest
from etils import epath
from matplotlib import image

from skipnet_jax.analysis import comparison_plots, result_tables, run_groups
from skipnet_jax.evaluation import plots
from tests.analysis import made_runs


def imagenet(folder, networks, sizes=(224, 256)):
    """The groups and the table of some networks, each 1 % better than the one before."""
    for i, network in enumerate(networks):
        for seed in range(2):
            spec = made_runs.spec_of(network, "imagenet2012", 1000, 224, seed=seed)
            scored = [("imagenet2012", size, 0.7 + 0.01 * i + 0.002 * seed) for size in sizes]
            made_runs.write(folder / f"{network}-{seed}", spec, scored=scored)
    groups = run_groups.group_by_config(map(run_groups.read, sorted(folder.iterdir())))
    return groups, *result_tables.build(groups)


def pixels_of(path, color):
    """The number of pixels of a colour."""
    wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return (abs(image.imread(path)[..., :3] - wanted) < 0.01).all(-1).sum()


@pytest.fixture
def axes_of(monkeypatch):
    """Calls a function that draws, and returns the graphs of its figure."""

    def call(draw, *arguments):
        figures = []
        with monkeypatch.context() as patch:
            patch.setattr(plots, "save", lambda figure, path: figures.append(figure))
            draw(*arguments, epath.Path("picture.png"))
        return figures[0].axes

    return call


def lines(axes):
    """(marker, dashed, hollow, points) of each line."""
    return {
        (line.get_marker(), line.get_linestyle() == "--", line.get_markerfacecolor() == "white", *points)
        for line in axes.lines
        if (points := tuple((int(x), round(float(y), 4)) for x, y in zip(*line.get_data(), strict=True)))
    }


def test_accuracy_against_resolution(tmp_path, axes_of):
    _, table = imagenet(tmp_path, ["resnet50", "skip_resnet50", "dense_resnet50"])
    [axes] = axes_of(comparison_plots.plot_resolutions, table, table.columns[0].eval_set)
    assert lines(axes) == {
        ("o", False, False, (224, 0.701), (256, 0.701)),  # medians
        ("^", False, False, (224, 0.711), (256, 0.711)),
        ("s", False, False, (224, 0.721), (256, 0.721)),
        ("o", True, True, (224, 0.7901), (256, 0.7953), (288, 0.7964), (320, 0.7954)),
        ("^", True, True, (224, 0.8041), (256, 0.8103), (288, 0.812), (320, 0.8104)),
    }
    bars = {tuple(map(tuple, path.vertices.round(4))) for bar in axes.collections for path in bar.get_paths()}
    assert ((224, 0.7), (224, 0.702)) in bars and len(bars) == 6


def test_accuracy_against_parameters_and_flops(tmp_path, axes_of):
    _, table = imagenet(tmp_path, ["resnet50", "skip_resnet50", "resnet34"])
    left, right = axes_of(comparison_plots.plot_trade_off, table, table.columns[0])
    measured = {("o", 25_560_000, 0.701), ("^", 40_150_000, 0.711), ("o", 21_800_000, 0.721)}
    published = {("o", 25_560_000, 0.7901), ("^", 40_150_000, 0.8041), ("o", 21_800_000, 0.7553)}
    published |= {("^", 22_720_000, 0.7675)}  # the counterpart of a measured network, itself not measured
    shown = {(marker, hollow, *point) for marker, _, hollow, point in lines(left)}
    assert shown == {(m, False, *p) for m, *p in measured} | {(m, True, *p) for m, *p in published}
    arrows = {(tuple(arrow.xyann), tuple(arrow.xy)) for arrow in left.texts}
    assert ((25_560_000, 0.7901), (40_150_000, 0.8041)) in arrows and len(arrows) == 3  # from plain to Skip-
    assert {int(x) for line in right.lines for x in line.get_xdata()} == {
        *(4_138_000_000, 4_201_000_000),
        *(3_681_000_000, 3_694_000_000),
    }
    assert left.get_xlim()[0] == right.get_xlim()[0] == 0


def test_relatives_share_a_colour_unless_all_are_relatives(tmp_path):
    _, table = imagenet(tmp_path / "a", ["resnet50", "skip_resnet50", "resnet34"])
    colors = comparison_plots._colors(table.rows)
    assert colors["ResNet-50"] == colors["Skip-ResNet-50"] != colors["ResNet-34"]
    _, table = imagenet(tmp_path / "b", ["resnet50", "skip_resnet50"])
    colors = comparison_plots._colors(table.rows)
    assert colors["ResNet-50"] != colors["Skip-ResNet-50"]


def test_draws_only_what_has_something_to_show(tmp_path):
    """Unfinished runs have curves; one size makes no line, one network without published figures no comparison."""
    groups, table = imagenet(tmp_path / "runs", ["resnet50"])
    digits = run_groups.read(made_runs.write(tmp_path / "digits", made_runs.DIGITS))
    tables = [table, *result_tables.build(run_groups.group_by_config([digits]))]
    under_way = run_groups.read(
        made_runs.write(tmp_path / "short", made_runs.spec_of("resnet20", "cifar10", 10, 32), accuracies=[0.5])
    )
    groups = run_groups.group_by_config([*(run for group in groups for run in group.runs), digits, under_way])
    drawn = comparison_plots.draw(groups, tables, epath.Path(tmp_path / "new" / "pictures"), "png")
    names = {"curves_imagenet", "curves_digits", "curves_cifar_10", "resolutions_imagenet", "trade_off_imagenet"}
    assert {file.name for file in drawn} == {f"{name}.png" for name in names}
    for file in drawn:
        assert pixels_of(file, plots.COLORS[0]) > 50


@pytest.mark.slow
def test_the_same_results_make_the_same_bytes(tmp_path):
    groups, table = imagenet(tmp_path / "runs", ["resnet50", "skip_resnet50"])
    for form in ("png", "svg"):
        first = [file.read_bytes() for file in comparison_plots.draw(groups, [table], epath.Path(tmp_path / "a"), form)]
        again = [file.read_bytes() for file in comparison_plots.draw(groups, [table], epath.Path(tmp_path / "b"), form)]
        assert first == again and len(first) == 3


def test_each_data_set_has_a_file_of_its_own_whatever_its_classes_are_called(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: path.touch())
    for number, name in enumerate(["猫", "犬", "x" * 300, "y" * 300]):
        spec = made_runs.spec_of("resnet20", "folder", 2, 32)
        learnt = {"class_names": [name, name + "2"], "training_images": 9}
        made_runs.write(tmp_path / "runs" / str(number), spec, learnt=learnt)
    groups = run_groups.group_by_config(map(run_groups.read, sorted((tmp_path / "runs").iterdir())))
    drawn = comparison_plots.draw(groups, [], epath.Path(tmp_path / "pictures"), "png")
    assert [file.name for file in drawn[:2]] == ["curves_folder_classes_2.png", "curves_folder_classes_2_2.png"]
    assert len({file for file in drawn if file.exists()}) == 4
    assert all(len(file.name) < 90 for file in drawn)
