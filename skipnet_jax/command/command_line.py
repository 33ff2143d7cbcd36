"""Reads the command line: the mode, its flags, and every mistake that can be found before anything runs.

`skipnet evaluate --workdir=DIR` and `python -m skipnet_jax.main --mode=evaluate --workdir=DIR` are the same.
"""

import difflib
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from absl import flags

from skipnet_jax import config, config_files, errors
from skipnet_jax.command.modes import (
    FORMAT,
    IMAGE_SIZES,
    MODE,
    MODES,
    WORKDIR,
    Mode,
    Program,
    joining,
)

# Except for training and plans, the config comes from the workdir, and these flags change it.
_FLAGS_OF_FIELDS = {
    "data.name": "datasets",
    "data.dir": "data_dir",
    "data.image_size": "image_sizes",
    "data.eval_classes": "eval_classes",
}
_NEEDED = {"config": "a recipe", "workdir": "the folder of the run", "topology": "the devices to plan for"}
_HELP = {"--help", "-help", "-h", "-?"}


def parse(argv: Sequence[str], description: str) -> list[str]:
    """Parses a command line. If it asks for help, prints the help and exits.

    Args:
      argv: the command line, the program's name first.
      description: the beginning of the help about all modes.

    Returns:
      The program's name and the arguments that no flag takes; for a `Program`, the rest of its command line.

    Raises:
      UserError: a mistake in the command line or in the config file.
      flags.Error: a mistake that absl finds.
    """
    name, rest = _split(argv)
    if name is None and (not rest or _HELP & set(rest)) and (rest or _is_installed(argv[0])):
        print(f"{description}\n{_list_modes()}")
        sys.exit(0 if rest else 2)
    mode = MODES[name or "train"]
    if isinstance(mode, Program):
        flags.FLAGS([argv[0], f"--mode={name}"])
        return [argv[0], *rest]
    if _HELP & set(rest):
        print(_describe(name or "train", mode))
        sys.exit(0)
    return config_files.parse_flags([argv[0], *([f"--mode={name}"] if name else []), *_with_values(rest)])


def check_flags(argv: Sequence[str]) -> None:
    """Refuses mistakes that absl cannot know about: a flag of another mode, a missing one, two that exclude each other.

    Raises:
      UserError: says which flag is wrong, and what to do.
    """
    if argv[1:]:
        raise errors.UserError("command line", repr(argv[1]), "flags only (--name=value)", "See --help.")
    name = MODE.value
    mode = MODES[name]
    assert isinstance(mode, Mode)
    for flag, example in mode.needs:
        if not flag.value:
            raise errors.UserError(flag.name, "nothing", _NEEDED[flag.name], f"Give {example}.")
    if WORKDIR.value == "":
        raise errors.UserError("workdir", "nothing", "the folder of the run", "Give --workdir=runs/NAME.")
    for flag_name, owners in _owners().items():
        if flags.FLAGS[flag_name].present and name not in owners:
            raise errors.UserError(
                flag_name,
                f"a value in {spell_mode(name)}",
                f"none, since the flag is for {' and '.join(map(spell_mode, owners))}",
                "Leave it out; a workdir remembers its config." if flag_name == "config" else "Leave it out.",
            )
    if FORMAT.value is not None and FORMAT.value not in mode.formats:
        near = _nearest(FORMAT.value, mode.formats)
        raise errors.UserError(
            "format", repr(FORMAT.value), f"one of {', '.join(mode.formats)}", f"Did you mean {near}?"
        )
    for size in IMAGE_SIZES.value:
        if not size.isdecimal():
            raise errors.UserError("image_sizes", repr(size), "pixels, as in --image_sizes=224,256")
    joining().check()


def spell_mode(name: str) -> str:
    """A mode as the user types it."""
    return f"skipnet {name}" if _is_installed(sys.argv[0]) else f"--mode={name}"


def spell_field(field: str) -> str:
    """A field as the user types it: optim.lr is --config.optim.lr, and workdir is --workdir."""
    mode = flags.FLAGS["mode"].value  # not MODE.value, which raises before the flags are parsed
    if mode not in _owners()["config"] and field in _FLAGS_OF_FIELDS:
        return f"--{_FLAGS_OF_FIELDS[field]}"
    if field in config.fields():
        return f"--config.{field}"
    return f"--{field}" if field in flags.FLAGS else field


def program_name(name: str) -> str:
    """How a mode was called, for its own help and messages."""
    return f"skipnet {name}" if _is_installed(sys.argv[0]) else f"python -m skipnet_jax.main --mode={name}"


def _split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separates the mode, None if the command line does not name one, from the rest."""
    rest = list(argv[1:])
    for i, argument in enumerate(rest):
        if argument == "--":
            break
        if match := re.fullmatch(r"--?mode=(.*)", argument):
            return _require_mode(match[1]), rest[:i] + rest[i + 1 :]
        if argument in ("--mode", "-mode"):
            return _require_mode("".join(rest[i + 1 : i + 2])), rest[:i] + rest[i + 2 :]
    if rest and not rest[0].startswith("-"):
        return _require_mode(rest[0]), rest[1:]
    return None, rest


def _with_values(rest: Sequence[str]) -> list[str]:
    """Gives --distributed a value where it is spelled like a boolean flag: --distributed=yes for a bare one."""
    spelled = {"": "yes", "true": "yes", "1": "yes", "false": "no", "0": "no"}
    result = list(rest)
    for i, argument in enumerate(rest):
        if argument == "--":
            break
        if re.fullmatch("--?nodistributed", argument):
            result[i] = "--distributed=no"
        elif (match := re.fullmatch(r"--?distributed(?:=(\w*))?", argument)) and (
            match[1] is not None or rest[i + 1 : i + 2] not in (["auto"], ["yes"], ["no"])
        ):
            result[i] = f"--distributed={spelled.get((match[1] or '').lower(), match[1])}"
    return result


def _require_mode(name: str) -> str:
    if name not in MODES:
        raise errors.UserError(
            "mode", repr(name), f"one of {', '.join(MODES)}", f"Did you mean {_nearest(name, MODES)}?"
        )
    return name


def _is_installed(program: str) -> bool:
    """Whether the user typed the installed command `skipnet`."""
    return os.path.basename(program).removesuffix(".exe") == "skipnet"


def _list_modes() -> str:
    lines = [f"  {name:<9} {mode.line}" for name, mode in MODES.items()]
    return "\n".join(["Modes; the first is the default:", *lines])


def _describe(name: str, mode: Mode) -> str:
    """The help about one mode."""
    lines = [f"{program_name(name)}: {mode.line}", "", "Flags:"]
    for flag in mode.flags:
        text = flags.FLAGS[flag.name].help
        if flag.name == "format":
            text = f"One of {', '.join(mode.formats)}; default: {mode.formats[0]}."
        elif flag.name == "config":
            text = f"{text} --config.FIELD=VALUE changes a field of it."
        lines += textwrap.wrap(f"--{flag.name}: {text}", 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def _owners() -> dict[str, list[str]]:
    """The modes that take a flag, by the flag's name."""
    owners: dict[str, list[str]] = {}
    for name, mode in MODES.items():
        for flag in mode.flags if isinstance(mode, Mode) else ():
            owners.setdefault(flag.name, []).append(name)
    return owners


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]
