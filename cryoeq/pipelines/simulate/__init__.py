"""``cryoeq simulate``: particles of known pose, or micrographs of a 2D crystal."""
