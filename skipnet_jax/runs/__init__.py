"""A run: its files, how it survives interruptions and damage, and how it starts from another run's weights."""
