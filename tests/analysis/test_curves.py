import pytest
from etils import epath
from matplotlib import image

from skipnet_jax.analysis import curves
from skipnet_jax.evaluation import plots

LINES = [
    {"step": 4, "epoch": 0.5, "train/loss": 2.3, "train/accuracy": 0.1, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "train/loss": 1.3, "train/accuracy": 0.5, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "test/loss": 1.5, "test/accuracy": 0.4},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, instead of their files."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    return drawn


def test_curves_show_tests_if_there_are_any(tmp_path):
    red = []
    for lines in (LINES, LINES[:2], []):
        curves.plot_curves(lines, epath.Path(tmp_path / "curves.png"))
        pixels = image.imread(tmp_path / "curves.png")[..., :3]
        red.append((abs(pixels - [0.753, 0.224, 0.169]) < 0.01).all(-1).sum())
    assert red[0] > red[1] == red[2]  # the legend stays


def test_pictures_have_the_same_bytes_each_time_and_names_are_no_formulas(tmp_path):
    for kind in ("png", "svg"):
        files = [epath.Path(tmp_path / f"{name}.{kind}") for name in "ab"]
        for file in files:
            curves.plot_runs({r"$\frac{$ of $x$": [LINES]}, file)
        assert files[0].read_bytes() == files[1].read_bytes()
    svg = (tmp_path / "a.svg").read_text()
    assert r"<!-- $\frac{$ of $x$ -->" in svg and "<dc:date>" not in svg
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png or \.svg"):
        curves.plot_curves(LINES, epath.Path(tmp_path / "curves.jpg"))


def test_runs_are_thin_and_their_median_is_thick(figures):
    """The median of several runs ends where the shortest of them does."""
    runs = [
        [{"epoch": float(epoch), "test/loss": loss, "test/accuracy": 0.5, "train/loss": 1.0} for epoch, loss in run]
        for run in ([(1, 2.0), (2, 1.0), (3, 0.5)], [(1, 4.0), (2, 90.0)], [(1, 3.0), (2, 2.0), (3, 1.0)])
    ]
    curves.plot_runs({"a, 3 runs": runs, "b, 1 run": runs[:1]}, epath.Path("runs.png"))
    [figure] = figures
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Training loss", "Test loss", "Test accuracy"]
    loss = figure.axes[1]
    thick = [line for line in loss.lines if line.get_linewidth() > 1]
    assert [list(line.get_ydata()) for line in thick] == [[3.0, 2.0], [2.0, 1.0, 0.5]]
    assert thick[0].get_color() != thick[1].get_color()
    assert len(loss.lines) == 3 + 1 + 2
    assert loss.get_ylim() == (0, 4.5)  # the 90 is cut off
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a, 3 runs", "b, 1 run"]


def test_a_single_test_is_a_point(figures):
    lines = [{"epoch": float(epoch), "test/accuracy": 0.5} for epoch in (1, 2)]
    curves.plot_runs({"one": [lines[:1]], "two": [lines]}, epath.Path("runs.png"))
    assert [line.get_marker() for line in figures[0].axes[2].lines if line.get_linewidth() > 1] == [".", ""]


def test_the_averaged_parameters_are_drawn_if_there_are_any(figures):
    line = {"epoch": 1.0, "test/accuracy": 0.2, "test/average_accuracy": 0.9}
    curves.plot_runs({"a": [[line]]}, epath.Path("runs.png"))
    assert list(figures[0].axes[2].lines[-1].get_ydata()) == [0.9]


@pytest.mark.parametrize("label", ["short", "long " * 10, pytest.param("very long " * 40, marks=pytest.mark.slow)])
def test_a_legend_leaves_room_for_the_graphs_and_shows_each_label_whole(tmp_path, monkeypatch, label):
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    curves.plot_runs({f"{label} {number}": [LINES] for number in range(5)}, epath.Path(tmp_path / "runs.png"))
    [figure] = figures
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        room = axes.get_position()
        assert room.width * width > 2.5 and room.height * height > 3
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= width * figure.dpi + 1
    shown = " ".join(text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts())
    assert shown.split().count(label.split()[0]) == 5 * label.split().count(label.split()[0])
