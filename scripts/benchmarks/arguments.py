"""Types of command-line arguments, and a parser whose errors take one line."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports an error without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number that is not too small."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, at least {least}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """The type of a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def network(name: str) -> str:
    """The type of a network's name."""
    from skipnet_jax.models import model_info

    try:
        model_info(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def networks(text: str) -> list[str]:
    """The type of several names, separated by commas."""
    return _different([network(name) for name in text.split(",")])


def some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of one or more of these words, separated by commas."""

    def parse(text: str) -> list[str]:
        if not set(text.split(",")) <= set(choices):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {' or '.join(choices)}, or several with commas")
        return _different(text.split(","))

    return parse


def _different(chosen: list[str]) -> list[str]:
    if len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"got {','.join(chosen)!r}, expected each only once")
    return chosen
