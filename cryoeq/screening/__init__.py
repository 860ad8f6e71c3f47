"""Screening of particles: gaps in angular coverage by local homology, and a sheaf network that scores outliers."""
