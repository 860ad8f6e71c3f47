"""``cryoeq fsc``: FSC, masks, post-processing, directional and local resolution, map against model."""
