"""``cryoeq lattice``: unit cells of 2D crystals, and reduction of lattice bases."""
