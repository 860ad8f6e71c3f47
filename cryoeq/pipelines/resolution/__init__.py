"""``cryoeq fsc``: resolution of maps by Fourier shell correlation, overall, by direction and by position."""
