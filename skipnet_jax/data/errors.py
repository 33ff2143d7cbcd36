"""What goes wrong with the data, for reasons outside the program."""


class DataError(ValueError):
    """Images or labels cannot be had or cannot be right; the message says which, and what to do about it."""
