"""The command line: the table of modes, flags, mistakes and help, and the modes that parse a line of their own."""
