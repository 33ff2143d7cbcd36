"""A run on disk and in time: what it leaves behind, how it survives, and how it starts from another."""
