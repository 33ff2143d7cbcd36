import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from etils import epath
from matplotlib import image

from skipnet_jax.evaluation import gate_maps, heat_maps
from skipnet_jax.evaluation.gates import Gates, Weights, find_sections
from skipnet_jax.models import create_model


def gates(name="skip_resnet20", *, classes=3, branch=True, change=0.0):
    sections = find_sections(create_model(name))
    rng = np.random.default_rng(0)
    links, blocks = sum(len(section.links) for section in sections), sum(len(section.seen) for section in sections)
    overall = Weights(rng.uniform(0.2, 0.5, links), rng.uniform(0.2, 0.5, blocks) if branch else None)
    overall.states[1] += change
    by_class = [Weights(overall.states + 0.01 * k, overall.branch) for k in range(classes)]
    return Gates(sections, np.arange(1, classes + 1), tuple(by_class), overall, np.full(links, 0.1))


def near(picture, colour):
    return (np.abs(picture[..., :3] - np.asarray(colour)[:3]) < 0.01).all(-1)


def test_a_number_changes_its_cell_alone(tmp_path):
    for name, change in (("one", 0.0), ("other", 0.4)):
        gate_maps.draw_gates(gates(change=change), "title", epath.Path(tmp_path / name))
    one, other = (image.imread(tmp_path / f"{name}.png") for name in ("one", "other"))
    rows, columns = np.nonzero((one != other).any(-1))
    cell = heat_maps.LARGEST_CELL * 120  # dots
    assert 0.5 * cell < np.ptp(rows) <= cell + 1 and 0.5 * cell < np.ptp(columns) <= cell + 1


def test_colours_mean_the_same_in_all_pictures(tmp_path):
    from matplotlib import colormaps

    low, high = (gates(change=0.0), gates(change=0.4))
    low.overall.states[:], high.overall.states[:] = 0.25, 0.75
    for name, measured in (("low", low), ("high", high)):
        gate_maps.draw_gates(measured, "", epath.Path(tmp_path / name))
        picture = image.imread(tmp_path / f"{name}.png")
        weight = measured.overall.states[0]
        cells = 15 * (heat_maps.LARGEST_CELL * 120) ** 2
        assert 0.6 * cells < near(picture, colormaps["YlGnBu"](weight)).sum() < cells


def test_what_is_not_seen_is_grey(tmp_path):
    grey = (0xDE / 255,) * 3
    shares = {}
    for name in ("skip_resnet20", "dense_resnet20"):
        gate_maps.draw_gates(gates(name), "", epath.Path(tmp_path / name))
        shares[name] = near(image.imread(tmp_path / f"{name}.png"), grey).sum()
    cell = (heat_maps.LARGEST_CELL * 120) ** 2
    assert shares["skip_resnet20"] == pytest.approx(3 * cell, rel=0.1), "one in each of three sections"
    assert shares["dense_resnet20"] < 0.1 * cell


@pytest.mark.parametrize(
    ("name", "branch"), [("skip_resnet20", True), ("dense_resnet152", True), ("mean_convnext_tiny", False)]
)
def test_every_network_has_room(name, branch, tmp_path):
    """Nothing lies outside of the picture: its rim is white."""
    measured = gates(name, branch=branch)
    gate_maps.draw_gates(measured, "a title", epath.Path(tmp_path / "all"))
    gate_maps.draw_classes(measured, ["a", "b", "c"], "a title", epath.Path(tmp_path / "classes"))
    photo = np.zeros((8, 8, 3), np.uint8)
    gate_maps.draw_image(photo, measured.sections, measured.overall, "a title", epath.Path(tmp_path / "one"))
    for kind in ("all", "classes", "one"):
        picture = image.imread(tmp_path / f"{kind}.png")[..., :3]
        rim = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
        assert all((line == 1).all() for line in rim), kind
        assert picture.shape[1] < 20 * 120


def test_of_many_classes_those_that_differ_most(tmp_path):
    measured = gates(classes=40)
    gate_maps.draw_classes(measured, [f"class {k}" for k in range(40)], "title", epath.Path(tmp_path / "many"))
    few = gates(classes=gate_maps.CLASSES)
    gate_maps.draw_classes(few, [str(k) for k in range(40)], "title", epath.Path(tmp_path / "few"))
    many, few = (image.imread(tmp_path / f"{name}.png") for name in ("many", "few"))
    assert many.shape == few.shape


def test_a_class_without_images_is_left_out(tmp_path):
    measured = gates(classes=3)
    without = Gates(
        measured.sections, measured.counts, (*measured.by_class[:2], None), measured.overall, measured.spread
    )
    for name, each in (("three", measured), ("two", without)):
        gate_maps.draw_classes(each, ["a", "b", "c"], "title", epath.Path(tmp_path / name))
    three, two = (image.imread(tmp_path / f"{name}.png") for name in ("three", "two"))
    assert two.shape[1] < three.shape[1]


def test_names_from_outside_are_text_and_no_formula(tmp_path):
    wild = r"$\frac{<script>$" + "x" * 300
    gate_maps.draw_gates(gates(), wild, epath.Path(tmp_path / "wild"))
    gate_maps.draw_classes(gates(), [wild] * 3, wild, epath.Path(tmp_path / "classes"))
    for name in ("wild", "classes"):
        ElementTree.parse(tmp_path / f"{name}.svg")
        picture = image.imread(tmp_path / f"{name}.png")[..., :3]
        assert (picture[:, -1] == 1).all(), "cut off before the rim"


def test_the_same_numbers_are_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        gate_maps.draw_gates(gates(), "title", epath.Path(tmp_path / name))
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"other{suffix}").read_bytes()
