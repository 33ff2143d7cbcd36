"""The command with `tiny_runs.TinyNet` in place of any network: python -m tests.tiny_main FLAGS.

For tests of the process itself, which need no network that takes half a minute to compile.
"""

from skipnet_jax import models
from tests.tiny_runs import TinyNet

models.build_network = lambda spec: TinyNet(spec.num_classes)  # before a module of the command takes it from there

from skipnet_jax import main  # noqa: E402

if __name__ == "__main__":
    main.run()
