"""Generalization of a trained encoder: PAC-Bayes bound by the norms of its weights, and the held-out bound."""
