"""SkipResNet in JAX and Flax: residual networks whose blocks choose among all earlier states by a gate."""

__version__ = "0.1.0"
