import pathlib

import pytest

from scripts import digits_results

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "results.md"


def test_the_page_has_the_tables_that_the_script_prints(tmp_path, monkeypatch, capsys):
    """All but the results, for which nothing is trained here."""
    monkeypatch.setattr(digits_results, "_train", lambda spec, workdir: {"accuracy": 0.5, "loss": 1.0})
    digits_results.main([f"--workdirs={tmp_path}", "--seeds=1"])
    printed, stored = (
        [line.rsplit(" | ", 3)[0] for line in text.splitlines() if line.startswith("|")]
        for text in (capsys.readouterr().out, PAGE.read_text().partition("## Digits")[2])
    )
    assert printed == stored and len(printed) == 7 + 3 + 2 * 2


@pytest.mark.parametrize("flag", ["--seeds=0", "--workdirs=/dev/null/runs"])
def test_a_mistake_is_one_line(capsys, flag):
    with pytest.raises(SystemExit) as end:
        digits_results.main([flag])
    assert end.value.code == 2 and "expected" in capsys.readouterr().err
