import dataclasses
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from etils import epath
from matplotlib import colormaps, image

from skipnet_jax.evaluation import gate_maps, heat_maps, plots
from skipnet_jax.evaluation.gates import Gates, GateWeights, find_sections
from skipnet_jax.models import create_model

CELL = heat_maps.LARGEST_CELL * plots.DPI  # side, in pixels


def gates(name="skip_resnet20", *, classes=3, branch=True):
    sections = find_sections(create_model(name))
    rng = np.random.default_rng(0)
    links, blocks = sum(len(section.links) for section in sections), sum(len(section.seen) for section in sections)
    overall = GateWeights(rng.uniform(0.2, 0.5, links), rng.uniform(0.2, 0.5, blocks) if branch else None)
    by_class = [GateWeights(overall.states + 0.01 * k, overall.branch) for k in range(classes)]
    return Gates(sections, np.arange(1, classes + 1), tuple(by_class), overall, np.full(links, 0.1))


def draw(path, measured):
    gate_maps.draw_gates(measured, "title", epath.Path(path))
    return image.imread(f"{path}.png")


def draw_classes(path, measured):
    names = [f"class {k}" for k in range(len(measured.by_class))]
    gate_maps.draw_classes(measured, names, "title", epath.Path(path))
    return image.imread(f"{path}.png")


def count(picture, colour):
    """Pixels of a colour."""
    return (np.abs(picture[..., :3] - np.asarray(colour)[:3]) < 0.01).all(-1).sum()


def test_a_number_changes_its_cell_alone(tmp_path):
    measured = gates()
    one = draw(tmp_path / "one", measured)
    measured.overall.states[1] += 0.4
    rows, columns = np.nonzero((one != draw(tmp_path / "other", measured)).any(-1))
    assert 0.5 * CELL < np.ptp(rows) <= CELL + 1 and 0.5 * CELL < np.ptp(columns) <= CELL + 1


def test_colours_mean_the_same_in_all_pictures(tmp_path):
    for weight in (0.25, 0.75):
        measured = gates()
        measured.overall.states[:] = weight
        cells = 15 * CELL**2
        assert 0.6 * cells < count(draw(tmp_path / "a", measured), colormaps["YlGnBu"](weight)) < cells


def test_states_that_are_not_seen_are_grey(tmp_path):
    skip, dense = (
        count(draw(tmp_path / name, gates(name)), (0xDE / 255,) * 3) for name in ("skip_resnet20", "dense_resnet20")
    )
    assert skip == pytest.approx(3 * CELL**2, rel=0.1), "one in each of three sections"
    assert dense < 0.1 * CELL**2


@pytest.mark.parametrize(("name", "branch"), [("dense_resnet152", True), ("mean_convnext_tiny", False)])
def test_every_network_and_every_name_has_room(name, branch, tmp_path):
    """Nothing lies outside of the picture: its rim is white. Names from outside are text, not formulas or XML."""
    measured = gates(name, branch=branch)
    wild = r"$\frac{<script>$" + "x" * 300
    gate_maps.draw_gates(measured, wild, epath.Path(tmp_path / "all"))
    gate_maps.draw_classes(measured, [wild] * 3, wild, epath.Path(tmp_path / "classes"))
    photo = np.zeros((8, 8, 3), np.uint8)
    gate_maps.draw_image(photo, measured.sections, measured.overall, wild, epath.Path(tmp_path / "one"))
    for kind in ("all", "classes", "one"):
        picture = image.imread(tmp_path / f"{kind}.png")[..., :3]
        rim = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
        assert all((line == 1).all() for line in rim), kind
        assert picture.shape[1] < 20 * plots.DPI
        ElementTree.parse(tmp_path / f"{kind}.svg")


def test_of_many_classes_those_that_differ_most(tmp_path):
    many, most = draw_classes(tmp_path / "a", gates(classes=40)), gates(classes=gate_maps.MAX_CLASSES)
    assert many.shape == draw_classes(tmp_path / "b", most).shape


def test_a_class_without_images_is_left_out(tmp_path):
    measured = gates()
    without = dataclasses.replace(measured, by_class=(*measured.by_class[:2], None))
    three, two = draw_classes(tmp_path / "a", measured), draw_classes(tmp_path / "b", without)
    assert two.shape[1] < three.shape[1]
