"""Orientation distribution as cylinders on a sphere, for Chimera and ChimeraX, as RELION draws it."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.geometry.healpix import pixel_centres
from cryoeq.io.text import write_text

_MAX_LENGTH = 0.3  # fraction of the sphere's radius
_MAX_DEVIATION = 5.0  # colour runs from one standard deviation below the mean, blue, to five above, red
_MIN_LENGTH_ANGSTROM = 0.01  # Chimera refuses a cylinder without length


def write_bild(path: Path, view_counts: Float[Tensor, " pixels"], radius_angstrom: float) -> None:
    """Write one cylinder per HEALPix pixel that holds particles, as long as their number.

    Args:
        path: the file to create or replace.
        view_counts: particles per HEALPix pixel, in ring order.
        radius_angstrom: radius of the sphere, half the side of the box; x, y and z of its centre, that of the map.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    order = round(math.log(len(view_counts) / 12, 4))
    width = 0.5 * math.pi * radius_angstrom / (6 * 2**order)  # cylinders half as wide as the pixels are apart
    sigma = view_counts.std(correction=0)
    deviation = torch.where(sigma > 0, (view_counts - view_counts.mean()) / sigma, 0.0)
    reds = (deviation.clamp(-1, _MAX_DEVIATION) + 1) / (1 + _MAX_DEVIATION)
    lengths = _MAX_LENGTH * radius_angstrom * view_counts / view_counts.max()
    lines = []
    for vector, red, length in zip(pixel_centres(order).tolist(), reds.tolist(), lengths.tolist(), strict=True):
        if length > _MIN_LENGTH_ANGSTROM:
            foot, tip = (
                [radius_angstrom + x * end for x in vector] for end in (radius_angstrom, radius_angstrom + length)
            )
            ends = " ".join(f"{x:.4f}" for x in (*foot, *tip))
            lines += [f".color {red:.4f} 0 {1 - red:.4f}", f".cylinder {ends} {width:.4f}"]
    write_text(path, "\n".join(lines) + "\n")
