"""cryoeq: from a stack of cryo-EM particle images to a 3D map, without known poses."""

__version__ = "0.1.0"
