import configparser
import contextlib
import errno
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from skipnet_jax import errors, main
from skipnet_jax.command import command_line as commands
from skipnet_jax.command import modes
from skipnet_jax.runs import events, signals, workdir
from tests import command_line
from tests.lives import env, forks  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
    "--config=configs/digits.py",
    "--config.data.image_size=8",
    "--config.batch_size=64",
    "--config.model.name=resnet20",
    "--config.epochs=4",
    "--config.checkpoint_every_epochs=1",
]
JOINING = ["--config=configs/digits.py", "--workdir=x", "--distributed"]


def call(*flags, env=None):  # noqa: F811
    command = [sys.executable, "-m", "skipnet_jax.main", *flags]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_help_shows_examples():
    done = call("--help")
    assert done.returncode == 0
    assert "python -m skipnet_jax.main --config=configs/digits.py --workdir=runs/digits" in done.stdout
    assert "--mode=evaluate --workdir=" in done.stdout


@pytest.fixture(scope="module")
def helps():
    asked = [[], ["--help"], *([name, "--help"] for name in modes.MODES)]
    alone, everything, *each = command_line.run_all(asked, program="skipnet")
    return alone, everything, dict(zip(modes.MODES, each, strict=True))


def test_help_lists_each_mode_on_one_line_even_if_nobody_asks(helps):
    alone, everything, _ = helps
    assert (alone.returncode, everything.returncode) == (2, 0) and alone.stdout == everything.stdout
    for name, mode in modes.MODES.items():
        assert re.search(rf"^  {name} +{re.escape(mode.line)}$", everything.stdout, re.MULTILINE)


def test_help_about_a_mode_shows_its_own_flags_and_no_others(helps):
    for name, done in helps[2].items():
        assert done.returncode == 0 and f"skipnet {name}" in done.stdout.splitlines()[0], done
        mode = modes.MODES[name]
        if isinstance(mode, modes.Mode):
            shown = re.findall(r"^  --(\w+): \S", done.stdout, re.MULTILINE)
            assert sorted(shown) == sorted(flag.name for flag in mode.flags)
    assert "One of orbax, stablehlo" in helps[2]["export"].stdout


def test_the_installed_command_is_the_same_code():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (line,) = setup["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert line == "skipnet = skipnet_jax.main:run" and callable(main.run)
    flags = ["--workdir=x", "--image_sizes=big"]
    same = command_line.run_all([["evaluate", *flags], ["--mode=evaluate", *flags]], program="skipnet")
    assert same[0] == same[1] and same[0].returncode == 2


def test_a_program_gets_the_rest_of_the_command_line_in_either_spelling():
    spellings = [["models", "resnet20", "--format=json"], ["resnet20", "--mode=models", "--format=json"]]
    for done in command_line.run_all(spellings, program="skipnet"):
        assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)[0]["name"] == "resnet20"


MISTAKES = [
    (["--workdri=x"], "workdri"),
    (["--config=configs/digits.py", "--config.bach_size=1", "--workdir=x"], "Did you mean --config.batch_size?"),
    (["--config=configs/digits.py", "--config.batch_size=many", "--workdir=x"], "--config.batch_size=many"),
    (["--config=configs/digit.py", "--workdir=x"], "Did you mean configs/digits.py?"),
    (["--config=configs/resnet110.py:cifar", "--workdir=x"], "--config: got the data set 'cifar', expected cifar10 or"),
    (["--mode=evaluate"], "--workdir: got nothing"),
    (["--config=digit"], "--config: got 'digit', expected a file, or the name of a config. Did you mean digits?"),
    (["--config=configs/digits.py", "--workdir="], "--workdir: got nothing"),
    (["--workdir=x"], "--config: got nothing"),
    (["--config=configs/digits.py", "--workdir=x", "--config.seed=4294967296"], "--config.seed: got 4294967296"),
    (["--config=configs/digits.py", "--workdir=x", "--config.optim.lr=-1"], "Change --config.optim.lr."),
    (["--config=digits:cifar10", "--workdir=x"], "digits.py: got TypeError: get_config() takes 0 positional arguments"),
    (["--config=digits", "--workdir=x", "--config.data.classes=(1,2"], "--config: got the value '(1,2' of an override"),
    (["--config=digits", "--workdir=x", "--config.=3"], "--config: got the unknown field , expected a field"),
    (["x"], "--mode: got 'x', expected one of train, evaluate, "),
    (["evalute", "--workdir=x"], "--mode: got 'evalute'"),
    (["--mode=exprot", "--workdir=x"], "Did you mean export?"),
    (["evaluate", "x", "--workdir=x"], "got 'x', expected flags only"),
    (["--mode=export", "--workdir=x", "--format=onx"], "--format: got 'onx', expected one of orbax, stablehlo, "),
    (["--mode=evaluate", "--config=configs/digits.py", "--workdir=x"], "--config: got a value in --mode=evaluate"),
    (["--config=configs/digits.py", "--checkpoint=best", "--workdir=x"], "--checkpoint: got a value in --mode=train"),
    (
        ["--config=digits", "--num_processes=2", "--distributed=no"],
        "--num_processes: got a value with --distributed=no",
    ),
    (["--config=digits", "--num_processes=2", "--nodistributed"], "--num_processes: got a value with --distributed=no"),
    (["--config=digits", "--distributed=maybe"], "--distributed=maybe: value should be one of <auto|yes|no>"),
    ([*JOINING, "--coordinator_address=HOST0"], "--coordinator_address: got 'HOST0', expected host:port"),
    ([*JOINING, "--num_processes=2", "--process_id=2"], "--process_id: got 2, expected 0 to 1"),
    (["--mode=evaluate", "--workdir=setup.cfg"], "--workdir: got"),
    (["--mode=evaluate", "--allow_change=seed", "--workdir=x"], "--allow_change: got a value"),
    (["--mode=export", "--flip", "--workdir=x"], "--flip: got a value"),
    (["--mode=explain", "--distributed", "--workdir=x"], "--distributed: got a value"),
    (["--mode=evaluate", "--workdir=x", "--image_sizes=big"], "--image_sizes: got 'big'"),
]


@pytest.fixture(scope="module")
def mistakes():
    return command_line.run_all([flags for flags, _ in MISTAKES])


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_is_one_message_without_a_stack_trace(mistakes, number):
    done, (_, message) = mistakes[number], MISTAKES[number]
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("arguments", [["--config=digits", "--workdir=x"], ["models", "resnet20", "--xla"]])
def test_a_platform_that_is_not_there_is_one_line(arguments):
    """JAX gives an assertion without a text, or a page about a plugin."""
    done = call(*arguments, env=os.environ | {"JAX_PLATFORMS": "cuda"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: JAX_PLATFORMS: got 'cuda' (") and "unset JAX_PLATFORMS" in done.stderr


IN_A_CONFIG = {
    "def get_config():\n    return ml_colections\n": "line 2: got NameError: name 'ml_colections' is not defined",
    "def get_config(:\n    return 1\n": "line 1: got SyntaxError",
    "from skipnet_jax import specs\n\ndef get_config():\n    specs.ModelSpec(naem=1)\n": "line 4: got TypeError",
    "def get_config():\n    return 1\0\n": "got SyntaxError: source code",
    "def get_config(network):\n    return 1\n": "got TypeError: get_config() missing 1 required positional argument",
    "from configs import recipes\nfrom skipnet_jax import config\n"
    "def get_config():\n    return config.train_spec(recipes.digits())\n": "got a get_config that returns TrainSpec",
    "import no_such_module\n": "line 1: got ModuleNotFoundError",
    "x = 1\n": "got no function get_config",
    "from skipnet_jax import specs\ndef get_config():\n    return specs.OptimSpec(lr=-1.0)\n": "optim.lr: got -1.0",
}


def test_a_mistake_in_a_config_file_is_told_with_file_and_line(tmp_path):
    files = [tmp_path / f"config{number}.py" for number in range(len(IN_A_CONFIG))]
    for file, text in zip(files, IN_A_CONFIG, strict=True):
        file.write_text(text)
    told = command_line.run_all([[f"--config={file}", "--workdir=x"] for file in files])
    told += command_line.run_all([[f"--config={file}", "--workdir=x", "--config.optim.lr=0.1"] for file in files])
    for file, done, message in zip(2 * files, told, 2 * [*IN_A_CONFIG.values()], strict=True):
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr and (str(file) in done.stderr or "optim.lr" in message)


@pytest.fixture
def dispatch(monkeypatch):
    """Makes `main` run the given function instead of a run."""
    monkeypatch.setattr(main, "_check_flags", lambda argv: None)
    return lambda function: monkeypatch.setattr(main, "_dispatch", function)


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            errors.UserError("optim.lr", "0", "more", "Change `seed`."),
            2,
            "--config.optim.lr: got 0, expected more. Change",
        ),
        (errors.DataError("folder/", "nothing", "images"), 2, "folder/: got nothing, expected images."),
        (
            errors.DivergedError("training diverged. Lower `optim.lr`."),
            2,
            "training diverged. Lower --config.optim.lr.",
        ),
        (errors.SavingError("the last state could not be saved"), 1, "the last state could not be saved"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "Make room for --workdir"),
    ],
)
def test_what_is_no_bug_ends_with_a_text_and_a_status(dispatch, capsys, error, status, text):
    dispatch(raising(error))
    assert main.main(["main"]) == status
    told = capsys.readouterr().err
    assert told.startswith("error: ") and text in told


@pytest.mark.parametrize("error", [ValueError("broadcast"), TypeError(), OSError(errno.EACCES, "denied")])
def test_a_bug_keeps_its_trace(dispatch, error):
    dispatch(raising(error))
    with pytest.raises(type(error)):
        main.main(["main"])


def test_letters_that_the_terminal_lacks_are_escaped(dispatch):
    dispatch(lambda: print("workdir: runs/été", flush=True) or 0)
    with io.TextIOWrapper(io.BytesIO(), "ascii") as stdout, contextlib.redirect_stdout(stdout):
        assert main.main(["main"]) == 0
        assert stdout.buffer.getvalue() == rb"workdir: runs/\xe9t\xe9" + b"\n"


@contextlib.contextmanager
def no_reader():
    """Makes standard output a pipe whose reader has gone, as in `... | head`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stdout, contextlib.redirect_stdout(stdout):
        yield


@pytest.mark.parametrize(("mode", "text"), [("train", "stopped, since nobody reads the output. Run"), ("evaluate", "")])
@pytest.mark.parametrize("write", [lambda: print("a line", flush=True), lambda: os.write(sys.stdout.fileno(), b"line")])
def test_a_reader_that_has_seen_enough_ends_a_run_without_a_trace(dispatch, capsys, mode, text, write):
    """Whether standard output keeps what it could not write, or has no buffer (python -u)."""
    dispatch(write)
    with flagsaver.flagsaver(mode=mode), no_reader():
        assert main.main(["main"]) == 141
    told = capsys.readouterr().err
    assert told.startswith(text) and told.count("\n") == bool(text)


def test_a_reader_that_has_seen_enough_ends_a_table_without_a_trace(capsys):
    with flagsaver.flagsaver(mode="models"), no_reader():
        assert main.main(["main", "resnet20"]) == 141
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_than_that_of_the_output_is_a_bug(dispatch):
    dispatch(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    read, write = os.pipe()
    with open(read), open(write, "w") as stdout, contextlib.redirect_stdout(stdout), pytest.raises(BrokenPipeError):
        main.main(["main"])


def test_outside_training_a_field_is_named_by_the_flag_that_changes_it():
    with flagsaver.flagsaver(mode="evaluate"):
        assert [
            commands.spell_field(field) for field in ("data.dir", "data.name", "optim.lr", "workdir", "x.json")
        ] == [
            "--data_dir",
            "--datasets",
            "--config.optim.lr",
            "--workdir",
            "x.json",
        ]


def test_an_interruption_ends_with_its_text_and_130(dispatch, capsys):
    def interrupted():
        raise KeyboardInterrupt("stopped at step 3 of 9")

    dispatch(interrupted)
    assert main.main(["main"]) == 130
    assert capsys.readouterr().err == "stopped at step 3 of 9\n"


def test_a_stopped_run_ends_with_its_signals_status(dispatch, capsys):
    def stopped():
        raise signals.Stopped("stopped at step 3 of 9", signal.SIGTERM)

    dispatch(stopped)
    assert main.main(["main"]) == 143
    assert capsys.readouterr().err == "stopped at step 3 of 9\n"


def test_without_a_workdir_a_run_is_in_a_folder_named_after_its_config(tmp_path):
    """It resumes there, refuses another config, and says in one line that it cannot write."""
    small = ["--config.data.image_size=8", "--config.batch_size=512", "--config.epochs=1"]
    small += ["--config.optim.warmup_epochs=0"]
    first = ["train", "--config=digits", *small]
    other = ["--config=configs/fashion_mnist.py:resnet20", "--config.data.name=digits", "--config.data.flip=False"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "fashion_mnist_resnet20").symlink_to("/proc/no/such/folder")
    trained, again, refused, unwritable = command_line.run_all(
        [first, first, [*first, "--config.seed=1"], [*other, *small]],
        folder=tmp_path,
        program="skipnet",
        tiny_network=True,
    )
    assert trained.stdout.startswith("no --workdir is given: training in runs/digits\n"), trained
    assert (trained.returncode, trained.stderr) == (0, "") and (tmp_path / "runs" / "digits" / "config.json").exists()
    assert again.returncode == 0 and "already complete: 1 epochs" in again.stdout, again
    assert refused.returncode == 2 and "--config: got seed=1, expected seed=0 as in the run in " in refused.stderr
    assert unwritable.returncode == 2 and unwritable.stderr.count("\n") == 1, unwritable
    assert f"{tmp_path}/runs/fashion_mnist_resnet20, which cannot be written" in unwritable.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(forks, tmp_path, number):  # noqa: F811
    path, small = tmp_path / "run", ["--config.epochs=2", "--config.log_every_steps=1", "--config.ema_decay=0.9"]
    train = [*TINY, *small, f"--workdir={path}"]
    life = forks.start_command(path, *TINY, *small)
    life.wait_for(lambda: "compiled" in life.said())
    os.kill(life.process, number)
    assert os.waitstatus_to_exitcode(life.ended()) == 128 + number, life.said()
    said = life.said()
    assert "stopping after this step" in said and "Run the same command to resume" in said and "Traceback" not in said
    again = forks.run(*train)
    assert again.returncode == 0 and again.stderr == "", again.stderr
    assert "resuming from step" in again.stdout
    stop, start = events.read(path)[1:3]
    assert stop["why"] == signal.Signals(number).name and stop["step"] == start["step"]
    assert [line["step"] for line in workdir.read_metrics(path) if "train/loss" in line] == list(range(1, 45))


@pytest.mark.slow
def test_killed_run_again_evaluated(forks, tmp_path):  # noqa: F811
    path = tmp_path / "run"
    train = [*TINY, f"--workdir={path}"]
    life = forks.start_command(path, *TINY)
    life.wait_for(lambda: any(folder.name.isdigit() for folder in path.glob("checkpoints/*")))
    assert life.kill() and "finished" not in life.said()

    again = forks.run(*train)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert "resuming from step" in again.stdout
    steps = [line["step"] for line in workdir.read_metrics(path) if "test/accuracy" in line]
    assert steps == [22, 44, 66, 88]  # every epoch once

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--distributed", f"--coordinator_address={address}", "--num_processes=1", "--process_id=0"]
    evaluated = forks.run("--mode=evaluate", f"--workdir={path}", "--checkpoint=latest", *flags)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((path / workdir.RESULTS).read_text())[0]
    assert result["accuracy"] == workdir.read_metrics(path)[-1]["test/accuracy"]
    assert result["step"] == 88

    for file in (path / workdir.CHECKPOINTS / "88" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    again = forks.run(*train)
    assert again.returncode == 0 and "resuming from step 66" in again.stdout, again.stderr
    assert re.fullmatch(r"WARNING: .*88 is damaged .*resuming from step 66\.\n", again.stderr)  # and nothing of Orbax's
