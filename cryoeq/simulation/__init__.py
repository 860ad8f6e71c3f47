"""Simulated particles and crystals of known pose, from a molecule or a map."""
