"""Optimisers and learning rate schedules, built on Optax."""
