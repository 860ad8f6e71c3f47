"""PAC-Bayes generalization bounds of equivariant networks."""
