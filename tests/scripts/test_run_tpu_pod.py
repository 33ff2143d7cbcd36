"""scripts/run_tpu_pod.sh: dry runs, and whole runs with a fake gcloud whose workers are local folders."""

import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
TPU = ["--name=pod-1", "--zone=us-west4-a", "--project=my-project"]
CREATE = ["--create", "--accelerator_type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
# Spaces, quotes and stars must reach main unchanged.
FLAGS = ["--config=configs/skip_resnet50.py", "--workdir=gs://bucket/runs/a", '--config.data.pattern=it\'s "a" $HOME *']
DEADLINE = 60

GCLOUD = """#!/usr/bin/env bash
# A TPU with two workers, which are folders.
echo "$*" >>"$FAKE/calls"
case "$4" in
    describe) cat "$FAKE/state" 2>/dev/null || { cat "$FAKE/said" || echo "ERROR: NOT_FOUND"; exit 1; } >&2 ;;
    create) echo READY >"$FAKE/state" && rm -rf "$FAKE"/worker? && mkdir "$FAKE/worker0" "$FAKE/worker1" ;;
    delete) rm "$FAKE/state" ;;
    scp) [ ! -e "$FAKE/broken" ] && cp "$5" "$FAKE/worker0/" && cp "$5" "$FAKE/worker1/" ;;
    ssh)
        for word; do case "$word" in --command=*) command=${word#*=} ;; esac; done
        for worker in "$FAKE/worker0" "$FAKE/worker1"; do
            (cd "$worker" && HOME=$worker bash -c "$command") & started="$started $!"
        done
        for process in $started; do wait "$process" || status=$?; done
        exit "${status:-0}"
        ;;
esac
"""

# Replaces the real script: makes a `python` that records its arguments and follows a plan of exit statuses.
SETUP_VENV = r"""
[ "$1" = tpu ] || exit 1
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf '%s\n' "$@" >>started
echo "start $(grep -c -- --distributed started)"
status=$(sed -n "$(grep -c -- --distributed started)p" "$FAKE/plan")
[ "$status" != wait ] || for _ in $(seq 900); do sleep 0.1; done
exit "$status"
END
chmod +x .venv/bin/python
"""


@dataclasses.dataclass
class Pod:
    """A clone of the project (its scripts only), and a TPU."""

    clone: pathlib.Path
    folder: pathlib.Path
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen:
        command = ["bash", str(self.clone / "scripts" / "run_tpu_pod.sh"), *arguments]
        return subprocess.Popen(command, env=self.environment, stdout=-1, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, printed

    def plan(self, *statuses: object) -> None:
        (self.folder / "plan").write_text("".join(f"{status}\n" for status in statuses))

    def calls(self) -> list[str]:
        calls = [line.split()[3] for line in (self.folder / "calls").read_text().splitlines()]
        (self.folder / "calls").unlink()
        return calls

    def started(self, worker: int) -> list[str]:
        return (self.folder / f"worker{worker}" / "skipnet_jax" / "started").read_text().splitlines()


@pytest.fixture
def pod(tmp_path) -> Pod:
    clone, folder = tmp_path / "clone", tmp_path / "fake"
    (clone / "scripts").mkdir(parents=True)
    for script in ("run_tpu_pod.sh", "pod_worker.sh", "keep_running.sh"):
        shutil.copy(SCRIPTS / script, clone / "scripts")
    (clone / "scripts" / "setup_venv.sh").write_text(SETUP_VENV)
    (clone / ".gitignore").write_text(".cache\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(clone)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "gcloud").write_text(GCLOUD)
    (folder / "bin" / "gcloud").chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return Pod(clone, folder, os.environ | {"PATH": path, "FAKE": str(folder), "WAIT_SECONDS": "0"})


def dry_run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash"), str(SCRIPTS / "run_tpu_pod.sh"), *arguments]
    environment = os.environ if path is None else os.environ | {"PATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)


@pytest.fixture
def bare_path(tmp_path) -> str:
    """A PATH with the bare minimum for a shell script, without gcloud."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "dirname").symlink_to(shutil.which("dirname"))
    return str(tmp_path / "bare")


def test_a_dry_run_prints_each_command_and_needs_no_gcloud(bare_path):
    result = dry_run(*TPU, *CREATE, "--dry_run", "--", *FLAGS, path=bare_path)
    assert (result.returncode, result.stderr) == (0, "")
    place = ["--zone=us-west4-a", "--project=my-project"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    commands = [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]
    *commands, prepare, start = commands
    assert commands == [
        [*tpu, "describe", "pod-1", *place, "--format=value(state)"],
        [*tpu, "delete", "pod-1", *place, "--quiet"],
        [*tpu, "create", "pod-1", *place, "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"],
        ["git", "bundle", "create", "--quiet", ".cache/skipnet_jax.bundle", "HEAD"],
        [*tpu, "scp", ".cache/skipnet_jax.bundle", "pod-1:", *place, "--worker=all"],
    ]
    for command in (prepare, start):
        assert command[:-1] == [*tpu, "ssh", "pod-1", *place, "--worker=all"]
    assert "git -C skipnet_jax fetch --quiet ../skipnet_jax.bundle HEAD" in prepare[-1]
    assert "bash skipnet_jax/scripts/pod_worker.sh prepare" in prepare[-1]
    remote = start[-1].removeprefix("--command=")
    assert shlex.split(remote) == ["bash", "skipnet_jax/scripts/pod_worker.sh", "start", *FLAGS]


def test_creates_and_deletes_nothing_unless_asked():
    printed = dry_run(*TPU, "--dry_run", "--", *FLAGS).stdout
    assert not {"create", "delete"} & {line.split()[4] for line in printed.splitlines() if line.startswith("gcloud")}


def test_an_ai_zone_is_a_zone():
    result = dry_run(TPU[0], "--zone=us-south1-ai1b", TPU[2], "--dry_run", "--", *FLAGS)
    assert result.returncode == 0 and "--zone=us-south1-ai1b" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--name: got ''"),
        (["--name=a;b", *TPU[1:]], "--name: got 'a;b'"),
        (["--name=-a", *TPU[1:]], "--name: got '-a'"),
        (["--name=a\nb", *TPU[1:]], "--name: got 'a"),
        ([TPU[0], "--zone=here", TPU[2]], "--zone: got 'here'"),
        ([*TPU[:2], "--project=$(id)"], "--project: got"),
        ([*TPU, "--spot", "--", *FLAGS], "Add --create"),
        ([*TPU, "--create", "--", *FLAGS], "--accelerator_type: got ''"),
        ([*TPU, *CREATE, "--preemptible", "--", *FLAGS], "expected one of them"),
        ([*TPU, "--workdir=gs://bucket/a"], "main's flags after --"),
        ([*TPU, "--", "--workdir=runs/a"], "--workdir: got 'runs/a'"),
        ([*TPU], "--workdir: got ''"),
        ([*TPU, "--", *FLAGS, "--distributed"], "since this script adds it"),
        ([*TPU, "--stop", "--", *FLAGS], "--stop: got flags"),
    ],
)
def test_mistakes_are_reported_before_anything_is_done(arguments, reason):
    result = dry_run("--dry_run", *arguments)
    assert (result.returncode, result.stdout) == (2, "") and reason in result.stderr


def test_needs_gcloud(bare_path):
    result = dry_run(*TPU, "--", *FLAGS, path=bare_path)
    assert result.returncode == 2 and "got no gcloud" in result.stderr


def test_copies_the_run_to_all_workers_and_restarts_it_there(pod):
    pod.plan(143, 1, 0)
    status, printed = pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert status == 0, printed
    assert pod.calls() == ["describe", "create", "scp", "ssh", "ssh"]
    assert pod.started(0) == pod.started(1) == ["-m", "skipnet_jax.main", "--distributed", *FLAGS] * 3
    assert printed.count("start 3") == 2
    assert "costs money" in printed


@pytest.mark.slow
def test_replaces_a_preempted_tpu_and_keeps_a_ready_one(pod):
    pod.plan(2)
    (pod.folder / "state").write_text("PREEMPTED\n")
    status, printed = pod.run(*TPU, "--", *FLAGS)
    assert status == 2 and "pod-1 (PREEMPTED)" in printed
    assert pod.calls() == ["describe"]
    status, printed = pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert status == 2 and "costs money" in printed  # the status is the run's
    assert pod.calls() == ["describe", "delete", "create", "scp", "ssh", "ssh"]
    pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert pod.calls() == ["describe", "scp", "ssh", "ssh"]


def test_a_failed_copy_says_that_the_tpu_costs_money(pod):
    (pod.folder / "broken").touch()
    status, printed = pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert status == 1 and "costs money" in printed
    assert pod.calls() == ["describe", "create", "scp"]


def test_an_error_of_gcloud_is_not_taken_for_a_missing_tpu(pod):
    (pod.folder / "said").write_text("ERROR: You do not currently have an active account selected.")
    status, printed = pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert status == 1 and "active account" in printed and "Add --create" not in printed
    assert pod.calls() == ["describe"]


def test_a_stopped_tpu_must_be_started(pod):
    (pod.folder / "state").write_text("STOPPED\n")
    status, printed = pod.run(*TPU, "--", *FLAGS)
    assert status == 2 and "tpu-vm start pod-1" in printed


def test_refuses_uncommitted_changes(pod):
    (pod.clone / "new.py").write_text("")
    status, printed = pod.run(*TPU, *CREATE, "--", *FLAGS)
    assert status == 2 and "new.py" in printed
    assert not (pod.folder / "calls").exists()


@pytest.mark.slow
def test_a_run_outlives_the_script_is_shown_again_and_stops(pod):
    pod.plan("wait")
    process = pod.start(*TPU, *CREATE, "--", *FLAGS)
    deadline = time.monotonic() + DEADLINE
    while not all((pod.folder / f"worker{i}/skipnet_jax/started").exists() for i in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
    process.stdout.close()
    process.wait()
    status, printed = pod.run(*TPU, "--", *FLAGS[:2])
    assert status == 2 and "Stop that one first" in printed
    again = pod.start(*TPU, "--", *FLAGS)
    while again.stdout.readline() != "already running\n":
        assert time.monotonic() < deadline and again.poll() is None
    status, printed = pod.run(*TPU, "--stop")
    assert status == 0 and printed.count("saved") == 2
    assert again.wait(timeout=DEADLINE) == 2
    again.stdout.close()
    assert pod.started(0).count("--distributed") == 1
    status, printed = pod.run(*TPU, "--stop")
    assert status == 0 and printed.count("nothing is running\n") == 2 and "costs money" in printed


@pytest.mark.slow
def test_stop_ends_a_loop_around_the_script(pod):
    pod.plan("wait", "wait", "wait", "wait")
    script = ["bash", str(pod.clone / "scripts" / "run_tpu_pod.sh"), *TPU, *CREATE, "--", *FLAGS]
    loop = subprocess.Popen(["bash", str(pod.clone / "scripts" / "keep_running.sh"), *script], env=pod.environment)
    try:
        deadline = time.monotonic() + DEADLINE
        while not all((pod.folder / f"worker{i}/skipnet_jax/started").exists() for i in (0, 1)):
            assert time.monotonic() < deadline and loop.poll() is None
            time.sleep(0.05)
        assert pod.run(*TPU, "--stop")[0] == 0
        assert loop.wait(timeout=20) == 2
        assert pod.started(0).count("--distributed") == 1
    finally:
        loop.terminate()
        loop.wait()
        pod.run(*TPU, "--stop")
