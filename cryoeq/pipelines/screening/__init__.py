"""``cryoeq screen``: gaps in angular coverage and junk particles of a run."""
