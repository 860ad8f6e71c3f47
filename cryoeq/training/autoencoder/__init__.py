"""Amortized inference: a pose encoder and a decoder of the map, trained end to end on unposed images."""
