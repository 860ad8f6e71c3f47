"""``cryoeq evaluate --bound``: generalization bound of a hybrid run's encoder."""
