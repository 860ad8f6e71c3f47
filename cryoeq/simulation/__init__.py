"""Particles whose poses are known, from a molecule or a map."""
