"""Metrics: poses against a truth, FSC of maps, resolution, scores of particles."""
