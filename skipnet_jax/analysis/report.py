"""Writes a report about one or more runs: a single HTML file that fetches nothing.

The page contains no script and no external address, and its Content-Security-Policy forbids both. Everything that comes
from a workdir is escaped.
"""

import base64
import dataclasses
import importlib.resources
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

from etils import epath

from skipnet_jax.analysis import comparison_plots, curves, result_notes, result_tables, run_facts, run_groups
from skipnet_jax.analysis.run_facts import Facts
from skipnet_jax.errors import UserError
from skipnet_jax.models.table import format_count

TEMPLATE = "report.html.jinja"
GATES, EVALUATION = "explain", "evaluation"  # folders of a workdir
EVALUATION_SCALE = 0.75  # CSS pixels per pixel, so that two pictures fit side by side
MIME_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Args:
      source: data URI.
      text: the alternative text.
      width: in CSS pixels; None = the width of the page.
    """

    source: str
    text: str
    width: int | None = None


def write_report(paths: Sequence[epath.PathLike], out: epath.PathLike) -> epath.Path:
    """Writes the report about some runs.

    Args:
      paths: workdirs, local or in a bucket; the report keeps their order.

    Returns:
      The path of the file.

    Raises:
      UserError: a workdir holds no run or a damaged file, `out` cannot be written, or Jinja2 is not installed.
    """
    file = epath.Path(out).expanduser()
    text = render(paths)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode(errors="backslashreplace"))  # a folder's name need not be valid text
    except OSError as error:
        got = f"{out}, which cannot be written ({error.strerror or error})"
        raise UserError("out", got, "a writable file", "Change `out`.") from error
    return file


def render(paths: Sequence[epath.PathLike]) -> str:
    """Returns the report as text; see `write_report`."""
    environment = _jinja()
    runs = [run_groups.read(path) for path in paths]
    facts = [run_facts.read(run) for run in runs]
    groups = run_groups.group_by_config(run for run in runs if run.finished)
    tables = result_tables.build(groups)
    gates = [_pictures(each, GATES) for each in facts]
    return environment.get_template(TEMPLATE).render(
        title=facts[0].name if len(facts) == 1 else f"Comparison of {len(facts)} runs",
        facts=facts,
        best=_best(facts),
        curves=_curves(runs, tables),
        tables=tables,
        notes=result_notes.notes(runs, groups),
        gates=[(each, found) for each, found in zip(facts, gates, strict=True) if found],
        unexplained=[each for each, found in zip(facts, gates, strict=True) if each.has_gates and not found],
        evaluations=[(each, _evaluation_pictures(each)) for each in facts if each.evaluations],
        differing=run_facts.differing(facts),
    )


def _best(facts: Sequence[run_facts.Facts]) -> float | None:
    """The highest last test; None if the runs were tested on different images, which cannot be compared."""
    conditions = {
        (each.run.trained_on, each.run.spec.data.image_size, each.last.held_out and each.run.spec.data.holdout)
        for each in facts
        if each.last
    }
    tested = [each.last.accuracy for each in facts if each.last]
    return max(tested, default=None) if len(conditions) == 1 else None


def format_seconds(seconds: float | int) -> str:
    """Formats a duration in its two largest units: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in units:
        if rest >= size or parts or unit == "s":
            parts.append((rest // size, unit))
            rest %= size
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number or len(parts) == 1)


def _jinja() -> Any:
    try:
        import jinja2
    except ImportError as error:
        expected = "Jinja2 to be installed"
        raise UserError("report", "no Jinja2", expected, 'Run: pip install -e ".[report]"') from error
    text = importlib.resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({TEMPLATE: text}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda accuracy: f"{accuracy:.2%}"
    environment.filters["count"] = format_count
    environment.filters["duration"] = format_seconds
    environment.filters["quoted"] = lambda path: shlex.quote(str(path))
    return environment


def _curves(runs: Sequence[run_groups.Run], tables: Sequence[result_tables.Table]) -> list[Picture]:
    """The curves of a single run, or the pictures that compare several."""
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        if len(runs) == 1:
            files = [folder / "curves.svg"]
            curves.plot_curves(runs[0].metrics, files[0])
        else:
            files = comparison_plots.draw(run_groups.group_by_config(runs), tables, folder, "svg")
        return [_picture(file, file.stem.replace("_", " ")) for file in files]


def _pictures(facts: Facts, folder: str) -> list[Picture]:
    """The pictures that another command left in the workdir."""
    return [
        _picture(file, f"{facts.name}: {file.stem.replace('_', ' ')}")
        for file in run_facts.pictures(facts.run.path, folder)
    ]


def _evaluation_pictures(facts: Facts) -> dict[str, list[Picture]]:
    """The pictures of each evaluation, to be shown side by side; their file names share the evaluation's name."""
    found: dict[str, list[Picture]] = {}
    for file in run_facts.pictures(facts.run.path, EVALUATION):
        name, _, kind = file.stem.rpartition("_")
        width = int.from_bytes(file.read_bytes()[16:20])  # from the PNG's header
        picture = dataclasses.replace(_picture(file, f"{kind} of {name}"), width=round(EVALUATION_SCALE * width))
        found.setdefault(name, []).append(picture)
    return found


def _picture(file: epath.Path, text: str) -> Picture:
    content = base64.b64encode(file.read_bytes()).decode()
    return Picture(f"data:{MIME_TYPES[file.suffix]};base64,{content}", text)
