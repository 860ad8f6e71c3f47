"""The command line: thin; the only package that knows the terminal."""
