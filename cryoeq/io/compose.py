"""New star files of simulated particles: the inverse of ``read_optics`` and ``read_ctf``."""

import math

import numpy as np

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.io.star import StarTable, decimals
from cryoeq.io.star_text import Text, text_column


def compose_star(stack_name: str, count: int, box_size_px: int, optics: Optics, ctf: CtfParameters | None) -> StarTable:
    """RELION 3.1 table of all images of one stack and one optics group, without poses.

    Args:
        stack_name: name of the ``.mrcs`` file in the star file.
        count: number of images in the stack.
        box_size_px: side of the images.
        optics: the one optics group.
        ctf: CTF parameters, one value per image; None leaves the defocus columns out.
    """
    numbers = {
        "rlnMicrographOriginalPixelSize": optics.pixel_size_angstrom,
        "rlnVoltage": optics.voltage_kv,
        "rlnSphericalAberration": optics.spherical_aberration_mm,
        "rlnAmplitudeContrast": optics.amplitude_contrast,
        "rlnImagePixelSize": optics.pixel_size_angstrom,
    }
    optics_block: dict[str, Text] = {
        "rlnOpticsGroupName": np.array([optics.name]),
        "rlnOpticsGroup": np.array(["1"]),
        **{column: np.array([f"{value:.6f}"]) for column, value in numbers.items()},
        "rlnImageSize": np.array([str(box_size_px)]),
        "rlnImageDimensionality": np.array(["2"]),
    }
    particles: dict[str, Text] = {
        "rlnImageName": text_column([f"{number:06d}@{stack_name}" for number in range(1, count + 1)]),
        "rlnMicrographName": np.full(count, f"{optics.name}.mrc"),
        "rlnOpticsGroup": np.full(count, "1"),
    }
    if ctf is not None:
        particles |= {
            "rlnDefocusU": decimals(ctf.defocus_u_angstrom.numpy()),
            "rlnDefocusV": decimals(ctf.defocus_v_angstrom.numpy()),
            "rlnDefocusAngle": decimals(ctf.defocus_angle_rad.numpy() * (180 / math.pi)),
            "rlnPhaseShift": decimals(ctf.phase_shift_rad.numpy() * (180 / math.pi)),
        }
    return StarTable(optics_block, particles)
