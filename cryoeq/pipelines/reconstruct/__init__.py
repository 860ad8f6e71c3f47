"""``cryoeq reconstruct``: modes, checkpoints, run folder. The algorithm is in ``cryoeq.reconstruction``."""
