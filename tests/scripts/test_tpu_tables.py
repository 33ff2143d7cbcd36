import dataclasses
import json
import pathlib

import pytest

from scripts import tpu_tables
from skipnet_jax.analysis import chips
from skipnet_jax.models import list_models
from tests.tiny_runs import TinyNet, use_network


def test_the_tables_have_all_rows_that_the_page_promises():
    rows = tpu_tables.network_rows(tpu_tables.NETWORKS, tpu_tables.TOPOLOGIES)
    assert len(rows) == 42 and {row.network for row in rows} <= set(list_models())
    scaled = list(tpu_tables.scaling_rows())
    for series in tpu_tables.SERIES:
        counts = [chips.chips_of(row.topology.partition(":")[2]) for row in scaled if row.series == series]
        assert counts == sorted(counts) and counts[-1] == 256
    assert all(row.batch_size % 128 == 0 for row in scaled)


def test_rows_are_kept_and_written_into_the_page(tmp_path, monkeypatch, compile_once):
    use_network(monkeypatch, TinyNet(classes=1000))
    row = tpu_tables.Row("skip_resnet50", "cpu", 8)
    assert tpu_tables.read(row, tmp_path) is None
    monkeypatch.setattr(tpu_tables, "TOPOLOGIES", ("cpu", "v5e:2x4"))
    monkeypatch.setattr(tpu_tables, "NETWORKS", ("skip_resnet50",))
    command = [f"--folder={tmp_path}", "--networks=skip_resnet50", "--topologies=cpu"]
    assert tpu_tables.main(command) == 0
    (file,) = tmp_path.iterdir()
    before = file.read_text()
    assert tpu_tables.main(command) == 0 and file.read_text() == before  # was not made again
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables -->\nold\n<!-- end of tables -->\nbelow\n")
    assert tpu_tables.main([command[0], f"--write={page}"]) == 0
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert (
        "| skip_resnet50 | cpu | 8 | 1,024 | " in text
        and "1 of 2 rows of the table of slices are not filled in yet." in text
    )


def plan_of(row, *, quick):
    """As a plan of a slice is kept."""
    estimate = None if quick else 1e6
    reduced = {"all-reduce": {"count": 5, "bytes": 57e6, "sent": 1e8}}
    memory = {"total": 2**30, "evaluation": 2**29}
    return {
        "quick": quick, "chips": 4, "batch_size": row.batch_size, "fits": True, "memory": memory, "hbm_bytes": 28.9e9,
        "collectives": reduced, "estimated_cycles": estimate, "images_per_second": 1e3, "host_images_per_second": 1e3,
        "chip_hours": 70,
    }  # fmt: skip


def test_a_quick_plan_fills_a_row_until_there_is_a_whole_one(tmp_path, monkeypatch):
    rows = [row for row in tpu_tables.scaling_rows() if row.series == "strong"][:2]
    monkeypatch.setattr(tpu_tables, "scaling_rows", lambda: rows)
    monkeypatch.setattr(tpu_tables, "NETWORKS", ())
    page = tmp_path / "page.md"
    page.write_text("<!-- tables -->\n<!-- end of tables -->\n")

    def write(*plans):
        for row, quick in zip(rows, plans, strict=True):
            row.file(tmp_path).write_text(json.dumps(plan_of(row, quick=quick)))
        assert tpu_tables.main([f"--folder={tmp_path}", f"--write={page}"]) == 0
        return page.read_text()

    text = write(True, True)
    assert text.count("| 1.00 | 28.9 | - | 5, 57 | - | - | - |") == 2
    assert "2 of 2 rows of the table of scaling have no cycles yet." in text
    text = write(False, True)
    assert text.count("| 28.9 | 1.0 | 5, 57 | 1,000 | 1,000 | 70 |") == 1
    assert write(True, True) == text  # the page keeps the whole plan's row
    made = []
    monkeypatch.setattr(tpu_tables, "make", lambda row, folder, *, quick: made.append((row, quick)))
    write(False, True)
    assert tpu_tables.main([f"--folder={tmp_path}", "--scaling", "--quick"]) == 0 and not made
    assert tpu_tables.main([f"--folder={tmp_path}", "--scaling"]) == 0 and made == [(rows[1], False)]
    made.clear()
    rows[1].file(tmp_path).unlink()
    rows.append(dataclasses.replace(rows[1], series="another with the same batch"))
    assert tpu_tables.main([f"--folder={tmp_path}", "--scaling", "--quick"]) == 0 and len(made) == 1


def test_rows_of_the_page_stay_unless_the_folder_has_their_plan(tmp_path):
    page = tmp_path / "page.md"
    page.write_text((pathlib.Path(__file__).parents[2] / "docs" / "tpu.md").read_text())
    before = page.read_text()
    assert before.count("\n| resnet50 | v") >= 6
    assert tpu_tables.main([f"--folder={tmp_path}", f"--write={page}"]) == 0
    assert page.read_text() == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--networks=resnet50,no_such", "got 'no_such'"),
        ("--write=no_such.md", "no_such.md (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_compiled(tmp_path, capsys, flag, message):
    with pytest.raises(SystemExit) as end:
        tpu_tables.main([f"--folder={tmp_path}", "--topologies=v5e:1x1", flag])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_page_without_a_place_for_tables_is_left_alone(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(SystemExit) as end:
        tpu_tables.main([f"--folder={tmp_path}", f"--write={page}"])
    assert end.value.code == 2 and "expected a page with the lines" in capsys.readouterr().err
    assert page.read_text() == "text\n"
