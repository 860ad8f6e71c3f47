"""``cryoeq lattice``: unit cells of 2D crystals found in micrographs, and lattices reduced."""
