import pytest
from etils import epath
from matplotlib import image

from skipnet_jax.analysis import curves

LINES = [
    {"step": 4, "epoch": 0.5, "train/loss": 2.3, "train/accuracy": 0.1, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "train/loss": 1.3, "train/accuracy": 0.5, "learning_rate": 0.02},
    {"step": 8, "epoch": 1.0, "test/loss": 1.5, "test/accuracy": 0.4},
]


def draw(lines, path):
    curves.plot_curves(lines, epath.Path(path))
    return image.imread(path)


def test_draws_what_is_there(tmp_path):
    full = draw(LINES, tmp_path / "full.png")
    empty = draw([], tmp_path / "empty.png")
    without_test = draw(LINES[:2], tmp_path / "train.png")
    assert full.shape == empty.shape == without_test.shape
    assert (full != empty).any() and (full != without_test).any()
    test_red = (abs(full[..., :3] - [0.753, 0.224, 0.169]) < 0.01).all(-1)
    assert test_red.any()


def test_runs_thin_and_their_median_thick(monkeypatch):
    """The median of several runs ends where the first of them does."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    runs = [
        [{"epoch": float(epoch), "test/loss": loss, "test/accuracy": 0.5, "train/loss": 1.0} for epoch, loss in run]
        for run in ([(1, 2.0), (2, 1.0), (3, 0.5)], [(1, 4.0), (2, 90.0)], [(1, 3.0), (2, 2.0), (3, 1.0)])
    ]
    curves.plot_runs({"a, 3 runs": runs, "b, 1 run": runs[:1]}, epath.Path("runs.png"))
    loss = figures[0].axes[1]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["Training loss", "Test loss", "Test accuracy"]
    thick = [line for line in loss.lines if line.get_linewidth() > 1]
    assert [list(line.get_ydata()) for line in thick] == [[3.0, 2.0], [2.0, 1.0, 0.5]]
    assert thick[0].get_color() != thick[1].get_color()
    assert len(loss.lines) == 3 + 1 + 2
    assert loss.get_ylim() == (0, 4.5)  # the 90 is cut off
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a, 3 runs", "b, 1 run"]


def test_a_single_test_is_a_point(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    lines = [{"epoch": float(epoch), "test/accuracy": 0.5} for epoch in (1, 2)]
    curves.plot_runs({"one": [lines[:1]], "two": [lines]}, epath.Path("runs.png"))
    assert [line.get_marker() for line in figures[0].axes[2].lines if line.get_linewidth() > 1] == [".", ""]


@pytest.mark.parametrize("label", ["short", "long " * 10, "very long " * 40])
def test_graphs_keep_their_room_beside_any_legend(tmp_path, label):
    """Whatever runs are called, and none of the names is cut off."""
    figures, save = [], curves.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(figure, path))
        curves.plot_runs({f"{label} {number}": [LINES] for number in range(5)}, epath.Path(tmp_path / "runs.png"))
    [figure] = figures
    width, height = figure.get_size_inches()
    for axes in figure.axes:
        room = axes.get_position()
        assert room.width * width > 2.5 and room.height * height > 3
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= width * figure.dpi + 1
    told = " ".join(text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts())
    assert told.split().count(label.split()[0]) == 5 * label.split().count(label.split()[0])


def test_names_from_outside_are_text_and_no_formula(tmp_path):
    curves.plot_runs({r"$\frac{$ of $x$": [LINES]}, epath.Path(tmp_path / "runs.svg"))
    assert r"<!-- $\frac{$ of $x$ -->" in (tmp_path / "runs.svg").read_text()


def test_of_averaged_parameters_the_average_is_drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    line = {"epoch": 1.0, "test/accuracy": 0.2, "test/average_accuracy": 0.9}
    curves.plot_runs({"a": [[line]]}, epath.Path("runs.png"))
    assert list(figures[0].axes[2].lines[-1].get_ydata()) == [0.9]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_is_the_same_bytes_each_time(tmp_path, kind):
    files = [epath.Path(tmp_path / f"{name}.{kind}") for name in "ab"]
    for file in files:
        curves.plot_curves(LINES, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert b"<dc:date>" not in files[0].read_bytes()


def test_another_kind_of_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"curves\.jpg, expected a name that ends in \.png or \.svg"):
        curves.plot_curves(LINES, epath.Path(tmp_path / "curves.jpg"))
