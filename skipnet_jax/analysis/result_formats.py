"""Result tables as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence

from skipnet_jax.analysis.eval_sets import Condition
from skipnet_jax.analysis.result_tables import Cell, Row, Table
from skipnet_jax.errors import one_line
from skipnet_jax.models.table import format_count

MISSING = "\N{EN DASH}"
CAPTION = "Top-1 accuracy in %: the median, with the number of runs as subscript"
CAPTION_PUBLISHED = "; in brackets the published figure and the difference from it"
LATEX_NEEDS = r"% needs \usepackage{booktabs}"
CSV_COLUMNS = (
    *("data", "classes", "eval_classes", "flip", "image_size", "network", "label", "params", "flops"),
    *("runs", "seeds", "median", "lowest", "highest", "published", "published_runs", "difference"),
)


def markdown(tables: Sequence[Table]) -> str:
    """Formats each table as Markdown, with its title and caption above."""
    parts = []
    for table in tables:
        rows = [
            list(map(_markdown_escaped, _heads(table))),
            ["---", *["---:"] * (2 + len(table.columns))],
            *([_markdown_escaped(label), *cells] for label, *cells in _body(table, _markdown_figure, str)),
        ]
        lines = [f"| {' | '.join(cells)} |" for cells in rows]
        parts.append("\n".join([f"## {_markdown_escaped(table.title)}", "", _caption(table), "", *lines, ""]))
    return "\n".join(parts)


def latex(tables: Sequence[Table]) -> str:
    """Formats each table as a LaTeX table environment; the document needs the package booktabs."""
    parts = []
    for table in tables:
        body = _body(table, _latex_figure, lambda difference: f"${difference}$")
        rows = [[_latex_escaped(label), *cells] for label, *cells in body]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_escaped(f'{table.title}. {_caption(table)}')}}}",
            rf"\begin{{tabular}}{{l{'r' * (2 + len(table.columns))}}}",
            r"\toprule",
            rf"{' & '.join(map(_latex_escaped, _heads(table)))} \\",
            r"\midrule",
            *(rf"{' & '.join(cells)} \\" for cells in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
        parts.append("\n".join(lines).replace(MISSING, "--"))
    return "\n".join([LATEX_NEEDS, *parts])


def comma_separated(tables: Sequence[Table]) -> str:
    """Formats all tables as one CSV, with a line per cell: accuracies in %, differences in percentage points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for condition, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow(_csv_line(condition, row, cell))
    return text.getvalue()


def _csv_line(condition: Condition, row: Row, cell: Cell) -> list[object]:
    """The values for `CSV_COLUMNS`; missing ones are empty."""
    eval_set = condition.eval_set
    accuracies = sorted(score.accuracy for score in cell.scores.values())
    median, lowest, highest = ("", "", "")
    if cell.median is not None:
        median, lowest, highest = map(_percent, (cell.median, accuracies[0], accuracies[-1]))
    return [
        *(eval_set.data, " ".join(eval_set.classes), eval_set.eval_classes, eval_set.flip, condition.image_size),
        *(row.network, row.label, row.params, row.flops),
        *(len(accuracies), " ".join(map(str, cell.scores)), median, lowest, highest),
        *((_percent(cell.published.accuracy), cell.published.runs) if cell.published else ("", "")),
        "" if cell.difference is None else f"{cell.difference:+.2f}",
    ]


def _caption(table: Table) -> str:
    return f"{CAPTION}{CAPTION_PUBLISHED if table.has_published else ''}."


def _heads(table: Table) -> list[str]:
    several = len({condition.eval_set for condition in table.columns}) > 1
    one_size = len({condition.image_size for condition in table.columns}) == 1
    heads = []
    for condition in table.columns:
        name, size = condition.eval_set.title, f"{condition.image_size} px"
        heads.append((name if one_size else f"{name}, {size}") if several else size)
    return ["network", "parameters", "FLOPs", *heads]


def _body(table: Table, figure: Callable[[float, int], str], signed: Callable[[str], str]) -> list[list[str]]:
    """The cells of the table as text.

    Args:
      figure: formats an accuracy and its number of runs.
      signed: formats a number with a sign.
    """

    def text(cell: Cell) -> str:
        measured = MISSING if cell.median is None else figure(cell.median, len(cell.scores))
        if not table.has_published or (cell.median is None and cell.published is None):
            return measured
        published = MISSING if cell.published is None else figure(cell.published.accuracy, cell.published.runs)
        difference = "" if cell.difference is None else f", {signed(f'{cell.difference:+.2f}')}"
        return f"{measured} ({published}{difference})"

    return [
        [
            row.label,
            *(MISSING if size is None else format_count(size) for size in (row.params, row.flops)),
            *map(text, row.cells),
        ]
        for row in table.rows
    ]


def _markdown_figure(accuracy: float, runs: int) -> str:
    return f"{_percent(accuracy)}<sub>{runs}</sub>"


def _latex_figure(accuracy: float, runs: int) -> str:
    return f"{_percent(accuracy)}$_{{{runs}}}$"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def _markdown_escaped(text: str) -> str:
    """Keeps class names and folders from becoming tables, emphasis or HTML."""
    return re.sub(r"([\\`*|<]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line(text))


def _latex_escaped(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[&%$#_{}\\~^]", lambda sign: words.get(sign[0], f"\\{sign[0]}"), one_line(text))
