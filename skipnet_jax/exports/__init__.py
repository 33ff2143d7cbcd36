"""Trained networks as programs and files for others to run."""

INPUT, OUTPUT = "images", "logits"  # names of the input and the output of every exported program
