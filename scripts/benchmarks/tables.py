"""Prints the results of the step benchmark."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

GATE_TAX = "\nGate tax: the time of the gated network over the time of the plain one, within a round.\n"
PEER = (
    "\nThe time in JAX over the time in PyTorch within a round, for the faster of PyTorch's memory formats. Below 1, "
    "JAX is faster.\n"
)
HOST = (
    "\nWhat a training step costs the host, on a batch of two tiny images: the time until the call of the jitted step "
    "returns, and until its state is ready. Median, minimum and maximum over all calls.\n"
)
MEMORY = (
    "\nMemory: for JAX, the program's arguments, results and intermediate arrays as the compiler counts them; for "
    "PyTorch, its allocator's peak, known on CUDA only. FLOPs: 2 x multiply-adds; a training step counts as 3 forward "
    "passes. Init and compile: in this process; for PyTorch, the construction and the first step."
)


def print_result(result: Mapping[str, Any], form: str) -> None:
    """Prints the result of `steps.run`.

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
    if result["steps"]:
        _print_steps(result["steps"])
    if result["device_peak_memory"]:
        print(
            f"\nPeak memory of the device, as JAX counts it, over all networks: {_size(result['device_peak_memory'])}."
        )
    if result["gate_tax"]:
        print(GATE_TAX)
        _print_ratios(result["gate_tax"])
    if result["peer"]:
        print(PEER)
        _print_ratios(result["peer"])
    if result["host"]:
        print(HOST)
        _print_host(result["host"])


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> None:
    """Prints a Markdown table.

    Args:
      text_columns: how many columns, from the first, are text; the others are numbers.
    """
    marks = ["---"] * text_columns + ["---:"] * (len(titles) - text_columns)
    for cells in (titles, marks, *rows):
        print(f"| {' | '.join(cells)} |", flush=True)


def milliseconds(seconds: Mapping[str, float]) -> list[str]:
    """The cells "median" and "min..max"."""
    median, least, greatest = (1000 * seconds[name] for name in ("median", "min", "max"))
    digits = 2 if median < 100 else 0
    return [f"{median:,.{digits}f}", f"{least:,.{digits}f}..{greatest:,.{digits}f}"]


def ratio(numbers: Mapping[str, float]) -> list[str]:
    """The cells "median" and "min..max"."""
    digits = 4 if numbers["median"] < 0.1 else 2 if numbers["median"] < 10 else 0
    return [f"{numbers['median']:,.{digits}f}", f"{numbers['min']:,.{digits}f}..{numbers['max']:,.{digits}f}"]


def _print_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    titles = ["step", "network", "framework", "px", "ms", "min..max", "images/s", "TFLOP/s", "of peak"]
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
    print_table(titles, cells, text_columns=3)
    print(MEMORY)


def _print_ratios(rows: Sequence[Mapping[str, Any]]) -> None:
    titles = ["step", "of", "against", "framework", "ratio", "min..max"]
    cells = [[row["mode"], row["above"], row["below"], row["framework"], *ratio(row["ratio"])] for row in rows]
    if "memory_ratio" in rows[0]:
        titles.append("of memory")
        for line, row in zip(cells, rows, strict=True):
            line.append(f"{row['memory_ratio']:.2f}" if row["memory_ratio"] else "-")
    print_table(titles, cells, text_columns=4)


def _print_host(rows: Sequence[Mapping[str, Any]]) -> None:
    titles = ["network", "arrays in the state", "call, ms", "min..max", "until ready, ms", "min..max"]
    cells = [
        [row["network"], str(row["arrays"]), *milliseconds(row["call_s"]), *milliseconds(row["ready_s"])]
        for row in rows
    ]
    print_table(titles, cells, text_columns=1)


def _size(memory: float | None) -> str:
    return "-" if memory is None else f"{memory / 1e6:,.0f} MB"
