"""Starts runs within a second: a process that has imported everything forks one child per run.

Imports of JAX and TensorFlow take most of the time of a short run. Neither library has started a thread or opened a
device when this process forks, so a child is like a fresh process after its imports, and may be killed like one. The
process reads {"argv": [...], "output": FILE} line by line, and answers each line with the child's process id and, once
the child has ended, with the status of `os.waitpid`. The network is tiny, so that it compiles fast.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import clu.metric_writers
import matplotlib.pyplot
import sklearn.datasets
import tensorflow
from absl import app

from skipnet_jax import evaluate, main, train
from tests.tiny_runs import TinyNet

BEFOREHAND = (clu.metric_writers, matplotlib.pyplot, sklearn.datasets, tensorflow, evaluate)


def serve() -> None:
    train.build_network = lambda _: TinyNet()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            output = os.open(asked["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = ["skipnet_jax", *asked["argv"]]
            app.run(main.main, flags_parser=main._parse)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
