"""Micrographs star files: what an independent reader finds in them."""

from pathlib import Path

import starfile
import torch

from cryoeq.domain.optics import Optics
from cryoeq.io.micrographs import write_micrographs_star
from cryoeq.simulation.particles import DefocusRange, draw_ctf


def test_a_micrographs_star_holds_optics_and_defocus(tmp_path: Path, generator: torch.Generator) -> None:
    optics = Optics("simulated", 1.25, 300.0, 2.7, 0.1)
    ctf = draw_ctf(3, optics, DefocusRange(8000.0, 22000.0, 300.0), generator)
    names = ["micrograph_001.mrc", "with space.mrc", "micrograph_003.mrc"]
    write_micrographs_star(tmp_path / "micrographs.star", names, optics, ctf)
    tables = starfile.read(tmp_path / "micrographs.star", always_dict=True)
    assert tables["optics"].iloc[0].to_dict() == {
        "rlnOpticsGroupName": "simulated",
        "rlnOpticsGroup": 1,
        "rlnMicrographPixelSize": 1.25,
        "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
    }
    micrographs = tables["micrographs"]
    assert list(micrographs["rlnMicrographName"]) == names
    assert set(micrographs["rlnOpticsGroup"]) == {1}
    for label, values in (
        ("rlnDefocusU", ctf.defocus_u_angstrom),
        ("rlnDefocusV", ctf.defocus_v_angstrom),
        ("rlnDefocusAngle", ctf.defocus_angle_rad.rad2deg()),
    ):
        torch.testing.assert_close(torch.tensor(micrographs[label].to_numpy()).float(), values, rtol=1e-6, atol=1e-5)
