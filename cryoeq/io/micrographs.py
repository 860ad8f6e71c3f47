"""Micrographs star files of RELION."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.io.star import decimals
from cryoeq.io.star_text import text_column, write_blocks


def write_micrographs_star(path: Path, names: Sequence[str], optics: Optics, ctf: CtfParameters) -> None:
    """Write the optics group and the defocus of micrographs, in the format of RELION 3.1.

    Args:
        path: the file to create or replace.
        names: file names of the micrographs.
        optics: the one optics group of all micrographs.
        ctf: one value per micrograph.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    optics_numbers = {
        "rlnMicrographPixelSize": optics.pixel_size_angstrom,
        "rlnVoltage": optics.voltage_kv,
        "rlnSphericalAberration": optics.spherical_aberration_mm,
        "rlnAmplitudeContrast": optics.amplitude_contrast,
    }
    optics_block = {
        "rlnOpticsGroupName": text_column([optics.name]),
        "rlnOpticsGroup": text_column(["1"]),
        **{label: text_column([f"{value:.6f}"]) for label, value in optics_numbers.items()},
    }
    micrographs = {
        "rlnMicrographName": text_column(names),
        "rlnOpticsGroup": np.full(len(names), "1"),
        "rlnDefocusU": decimals(ctf.defocus_u_angstrom.numpy()),
        "rlnDefocusV": decimals(ctf.defocus_v_angstrom.numpy()),
        "rlnDefocusAngle": decimals(ctf.defocus_angle_rad.rad2deg().numpy()),
    }
    write_blocks(path, {"optics": optics_block, "micrographs": micrographs})
