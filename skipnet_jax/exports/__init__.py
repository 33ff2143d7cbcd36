"""Trained networks as programs and files for others to run."""
