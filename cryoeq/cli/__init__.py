"""The command line: thin; the only room that knows the terminal."""
