"""Prediction on several hosts: real processes that share a bucket, and one result file in the order of the input."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

from skipnet_jax import predict
from skipnet_jax.runs import result_parts
from tests.data import made_images
from tests.exports.small_networks import write_weights
from tests.gcs_emulator import NAME, bucket  # noqa: F401 (a fixture)

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE = 240  # seconds for all processes
IMAGES, BAD = 11, 7


def contents() -> dict[str, bytes]:
    images = {f"day{k % 2}/{k:02d}.jpg": made_images.encode(k, side=32) for k in range(IMAGES)}
    return images | {f"day1/{BAD:02d}.jpg": b"no image"}


@pytest.mark.slow
def test_hosts_share_the_images_of_a_bucket_and_write_one_file(bucket, tmp_path):  # noqa: F811
    workdir = write_weights(tmp_path / "weights", "resnet20")
    for name, content in contents().items():
        bucket.upload(f"photos/{name}", content)
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "skipnet_jax.main", "--mode=predict", f"gs://{NAME}/photos"]
    command += [f"--workdir={workdir}", "--format=jsonl", "--top=2", "--batch_size=4", "--distributed"]
    command += [f"--output=gs://{NAME}/found.jsonl", f"--coordinator_address={address}", "--num_processes=2"]
    environment = {**bucket.environment, "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen([*command, f"--process_id={k}"], cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)
        for k in range(2)
    ]
    try:
        printed = [host.communicate(timeout=DEADLINE) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [1, 1], printed  # since one image is bad
    assert not any("{" in out for out, _ in printed)  # the connections may be reported there
    assert sum(f"{BAD:02d}.jpg" in error for _, error in printed) == 1
    assert bucket.objects("found") == ["found.jsonl"]
    together = [json.loads(line) for line in bucket.read("found.jsonl").splitlines()]

    alone = tmp_path / "alone.jsonl"
    local = [str(tmp_path / "photos"), f"--workdir={workdir}", "--format=jsonl", "--top=2", "--batch_size=4"]
    assert predict.main([*local, f"--output={alone}"]) == 1
    wanted = [json.loads(line) for line in alone.read_text().splitlines()]
    prefixes = (f"gs://{NAME}/photos/", f"{tmp_path}/photos/")
    names = [
        [line["file"].removeprefix(prefix) for line in lines]
        for prefix, lines in zip(prefixes, (together, wanted), strict=True)
    ]
    assert names[0] == names[1] == sorted(contents())
    for found, other in zip(together, wanted, strict=True):
        assert ("error" in found) == ("error" in other)
        for one, two in zip(found.get("predictions", ()), other.get("predictions", ()), strict=True):
            assert one["class"] == two["class"] and one["probability"] == pytest.approx(two["probability"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_image_belongs_to_one_host_and_the_parts_are_joined_in_order(count, tmp_path, monkeypatch):
    """The hosts come here one after the other, the first one last, since it joins what the others have written."""
    output = str(tmp_path / "found.txt")
    monkeypatch.setattr(result_parts.jax, "process_count", lambda: count)
    for index in reversed(range(count)):
        monkeypatch.setattr(result_parts.jax, "process_index", lambda index=index: index)
        result_parts.require_output(output)
        with result_parts.writing(output) as file:
            file.writelines(f"{number}\n" for number in result_parts.share(7))
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == [f"found.txt.part-{i:05d}-of-{count:05d}" for i in range(count)]
    monkeypatch.setattr(result_parts.distributed.global_state, "client", Store(count))
    assert result_parts.join(output, 2) == 2 * count
    assert (tmp_path / "found.txt").read_text().split() == [str(number) for number in range(7)]
    assert [path.name for path in tmp_path.iterdir()] == ["found.txt"]


class Store:
    """What the other hosts have told."""

    def __init__(self, count: int) -> None:
        self.told = {f"skipnet_jax/part/{i}": "2" for i in range(1, count)}

    def key_value_set(self, key: str, value: str) -> None:
        assert key not in self.told
        self.told[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        return self.told[key]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_processes=2 --process_id=0", "--output: got nothing, expected a file that all hosts share"),
        ("--distributed", "--output: got nothing"),
        ("--coordinator_address=HOST0:1234", "--output: got nothing"),
        ("--output=y --process_id=2 --num_processes=2", "--process_id: got 2, expected 0 to 1"),
        ("--output=y --process_id=1 --distributed=no", "--process_id: got a value with --distributed=no"),
        ("--output=y --coordinator_address=HOST0 --num_processes=2", "--coordinator_address: got 'HOST0', expected"),
    ],
)
def test_a_mistake_about_hosts_is_told_before_any_host_is_asked(flags, message, capsys):
    assert predict.main(["x.png", "--workdir=x", *flags.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_file_that_cannot_be_written_is_told_before_the_network_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "x.png").write_bytes(made_images.encode(0, kind="PNG"))
    command = [str(tmp_path / "x.png"), "--workdir=nothing", f"--output={tmp_path}/file/found.jsonl"]
    assert predict.main([*command, "--distributed=no"]) == 2
    assert capsys.readouterr().err.startswith("error: --output: got ")
