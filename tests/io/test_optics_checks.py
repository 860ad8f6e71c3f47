"""Values that no microscope has are refused with their place and likely unit, doubtful ones are warned of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryoeq.domain.events import Remark
from cryoeq.errors import ParticleFileError
from cryoeq.io.particles import ParticleStack, read_particles, write_particle_star

Make = Callable[..., Path]
Open = Callable[..., ParticleStack]


@pytest.fixture
def opened(make_stack: Make, make_star: Make) -> Open:
    """Opens a star file with these columns."""
    make_stack()
    return lambda **columns: read_particles(make_star(**columns))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("rlnVoltage", "300000", "write 300 kV"),
        ("rlnVoltage", "0.3", "write 300 kV"),
        ("rlnVoltage", "0", "60 to 1500 kV"),
        ("rlnVoltage", "-300", "60 to 1500 kV"),
        ("rlnSphericalAberration", "2.7e6", "in nm, write 2.7 mm"),
        ("rlnSphericalAberration", "2700", "in µm, write 2.7 mm"),
        ("rlnSphericalAberration", "2.7e7", "in Å, write 2.7 mm"),
        ("rlnAmplitudeContrast", "10", "in percent, write 0.1"),
        ("rlnAmplitudeContrast", "-0.1", "0 to 1"),
    ],
)
def test_optics_that_no_microscope_has(opened: Open, column: str, value: str, said: str) -> None:
    optics = {"rlnOpticsGroup": ["7", "2"], "rlnOpticsGroupName": ["a", "b"], column: ["", value]}
    optics[column][0] = {"rlnVoltage": "200", "rlnSphericalAberration": "0", "rlnAmplitudeContrast": "0.07"}[column]
    groups = ["7", "7", "2", "2"]
    with pytest.raises(ParticleFileError, match=said) as raised:
        opened(optics=optics, rlnOpticsGroup=groups)
    assert f"optics group 2: {column} is {value}" in str(raised.value)
    assert opened(optics=optics, rlnOpticsGroup="7").notes == (), "no particle is of the other group"


def test_a_table_of_relion_3_0_is_refused_by_its_row(opened: Open, tmp_path: Path) -> None:
    columns = {"rlnVoltage": ["300", "300", "300000", "300"], "rlnSphericalAberration": "2.7"}
    path = tmp_path / "old.star"
    rows = [f"{i + 1}@stack.mrcs 1e4 1e4 0 {columns['rlnVoltage'][i]} 2.7 0.1 2.0" for i in range(4)]
    labels = ("ImageName", "DefocusU", "DefocusV", "DefocusAngle", "Voltage", "SphericalAberration")
    labels += ("AmplitudeContrast", "PixelSize")
    path.write_text("data_\nloop_\n" + "".join(f"_rln{name}\n" for name in labels) + "\n".join(rows) + "\n")
    opened()
    with pytest.raises(ParticleFileError, match="row 3: rlnVoltage is 300000"):
        read_particles(path)
    assert read_particles(path, ignore_ctf=True).table.ctf is None


def test_a_defocus_in_micrometres_is_refused_in_whole_groups_only(opened: Open) -> None:
    with pytest.raises(ParticleFileError, match=r"row 1: rlnDefocusU is 1\.5.*write 15000 Å"):
        opened(rlnDefocusU="1.5", rlnDefocusV="1.45")
    two = {"rlnOpticsGroup": ["1", "2"], "rlnOpticsGroupName": ["a", "b"]}
    with pytest.raises(ParticleFileError, match=r"row 3: rlnDefocusU is 1\.5"):
        opened(
            optics=two,
            rlnOpticsGroup=["1", "1", "2", "2"],
            rlnDefocusU=["1e4", "1e4", "1.5", "1.2"],
            rlnDefocusV=["1e4", "1e4", "1.5", "1.2"],
        )
    (note,) = opened(rlnDefocusU=["1e4", "2e4", "50", "3e4"], rlnDefocusV=["1e4", "2e4", "40", "3e4"]).notes
    assert "below 1,000 Å or negative in 1 of 4 rows, first in row 3 (40)" in note


def test_a_phase_plate_close_to_focus_is_read(opened: Open) -> None:
    (note,) = opened(rlnDefocusU="80", rlnDefocusV="50", rlnPhaseShift="90").notes
    assert "in 4 of 4 rows, first in row 1 (50): phase plate" in note


def test_how_images_were_stored_is_no_warning(opened: Open) -> None:
    for flag in ("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"):
        (note,) = opened(optics={flag: "1"}).notes
        assert isinstance(note, Remark)
    (doubt,) = opened(rlnDefocusU="500").notes
    assert not isinstance(doubt, Remark)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"rlnDefocusU": "-15000", "rlnDefocusV": "-15000"}, "negative in 4 of 4 rows, first in row 1 (-15000)"),
        ({"rlnDefocusU": ["1e4", "2e5", "1e4", "1e4"]}, "above 100,000 Å in 1 of 4 rows, first in row 2"),
        ({"optics": {"rlnAmplitudeContrast": "1"}}, "rlnAmplitudeContrast is above 0.5"),
        ({"rlnPhaseShift": ["90", "90", "90", "5400"]}, "rlnPhaseShift is no angle"),
        ({"rlnCtfScalefactor": ["1", "0", "1", "1"]}, "rlnCtfScalefactor is zero or negative in 1 of 4 rows"),
        ({"optics": {"rlnImagePixelSize": "0.2"}}, "is the pixel size in nm? Then give --angpix 2"),
        ({"optics": {"rlnImagePixelSize": "775"}}, "is the pixel size in pm? Then give --angpix 7.75"),
    ],
)
def test_doubtful_values_are_read_with_a_warning(opened: Open, columns: dict[str, object], said: str) -> None:
    (note,) = opened(**columns).notes
    assert said in note


@pytest.mark.parametrize("column", ["rlnDefocusU", "rlnDefocusV", "rlnCtfBfactor"])
def test_absurd_values_are_refused_by_row(opened: Open, column: str) -> None:
    with pytest.raises(ParticleFileError, match=f"row 3: {column} is -1e8"):
        opened(**{column: ["1e4", "1e4", "-1e8", "1e4"]})


@pytest.mark.parametrize("phase_shift", ["-180", "0", "90", "360"])
def test_sound_values_make_no_note(opened: Open, phase_shift: str) -> None:
    optics = {"rlnVoltage": "120", "rlnSphericalAberration": "-0.01", "rlnAmplitudeContrast": "0"}
    assert opened(optics=optics, rlnPhaseShift=phase_shift).notes == ()


@pytest.mark.parametrize(
    ("column", "field"),
    [("rlnCtfDataAreCtfPremultiplied", "is_premultiplied"), ("rlnCtfDataArePhaseFlipped", "is_phase_flipped")],
)
def test_flags_of_groups_and_of_particles(opened: Open, column: str, field: str) -> None:
    plain = opened().table
    assert plain.ctf is not None
    assert getattr(plain.ctf, field).sum() == 0
    groups = {"rlnOpticsGroup": ["3", "1"], "rlnOpticsGroupName": ["a", "b"], column: ["1", "0"]}
    for columns in ({"optics": groups, "rlnOpticsGroup": ["3", "1", "3", "1"]}, {column: ["1", "0", "1", "0"]}):
        stack = opened(**columns)
        assert stack.table.ctf is not None
        assert getattr(stack.table.ctf, field).tolist() == [1, 0, 1, 0]
        assert any(column in note for note in stack.notes)
        assert any(group.is_ctf_premultiplied for group in stack.table.optics) == (field == "is_premultiplied")


def test_the_optimiser_beside_its_data_says_that_phases_are_flipped(
    make_stack: Make, make_star: Make, tmp_path: Path
) -> None:
    make_stack()
    path = make_star(name="run_it025_data.star")
    optimiser = tmp_path / "run_it025_optimiser.star"
    for value, count in (("0", 0), ("1", 4)):
        optimiser.write_text(f"data_optimiser_general\n\n_rlnDoCorrectCtf   1\n_rlnCtfDataArePhaseFlipped   {value}\n")
        stack = read_particles(path)
        assert stack.table.ctf is not None
        assert int(stack.table.ctf.is_phase_flipped.sum()) == count
    write_particle_star(tmp_path / "elsewhere.star", stack.star, None)
    again = read_particles(tmp_path / "elsewhere.star").table.ctf
    assert again is not None
    assert int(again.is_phase_flipped.sum()) == 4, "it is kept in what is written"


def test_a_value_of_cryosparc_is_named_by_its_field(tmp_path: Path, make_stack: Make) -> None:
    make_stack()
    types = [("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]
    types += [
        (f"ctf/{name}", "<f4") for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad")
    ]
    fields = np.zeros(4, types)
    fields["blob/path"], fields["blob/idx"], fields["blob/psize_A"] = b"stack.mrcs", np.arange(4), 2.0
    fields["ctf/df1_A"] = fields["ctf/df2_A"] = 1e4
    fields["ctf/accel_kv"], fields["ctf/cs_mm"], fields["ctf/amp_contrast"] = 300, 2.7, 0.1
    fields["ctf/accel_kv"][2] = 3e5
    np.save(tmp_path / "p.npy", fields)
    path = (tmp_path / "p.npy").rename(tmp_path / "p.cs")
    with pytest.raises(ParticleFileError, match="row 3: ctf/accel_kv is 300000"):
        read_particles(path)
