"""How the step benchmark's numbers are shown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

GATE_TAX = "\nGate tax: time of the gated network / time of the plain one, within a round.\n"
PEER = "\nTime here / time in PyTorch within a round (in the faster of its formats); below 1 is faster than PyTorch.\n"
HOST = (
    "\nWhat a training step costs the host: the time until the call of the jitted step returns, on a batch of two "
    "tiny images (median, and the least and the greatest of all calls), beside the time until its state is ready.\n"
)
MEMORY = (
    "\nMemory: of JAX the program's arguments, results and intermediate arrays by the compiler's account; of PyTorch "
    "what its allocator handed out at most, known on CUDA only. FLOPs: 2 x multiply-adds, a training step is 3 forward "
    "passes. Init and compile: in this process; PyTorch's are the construction and the first step."
)


def print_result(result: Mapping[str, Any], form: str) -> None:
    """Prints what `step_benchmark.run` found.

    Args:
      form: "markdown" or "json".
    """
    if form == "json":
        print(json.dumps(result))
        return
    setting = result["setting"]
    groups = f"groups of {setting['bn_group_size']}" if setting["bn_group_size"] else "whole batch"
    print(result["machine"])
    print(
        f"Batch {setting['batch']}, {setting['dtype']}, batch norm over the {groups}"
        f"{', remat' if setting['remat'] else ''}; {result['effort']['repeats']} rounds.\n"
    )
    print_steps(result["steps"])
    if result["device_peak_memory"]:
        print(f"\nThe device's memory in use at most, by JAX, over all of them: {_size(result['device_peak_memory'])}.")
    if result["gate_tax"]:
        print(GATE_TAX)
        print_ratios(result["gate_tax"])
    if result["peer"]:
        print(PEER)
        print_ratios(result["peer"])
    if result["host"]:
        print(HOST)
        _print_host(result["host"])


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Prints a Markdown table.

    Args:
      left: so many columns are text; the others are numbers.
    """
    marks = ["---"] * left + ["---:"] * (len(titles) - left)
    for cells in (titles, marks, *rows):
        print(f"| {' | '.join(cells)} |", flush=True)


def print_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each contender."""
    if not rows:
        return
    titles = ["step", "network", "framework", "px", "ms", "least..greatest", "images/s", "TFLOP/s", "of peak"]
    titles += ["memory", "init, s", "compile, s"]
    cells = [
        [
            row["mode"],
            row["network"],
            row["framework"],
            str(row["image_size"]),
            *milliseconds(row["step_s"]),
            f"{row['images_per_s']:,.1f}",
            f"{row['flops_per_s'] / 1e12:.3f}",
            f"{row['share_of_peak']:.1%}" if row["share_of_peak"] else "-",
            _size(row["memory"]),
            f"{row['init_s']:.1f}",
            f"{row['lower_s'] + row['compile_s']:.1f}",
        ]
        for row in rows
    ]
    print_table(titles, cells, left=3)
    print(MEMORY)


def print_ratios(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each pair."""
    titles = ["step", "of", "against", "framework", "ratio", "least..greatest"]
    cells = [[row["mode"], row["above"], row["below"], row["framework"], *ratio(row["ratio"])] for row in rows]
    if "memory_ratio" in rows[0]:
        titles.append("of memory")
        for line, row in zip(cells, rows, strict=True):
            line.append(f"{row['memory_ratio']:.2f}" if row["memory_ratio"] else "-")
    print_table(titles, cells, left=4)


def _print_host(rows: Sequence[Mapping[str, Any]]) -> None:
    titles = ["network", "arrays in the state", "call, ms", "least..greatest", "until ready, ms", "least..greatest"]
    cells = [
        [row["network"], str(row["arrays"]), *milliseconds(row["call_s"]), *milliseconds(row["ready_s"])]
        for row in rows
    ]
    print_table(titles, cells, left=1)


def milliseconds(seconds: Mapping[str, float]) -> list[str]:
    """Median, and least..greatest."""
    middle, least, greatest = (1000 * seconds[name] for name in ("median", "least", "greatest"))
    digits = 2 if middle < 100 else 0
    return [f"{middle:,.{digits}f}", f"{least:,.{digits}f}..{greatest:,.{digits}f}"]


def ratio(numbers: Mapping[str, float]) -> list[str]:
    """Median, and least..greatest."""
    digits = 2 if numbers["median"] < 10 else 0
    return [f"{numbers['median']:,.{digits}f}", f"{numbers['least']:,.{digits}f}..{numbers['greatest']:,.{digits}f}"]


def _size(memory: float | None) -> str:
    return "-" if memory is None else f"{memory / 1e6:,.0f} MB"
