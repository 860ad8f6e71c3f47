"""2D crystals: power spectrum, indexing and subtraction of a lattice, unit cells, lattice reduction."""
