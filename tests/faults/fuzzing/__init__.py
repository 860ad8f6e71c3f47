"""Mutated inputs, and the only ends that a command may come to with them."""
