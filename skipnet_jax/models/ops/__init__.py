"""Operations whose program or gradient is written by hand, because XLA's own is slow or keeps too much.

All that depends on the platform is here; the measurements behind the choices are in docs/benchmarks.md. Whoever wants
to understand the networks can take each function for the first line of its docstring.
"""
