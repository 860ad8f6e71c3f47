"""Comparison of 3D maps: alignment over rotation, shift and hand; point groups and mirror symmetry."""
