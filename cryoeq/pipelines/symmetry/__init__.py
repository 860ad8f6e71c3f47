"""``cryoeq symmetry``: point groups of a map, their axes, and what speaks against them."""
