"""One note on aberrations that are stated and not modelled, none where they are zero."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryoeq.io.aberrations import cs_aberration_notes
from cryoeq.io.particles import read_particles

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"rlnBeamTiltX": "1.5"}, ["beam tilt (rlnBeamTiltX 1.5)"]),
        ({"rlnOddZernike": "[0,0,0,0,0.3,0.1]"}, ["odd aberrations (rlnOddZernike [0,0,0,0,0.3,0.1])"]),
        ({"rlnEvenZernike": "[0,1e-3]"}, ["even aberrations"]),
        ({"rlnMagMat00": "1.04", "rlnMagMat11": "0.96"}, ["anisotropic magnification (rlnMagMat00 1.04"]),
        ({"rlnBeamTiltX": "-1", "rlnMagMat01": "0.01"}, ["beam tilt", "anisotropic magnification"]),
        ({"rlnBeamTiltX": "0", "rlnBeamTiltY": "0.000000", "rlnOddZernike": "[0,0,0]", "rlnEvenZernike": "[]"}, []),
        ({"rlnMagMat00": "1", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "1.000000"}, []),
        ({"rlnMagMat00": "0", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "0"}, []),
    ],
)
def test_one_note_on_what_is_not_modelled(
    make_stack: Make, make_star: Make, columns: dict[str, str], said: list[str]
) -> None:
    make_stack()
    for changes in ({"optics": columns}, columns):
        notes = read_particles(make_star(**changes)).notes
        assert len(notes) == bool(said)
        assert all(text in notes[0] for text in said)


def test_groups_without_particles_do_not_count(make_stack: Make, make_star: Make) -> None:
    make_stack()
    optics = {"rlnOpticsGroup": ["1", "2"], "rlnOpticsGroupName": ["a", "b"], "rlnBeamTiltX": ["0", "2"]}
    assert read_particles(make_star(optics=optics, rlnOpticsGroup="1")).notes == ()
    (note,) = read_particles(make_star(optics=optics, rlnOpticsGroup=["1", "1", "2", "1"])).notes
    assert "rlnBeamTiltX 0 to 2" in note


def test_fields_of_cryosparc() -> None:
    names = ("tilt_A", "shift_A", "trefoil_A", "tetra_A", "anisomag")
    fields = np.zeros(3, [(f"ctf/{name}", "<f4", (4,)) for name in names])
    assert cs_aberration_notes(Path("p.cs"), fields) == ()
    fields["ctf/trefoil_A"][1, 0] = 1500
    fields["ctf/anisomag"][:, 3] = 0.01
    (note,) = cs_aberration_notes(Path("p.cs"), fields)
    assert "trefoil (ctf/trefoil_A [0,0,0,0] to [1500,0,0,0])" in note
    assert "anisotropic magnification (ctf/anisomag [0,0,0,0.01])" in note
    assert "tilt_A" not in note
