"""scripts/quickstart.sh: mistakes that it finds before it installs anything."""

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "quickstart.sh"


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (["--workdir=runs/other"], {}, "expected the folder in WORKDIR"),
        ([], {"WORKDIR": "gs://bucket/run"}, "expected a local folder"),
    ],
)
def test_wrong_calls(tmp_path, flags, settings, message):
    copy = tmp_path / "scripts" / "quickstart.sh"  # alone: what comes after the check fails
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())
    done = subprocess.run(["bash", copy, *flags], env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr
