"""Lattices of 2D crystals: indexing of spots, subtraction, reduction by classical and neural reducers."""
