"""The command with `tiny_runs.TinyNet` in place of any network: python -m tests.tiny_main FLAGS.

For tests of the process itself, which need no network that takes half a minute to compile.
"""

import pytest

from skipnet_jax import main
from tests.tiny_runs import use_network

if __name__ == "__main__":
    use_network(pytest.MonkeyPatch())
    main.run()
