"""Many command lines of `skipnet_jax.main` in the time of one: a process imports it once and forks for each.

The forked children are what fresh processes are after their imports: nothing has started a thread or opened a device.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_all(
    command_lines: Sequence[Sequence[str]],
    *,
    only_parse: bool = False,
    program: str = "main.py",
    folder: pathlib.Path = ROOT,
    tiny_network: bool = False,
) -> list[Done]:
    """Runs each command line, one after the other.

    Args:
      command_lines: without the program's name.
      only_parse: check flags and config, and do nothing else.
      program: the program's name; `skipnet` is the installed command.
      folder: where to run them.
      tiny_network: train one that compiles fast, whatever the config says.
    """
    asked = {
        "command_lines": [[program, *line] for line in command_lines],
        "only_parse": only_parse,
        "folder": str(folder),
        "tiny_network": tiny_network,
    }
    command = [sys.executable, "-m", "tests.command_line", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return [Done(*each) for each in json.loads(done.stdout)]


def _fork(main, argv: Sequence[str]) -> Done:
    from absl import app

    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        child = os.fork()
        if not child:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
            sys.argv = list(argv)
            status = 1
            try:
                app.run(main.main, flags_parser=main._parse)
            except SystemExit as exit:
                status = exit.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # the parent removes the folder
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Done(status, *(pathlib.Path(file).read_text() for file in files))


def _serve(command_lines: Sequence[Sequence[str]], only_parse: bool, folder: str, tiny_network: bool) -> None:
    from skipnet_jax import config, main
    from skipnet_jax.command import modes

    def check_config():
        if modes.CONFIG.value is not None:
            config.train_spec(modes.CONFIG.value)
        return 0

    if only_parse:
        main._dispatch = check_config
    if tiny_network:
        from skipnet_jax import libraries
        from tests import tiny_runs, warm_python

        libraries.quieten_tensorflow(level=2)
        tiny_runs.use_network(pytest.MonkeyPatch())
        warm_python.prepare_to_fork()
    os.chdir(folder)
    sys.path[0] = str(ROOT)  # instead of "", the current folder
    print(json.dumps([_fork(main, argv) for argv in command_lines]))


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
