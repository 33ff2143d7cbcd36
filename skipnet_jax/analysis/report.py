"""One HTML file about a run, or about several: everything in it, nothing fetched.

It holds no program and asks for no address, and says so to the browser (Content-Security-Policy); whatever comes from
a workdir is escaped.
"""

import base64
import dataclasses
import importlib.resources
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

from etils import epath

from skipnet_jax.analysis import comparison_plots, curves, result_notes, result_tables, run_facts, runs
from skipnet_jax.analysis.run_facts import Facts
from skipnet_jax.analysis.tables import format_count

TEMPLATE = "report.html.jinja"
GATES, EVALUATION = "explain", "evaluation"  # folders of a workdir
EVALUATION_SCALE = 0.75  # CSS pixels per pixel: two pictures beside each other
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Args:
      source: data URI.
      text: what it shows, for who cannot see it.
      width: in the page, in CSS pixels; None = that of the page.
    """

    source: str
    text: str
    width: int | None = None


def write_report(paths: Sequence[epath.PathLike], out: epath.PathLike) -> epath.Path:
    """Writes the report of some runs.

    Args:
      paths: workdirs, local or in a bucket; the first comes first.
      out: the file to write.

    Returns:
      Its path.

    Raises:
      ValueError: there is no run in one of them, a file there is damaged, or Jinja2 is not installed.
    """
    file = epath.Path(out).expanduser()
    text = render(paths)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise ValueError(
            f"--out: got {out}, expected a file that can be written: {error.strerror or error}."
        ) from error
    return file


def render(paths: Sequence[epath.PathLike]) -> str:
    """The report as text; see `write_report`."""
    if not paths:
        raise ValueError("workdirs: got none, expected at least one. Give the folders of runs: runs/digits")
    environment = _jinja()
    members = [runs.read(path) for path in paths]
    facts = [run_facts.read(run) for run in members]
    groups = runs.group(run for run in members if run.finished)
    tables = result_tables.build(groups)
    explained = [(each, found) for each in facts if (found := _pictures(each, GATES))]
    return environment.get_template(TEMPLATE).render(
        title=facts[0].name if len(facts) == 1 else f"Comparison of {len(facts)} runs",
        facts=facts,
        best=max((each.last.accuracy for each in facts if each.last), default=None),
        curves=_curves(members, tables),
        tables=tables,
        notes=result_notes.notes(members, groups),
        gates=explained,
        unexplained=[each for each in facts if each.has_gates and not _pictures(each, GATES)],
        evaluations=[(each, _evaluation_pictures(each)) for each in facts if each.evaluations],
        differing=run_facts.differing(facts),
    )


def format_seconds(seconds: float | int) -> str:
    """42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h: the two largest units."""
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
        raise ValueError(
            'report: got no Jinja2, expected it to be installed. Run: pip install -e ".[report]"'
        ) from error
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


def _curves(members: Sequence[runs.Run], tables: Sequence[result_tables.Table]) -> list[Picture]:
    """Of one run its curves, of several those of all and what else compares them."""
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        if len(members) == 1:
            files = [folder / "curves.svg"]
            curves.plot_curves(members[0].metrics, files[0])
        else:
            files = comparison_plots.draw(runs.group(members), tables, folder, "svg")
        return [_picture(file, file.stem.replace("_", " ")) for file in files]


def _pictures(facts: Facts, folder: str) -> list[Picture]:
    """Pictures that other commands have left in a workdir; those of all images before those of single ones."""
    return [
        _picture(file, f"{facts.name}: {file.stem.replace('_', ' ')}")
        for file in run_facts.pictures(facts.run.path, folder)
    ]


def _evaluation_pictures(facts: Facts) -> dict[str, list[Picture]]:
    """By the name that the pictures of one evaluation have in common; as large as they were drawn, side by side."""
    found: dict[str, list[Picture]] = {}
    for file in run_facts.pictures(facts.run.path, EVALUATION):
        name, _, kind = file.stem.rpartition("_")
        width = int.from_bytes(file.read_bytes()[16:20])  # of a PNG's header
        picture = dataclasses.replace(_picture(file, f"{kind} of {name}"), width=round(EVALUATION_SCALE * width))
        found.setdefault(name, []).append(picture)
    return found


def _picture(file: epath.Path, text: str) -> Picture:
    content = base64.b64encode(file.read_bytes()).decode()
    return Picture(f"data:{KINDS[file.suffix]};base64,{content}", text)
