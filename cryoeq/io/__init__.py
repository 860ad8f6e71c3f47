"""File formats: MRC, STAR, cryoSPARC tables, atomic models, checkpoints. No other package knows them."""
