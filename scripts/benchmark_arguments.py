"""What the command line of `benchmark.py` takes, and how it says what is wrong with it."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not too small, from the command line."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, at least {least}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """A number above 0, from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def network(name: str) -> str:
    """A network's name, from the command line."""
    from skipnet_jax.models import model_info

    try:
        model_info(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def networks(text: str) -> list[str]:
    """Names with commas, from the command line."""
    return different(text, [network(name) for name in text.split(",")])


def some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Some of a few words, from the command line."""

    def parse(text: str) -> list[str]:
        if not set(text.split(",")) <= set(choices):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {' or '.join(choices)}, or several with commas")
        return different(text, text.split(","))

    return parse


def different(text: str, chosen: list[str]) -> list[str]:
    """Nothing twice."""
    if len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected each only once")
    return chosen
