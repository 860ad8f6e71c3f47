"""Particle files as batches of preprocessed images; random half sets."""
