"""``cryoeq lattice``: unit cells of 2D crystals from micrographs, and lattice reduction."""
