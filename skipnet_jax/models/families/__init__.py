"""The families of networks: each file holds one family's operation and its table of numbers."""
