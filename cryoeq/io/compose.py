"""New star files of simulated particles: the inverse of ``read_optics`` and ``read_ctf``."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.io.star import StarTable, decimals
from cryoeq.io.star_text import Text, text_column


def compose_star(
    stack_name: str,
    count: int,
    box_size_px: int,
    optics: Optics | Sequence[Optics],
    ctf: CtfParameters | None,
    *,
    optics_index: Int[Tensor, " particles"] | None = None,
    micrographs: Sequence[str] | None = None,
) -> StarTable:
    """RELION 3.1 table of all images of one stack, without poses.

    Args:
        stack_name: name of the ``.mrcs`` file in the star file.
        count: number of images in the stack.
        box_size_px: side of the images.
        optics: the optics group, or all of them; they share their pixel size.
        ctf: CTF parameters, one value per image; None leaves the defocus columns out.
        optics_index: index of each image's optics group; None for the first.
        micrographs: name of each image's micrograph; None for one that is named after the optics group.
    """
    groups = [optics] if isinstance(optics, Optics) else list(optics)
    numbers = {
        "rlnMicrographOriginalPixelSize": [group.pixel_size_angstrom for group in groups],
        "rlnVoltage": [group.voltage_kv for group in groups],
        "rlnSphericalAberration": [group.spherical_aberration_mm for group in groups],
        "rlnAmplitudeContrast": [group.amplitude_contrast for group in groups],
        "rlnImagePixelSize": [group.pixel_size_angstrom for group in groups],
    }
    optics_block: dict[str, Text] = {
        "rlnOpticsGroupName": text_column([group.name for group in groups]),
        "rlnOpticsGroup": text_column([str(number) for number in range(1, len(groups) + 1)]),
        **{column: text_column([f"{value:.6f}" for value in values]) for column, values in numbers.items()},
        "rlnImageSize": np.full(len(groups), str(box_size_px)),
        "rlnImageDimensionality": np.full(len(groups), "2"),
    }
    names = [f"{groups[0].name}.mrc"] * count if micrographs is None else micrographs
    group_numbers = np.ones(count, np.int64) if optics_index is None else optics_index.numpy() + 1
    particles: dict[str, Text] = {
        "rlnImageName": text_column([f"{number:06d}@{stack_name}" for number in range(1, count + 1)]),
        "rlnMicrographName": text_column(names),
        "rlnOpticsGroup": group_numbers.astype(np.str_),
    }
    if ctf is not None:
        particles |= {
            "rlnDefocusU": decimals(ctf.defocus_u_angstrom.numpy()),
            "rlnDefocusV": decimals(ctf.defocus_v_angstrom.numpy()),
            "rlnDefocusAngle": decimals(ctf.defocus_angle_rad.numpy() * (180 / math.pi)),
            "rlnPhaseShift": decimals(ctf.phase_shift_rad.numpy() * (180 / math.pi)),
        }
    return StarTable(optics_block, particles)
