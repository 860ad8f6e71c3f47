"""Pure functions on tensors: rotations, grids, point groups, Fourier transforms."""
