"""Figures of merit: poses against a truth, map against map, resolution."""
