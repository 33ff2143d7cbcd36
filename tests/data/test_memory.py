"""The memory of a host stays within a bound, however many images it trains on."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from skipnet_jax.data import tfrecords

ROOT = pathlib.Path(__file__).parents[2]
IMAGES, SHARDS, SIZE = 100_000, 20, 48
# Bytes from the fifth step on: of memory, for windows of records, read buffers and a few batches, which
# docs/reliability.md adds up; of addresses, for the stacks of threads too. All decoded images would be 0.7 GB.
MEMORY, ADDRESSES = 300 * 2**20, 2**30

# Trains for an epoch; from the fifth step on, the kernel grants no more than ADDRESSES.
TRAIN = """
import pathlib, re, resource, sys
import flax.linen as nn
from skipnet_jax import specs, train
from tests import tiny_runs

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

class Limited(train.Console):
    def step(self, metrics):
        super().step(metrics)
        if self.done == 5:
            limit = status("VmSize") + int(sys.argv[3])
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            print("resident", status("VmRSS"), flush=True)

class Cheap(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(images[:, ::8, ::8])
        return nn.Dense(10, name="classifier")(x.reshape(len(x), -1))

train.Console, train.build_network = Limited, lambda _: Cheap()
data = specs.DataSpec(name="tfrecords", dir=sys.argv[1], image_size=int(sys.argv[4]), pad_crop=0)
mixing = specs.MixingSpec()
train.train_and_evaluate(tiny_runs.make_spec(data=data, mixing=mixing, batch_size=512, epochs=1), sys.argv[2])
print("peak", status("VmHWM"))
"""


def write(folder: pathlib.Path) -> None:
    """Writes shards of noise, in which a hundred files come again and again."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (100, SIZE, SIZE, 3), dtype=np.uint8)
    records = [
        tfrecords.serialize(tf.io.encode_jpeg(image, quality=80).numpy(), i % 10, f"{i}.jpg")
        for i, image in enumerate(noise)
    ]
    splits = {}
    for split, count, shards in (("train", IMAGES, SHARDS), ("test", 500, 1)):
        splits[split] = tuple(tfrecords.Shard(str(folder / f"{split}-{i}"), count // shards) for i in range(shards))
        for shard in splits[split]:
            with tf.io.TFRecordWriter(shard.path) as writer:
                for i in range(shard.examples):
                    writer.write(records[i % 100])
    names = tuple(str(i) for i in range(10))
    tfrecords.write_index(str(folder), tfrecords.Index("noise", names, 0, splits), made_with={})


@pytest.mark.slow
def test_training_on_a_hundred_thousand_images_stays_within_its_memory(tmp_path):
    write(tmp_path / "data")
    env = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # an arena takes 64 MB of addresses, not of memory
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "data"), str(tmp_path / "run"), str(ADDRESSES), str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "finished: 1 epochs" in done.stdout, done.stdout + done.stderr
    resident, peak = (int(re.search(rf"{word} (\d+)", done.stdout)[1]) for word in ("resident", "peak"))
    print(f"{(peak - resident) / 1e6:.0f} MB more than at step 5")
    assert peak - resident < MEMORY
