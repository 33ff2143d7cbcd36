"""The pure functions of a training step, and where its arrays live."""
