"""Result tables as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence

from skipnet_jax.analysis.result_tables import Cell, Column, Row, Table
from skipnet_jax.analysis.tables import format_count

MISSING = "\N{EN DASH}"
CAPTION = "Top-1 accuracy in %: the median of the runs, whose number is the subscript"
CAPTION_PUBLISHED = "; in brackets the published figure and the difference to it"
LATEX_NEEDS = r"% needs \usepackage{booktabs}"
CSV_COLUMNS = (
    *("data", "classes", "eval_classes", "flip", "image_size", "network", "label", "params", "flops"),
    *("runs", "seeds", "median", "lowest", "highest", "published", "published_runs", "difference"),
)


def markdown(tables: Sequence[Table]) -> str:
    """The tables in Markdown, each below its title and its caption."""
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
    """The tables as LaTeX's table environments, for a document that uses the package booktabs (a comment says so)."""
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
    """All figures of the tables as CSV, a line for each cell: accuracies in %, differences in percentage points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow(_csv_line(column, row, cell))
    return text.getvalue()


def _csv_line(column: Column, row: Row, cell: Cell) -> list[object]:
    """Of a cell; the values that it does not have are empty."""
    tested = column.eval_set
    accuracies = sorted(score.accuracy for score in cell.scores.values())
    median, lowest, highest = ("", "", "")
    if cell.median is not None:
        median, lowest, highest = map(_percent, (cell.median, accuracies[0], accuracies[-1]))
    return [
        *(tested.data, " ".join(tested.classes), tested.eval_classes, tested.flip, column.image_size),
        *(row.network, row.label, row.params, row.flops),
        *(len(accuracies), " ".join(map(str, cell.scores)), median, lowest, highest),
        *((_percent(cell.published.accuracy), cell.published.runs) if cell.published else ("", "")),
        "" if cell.difference is None else f"{cell.difference:+.2f}",
    ]


def _caption(table: Table) -> str:
    return f"{CAPTION}{CAPTION_PUBLISHED if table.has_published else ''}."


def _heads(table: Table) -> list[str]:
    several = len({column.eval_set for column in table.columns}) > 1
    one_size = len({column.image_size for column in table.columns}) == 1
    heads = []
    for column in table.columns:
        name, size = column.eval_set.title, f"{column.image_size} px"
        heads.append((name if one_size else f"{name}, {size}") if several else size)
    return ["network", "parameters", "FLOPs", *heads]


def _body(table: Table, figure: Callable[[float, int], str], math: Callable[[str], str]) -> list[list[str]]:
    """The cells as text.

    Args:
      figure: of an accuracy and the number of runs behind it.
      math: of a number with a sign.
    """

    def text(cell: Cell) -> str:
        measured = MISSING if cell.median is None else figure(cell.median, len(cell.scores))
        if not table.has_published or (cell.median is None and cell.published is None):
            return measured
        known = MISSING if cell.published is None else figure(cell.published.accuracy, cell.published.runs)
        difference = "" if cell.difference is None else f", {math(f'{cell.difference:+.2f}')}"
        return f"{measured} ({known}{difference})"

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
    """Class names and folders as they are, and not as tables, emphasis or HTML."""
    return re.sub(r"([\\`*|<])", r"\\\1", text)


def _latex_escaped(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[&%$#_{}\\~^]", lambda sign: words.get(sign[0], f"\\{sign[0]}"), text)
