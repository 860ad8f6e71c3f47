"""Supervised training of a pose encoder on synthetic projections of a map, and inference with it."""
