"""Marks of tests that compile for devices that are not here, and need those devices' compilers."""

import importlib.util

import pytest


def _needs(module: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f'needs {module}: pip install -e ".[{extra}]"')


needs_libtpu = _needs("libtpu", "tpu")
needs_gpu_compiler = _needs("jax_cuda13_plugin", "gpu-compiler")
