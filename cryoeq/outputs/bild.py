"""The orientation distribution as cylinders on a sphere, for Chimera and ChimeraX, as RELION draws it."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.geometry.healpix import pixel_centres
from cryoeq.io.text import write_text

_LONGEST = 0.3  # of the sphere's radius
_SPREAD_SIGMA = 5.0  # colour runs from one standard deviation below the mean, blue, to five above, red
_SHORTEST_ANGSTROM = 0.01  # Chimera refuses a cylinder of no length


def write_bild(path: Path, view_counts: Float[Tensor, " pixels"], radius_angstrom: float) -> None:
    """Write one cylinder per HEALPix pixel that holds particles, its length their number.

    Args:
        path: the file to create or replace.
        view_counts: particles per pixel.
        radius_angstrom: of the sphere, half the box; its centre lies at that place along x, y and z, on the map's.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    order = round(math.log(len(view_counts) / 12, 4))
    width = 0.5 * math.pi * radius_angstrom / (6 * 2**order)  # cylinders half as wide as the pixels are apart
    spread = view_counts.std(correction=0)
    deviation = torch.where(spread > 0, (view_counts - view_counts.mean()) / spread, 0.0)
    reds = (deviation.clamp(-1, _SPREAD_SIGMA) + 1) / (1 + _SPREAD_SIGMA)
    lengths = _LONGEST * radius_angstrom * view_counts / view_counts.max()
    lines = []
    for vector, red, length in zip(pixel_centres(order).tolist(), reds.tolist(), lengths.tolist(), strict=True):
        if length > _SHORTEST_ANGSTROM:
            foot, tip = (
                [radius_angstrom + x * end for x in vector] for end in (radius_angstrom, radius_angstrom + length)
            )
            ends = " ".join(f"{x:.4f}" for x in (*foot, *tip))
            lines += [f".color {red:.4f} 0 {1 - red:.4f}", f".cylinder {ends} {width:.4f}"]
    write_text(path, "\n".join(lines) + "\n")
