"""The command line: the table of modes, their flags, mistakes and help, and the modes that parse their own flags."""
