import importlib.util

import pytest

from scripts.benchmarks import tpu_estimates
from scripts.benchmarks.contenders import Setting

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_takes_less_for_its_own_operations_than_for_the_plain_formulas():
    setting = Setting(batch=128, dtype="bfloat16")
    ours, plain = (
        tpu_estimates.compile_step("skip_resnet20", setting, "v5e:2x2", plain=plain) for plain in (False, True)
    )
    assert ours.cycles / plain.cycles < 0.8
