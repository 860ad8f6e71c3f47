"""generalization."""
