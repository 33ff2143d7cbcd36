"""Finds the config file that a user names, and explains mistakes in the name, in the file and in its overrides.

`--config=skip_resnet50`, `--config=configs/skip_resnet50.py` and `--config=skip_resnet110:cifar100` work in every
folder: a name that is not a file stands for the config that comes with this package.
"""

import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

import ml_collections
from absl import flags

from skipnet_jax import config
from skipnet_jax.errors import UserError

FOLDER = "configs"
_PACKAGE = pathlib.Path(__file__).resolve().parent
_RECIPES = "recipes"  # shared by the configs; not itself a config


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line with a `--config` flag.

    Args:
      argv: the command line, program name first.

    Returns:
      The arguments that no flag takes, the program name first.

    Raises:
      UserError: a mistake in the command line or in the config file.
      flags.Error: a mistake that absl finds.
    """
    argv, file = read_command_line(argv)
    _let_configs_import_each_other()
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:
        if file and flags.FLAGS["config"].present:  # an override of a field of something else fails in many ways
            _require_config_dict(flags.FLAGS["config"].value, file)
        mistake = _mistake_in_file(error, file)
        if mistake is None:
            raise
        raise mistake from error
    if file:
        _require_config_dict(flags.FLAGS["config"].value, file)
    return rest


def load(value: str) -> ml_collections.ConfigDict:
    """Loads a config for Python to use, as in a notebook: `train_and_evaluate(load("digits"), "runs/digits")`.

    Returns:
      The result of the file's get_config: locked, to be changed by `config.epochs = 3`.

    Raises:
      UserError: there is no such file, or it has a mistake.
    """
    given, argument = _split(find(value))
    _let_configs_import_each_other()
    file = pathlib.Path(given)
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UserError("config", repr(value), "a Python file, NAME.py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        loaded = module.get_config(*([argument[1:]] if argument else []))
    except Exception as error:
        mistake = _mistake_in_file(error, file)
        if mistake is None:
            raise
        raise mistake from error
    _require_config_dict(loaded, file)
    return loaded


def read_command_line(argv: Sequence[str]) -> tuple[list[str], pathlib.Path | None]:
    """Finds the `--config` file, and refuses a missing file and overrides of unknown fields.

    Call it before absl parses the flags: ml_collections answers both mistakes with a long stack trace, and does not
    report a missing file without overrides.

    Args:
      argv: the command line, program name first.

    Returns:
      The command line with the path of the config file in place of its name, and that path, if there is one.

    Raises:
      UserError: either of these; the message has the nearest name.
    """
    overrides = [argument for argument in argv if re.match(r"--?(?:no)?config\.", argument)]
    if overrides and not any(re.match(r"--?config(?:=|$)", argument) for argument in argv):
        raise UserError(
            "config", f"only the override {overrides[0]}", "a recipe too", "Give --config=digits or another."
        )
    found = list(argv)
    value = None
    for i, argument in enumerate(argv):
        if argument == "--":
            break
        if argument in ("--config", "-config"):
            value = find("".join(argv[i + 1 : i + 2]))
            found[i + 1] = value
        elif match := re.match(r"--?config=(.*)", argument):
            value = find(match[1])
            found[i] = f"--config={value}"
        elif match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            config.require_field("config", match[1])
    return found, pathlib.Path(_split(value)[0]) if value else None


def find(value: str) -> str:
    """Finds a config.

    Args:
      value: a file or the name of a config, and after a colon the argument for its function get_config.

    Returns:
      The file's path, and the argument.

    Raises:
      UserError: there is no such file, or two different ones.
    """
    given, argument = _split(value)
    path = pathlib.Path(given)
    if path.is_file():
        return value
    if path.parent in (pathlib.Path(), pathlib.Path(FOLDER)) and path.name:
        known = {FOLDER: _configs(pathlib.Path(FOLDER)), str(shipped()): _configs(shipped())}
        here, there = (each.get(path.name.removesuffix(".py")) for each in known.values())
        if here and there and here.read_bytes() != there.read_bytes():
            got = f"{value!r}, which is {here} and another file in {there.parent}"
            raise UserError("config", got, "one file", f"Give its path: --config={here}, or --config={there}.")
        if found := here or there:
            return f"{found}{argument}"
        names = {**known[FOLDER], **known[str(shipped())]}
        alone = path.parent == pathlib.Path() and path.suffix != ".py"
        there_are = {name: name if alone else f"{FOLDER}/{name}.py" for name in names}
    else:
        there_are = {name: str(file) for name, file in _configs(path.parent).items()}
    near = [there_are[name] for name in config.nearest(path.stem, there_are)] or list(there_are.values())
    hint = f"Did you mean {config.alternatives(near)}?" if near else f"{path.parent} holds no config."
    raise UserError("config", repr(value), "a file, or the name of a config", hint)


def run_name(value: str) -> str:
    """A name for a run with this config: skip_resnet110, or with an argument skip_resnet110_cifar100."""
    given, argument = _split(value)
    return re.sub(r"[^\w.-]+", "_", pathlib.Path(given).stem + argument)


def shipped() -> pathlib.Path:
    """The folder of the configs that come with this package, whether installed or a checkout."""
    installed = _PACKAGE / "shipped" / FOLDER
    return installed if installed.is_dir() else _PACKAGE.parent / FOLDER


def _let_configs_import_each_other() -> None:
    root = str(shipped().parent)
    if root not in sys.path:
        sys.path.append(root)


def _configs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != _RECIPES}


def _split(value: str) -> tuple[str, str]:
    """The path or name, and the argument with its colon."""
    given, colon, argument = value.partition(":")
    return given, colon + argument


def _require_config_dict(loaded: object, file: pathlib.Path) -> None:
    if not isinstance(loaded, ml_collections.ConfigDict):
        got = f"a get_config that returns {'nothing' if loaded is None else type(loaded).__name__}"
        mend = "`skipnet_jax.config.to_config_dict` makes one of a TrainSpec."
        raise UserError(f"{file}", got, "one that returns a ConfigDict", mend)


def _mistake_in_file(error: BaseException, file: pathlib.Path | None) -> UserError | None:
    """The user's mistake behind an error in loading the config file; None if the error has another cause.

    ml_collections and absl wrap some errors and put the whole trace into the text. So this function searches the
    chain of causes.
    """
    folder = file.resolve().parent if file else None
    while error is not None and folder is not None:
        if isinstance(error, UserError):
            return error
        got = f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename == "<unknown>":  # ml_collections reads an override
            got = f"the value {error.text!r} of an override ({error.msg})"
            return UserError("config", got, "numbers, as in (0,1,2)", "Correct the command line.")
        if isinstance(error, SyntaxError) and error.filename:
            return _in_file(pathlib.Path(error.filename), error.lineno, f"{type(error).__name__}: {error.msg}")
        if isinstance(error, SyntaxError):  # a file in UTF-16 is full of zeros
            return UserError(f"{file}", got, "text in UTF-8 that Python can run")
        if isinstance(error, AttributeError) and "get_config" in str(error):
            return UserError(f"{file}", "no function get_config", "one that returns the config")
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if pathlib.Path(frame.filename).resolve().parent == folder]
        if isinstance(error, TypeError) and str(error).startswith("get_config() ") and not inside:  # the call failed
            return UserError(f"{file}", got, "an argument after a colon if, and only if, get_config takes one")
        if inside:
            return _in_file(pathlib.Path(inside[-1].filename), inside[-1].lineno, got)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


def _in_file(file: pathlib.Path, line: int | None, got: str) -> UserError:
    return UserError(f"{file}, line {line}", got, "a config that Python can run", "Correct that line.")
