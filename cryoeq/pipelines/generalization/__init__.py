"""``cryoeq evaluate --bound``: generalization of the encoder of a run."""
