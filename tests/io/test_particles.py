"""Particle files, in and out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.domain.pose import Poses
from cryoeq.errors import OutputError, ParticleFileError
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.io.labels import JUNK_PROBABILITY
from cryoeq.io.optics import star_box_angstrom
from cryoeq.io.particles import read_particles, star_half_set, star_pixel_size, star_poses, write_particle_star
from cryoeq.io.star import StarTable, read_star
from cryoeq.physics.ctf import with_defocus_moved

Make = Callable[..., Path]
ALL = torch.arange(4)


def _noise(n: int = 4, box: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, box, box)).astype(np.float32)


# Reading


def test_a_star_of_relion31(make_star: Make, make_stack: Make) -> None:
    images = _noise()
    make_stack(images=images)
    path = make_star(rlnPhaseShift="90", rlnCtfBfactor=["1", "2", "3", "4"])
    stack = read_particles(path)
    table, ctf = stack.table, stack.table.ctf
    assert (len(table), table.box_size_px, table.pixel_size_angstrom) == (4, 16, 2.0)
    assert (table.poses, table.half_set, stack.notes) == (None, None, ())
    assert ctf is not None
    torch.testing.assert_close(ctf.defocus_u_angstrom, torch.tensor([10000.5, 10001.5, 10002.5, 10003.5]))
    torch.testing.assert_close(ctf.defocus_angle_rad, torch.full((4,), np.pi / 4))
    torch.testing.assert_close(ctf.phase_shift_rad, torch.full((4,), np.pi / 2))
    assert ctf.bfactor_angstrom2.tolist() == [1, 2, 3, 4]
    assert ctf.scale.tolist() == [1] * 4
    assert ctf.voltage_kv.tolist() == [300] * 4
    assert ctf.is_premultiplied.tolist() == [0] * 4
    np.testing.assert_array_equal(stack.images.read(torch.tensor([3, 0])).numpy(), images[[3, 0]])


def test_many_optics_groups_with_any_numbers(make_star: Make, make_stack: Make) -> None:
    make_stack()
    optics = {
        "rlnOpticsGroup": ["7", "2", "40"],
        "rlnOpticsGroupName": ["c", "a", "b"],
        "rlnVoltage": ["300", "200", "120"],
        "rlnCtfDataAreCtfPremultiplied": ["0", "1", "0"],
    }
    stack = read_particles(make_star(optics=optics, rlnOpticsGroup=["40", "7", "2", "7"]))
    assert [group.name for group in stack.table.optics] == ["c", "a", "b"]
    assert stack.table.optics_index.tolist() == [2, 0, 1, 0]
    assert stack.table.ctf is not None
    assert stack.table.ctf.voltage_kv.tolist() == [120, 300, 200, 300]
    assert stack.table.ctf.is_premultiplied.tolist() == [0, 0, 1, 0]
    assert any("multiplied by their CTF" in note for note in stack.notes)


OLD = {"rlnVoltage": ["300", "200", "300", "200"], "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.07"}


def _old_star(path: Path, n: int = 4, **columns: object) -> Path:
    """A star of RELION 3.0: one block, no optics."""
    defocus = {"rlnDefocusU": "1e4", "rlnDefocusV": "9e3", "rlnDefocusAngle": "5"}
    kept = {"rlnImageName": [f"{i + 1}@stack.mrcs" for i in range(n)]} | defocus | OLD | columns
    labels = "".join(f"_{name}\n" for name in kept)
    rows = [" ".join(v[i] if isinstance(v, list) else str(v) for v in kept.values()) for i in range(n)]
    path.write_text(f"data_images\nloop_\n{labels}" + "\n".join(rows) + "\n")
    return path


def test_a_star_of_relion30(tmp_path: Path, make_stack: Make) -> None:
    make_stack()
    columns = {"rlnMagnification": "38168", "rlnDetectorPixelSize": "5", "rlnOriginX": "2", "rlnOriginY": "-1"}
    angles = {"rlnAngleRot": "10", "rlnAngleTilt": "20", "rlnAnglePsi": "30"}
    stack = read_particles(_old_star(tmp_path / "old.star", **columns, **angles), with_poses=True)
    apix = 5e4 / 38168
    assert stack.table.pixel_size_angstrom == pytest.approx(apix, abs=1e-6)
    assert [(group.name, group.voltage_kv) for group in stack.table.optics] == [
        ("opticsGroup1", 300),
        ("opticsGroup2", 200),
    ]
    assert stack.table.optics_index.tolist() == [0, 1, 0, 1]
    assert stack.table.poses is not None
    torch.testing.assert_close(stack.table.poses.shifts_angstrom[0], torch.tensor([2 * apix, -apix]), rtol=1e-5, atol=0)
    write_particle_star(tmp_path / "new.star", stack.star, stack.table.poses)
    new = read_star(tmp_path / "new.star")
    assert new.optics is not None
    assert new.optics["rlnImageSize"].tolist() == ["16", "16"]
    assert new.particles["rlnOriginXAngst"][0] == f"{2 * apix:.6f}"
    assert new.particles["rlnOriginX"].astype(float).tolist() == pytest.approx([2.0] * 4, abs=1e-5)
    assert new.particles["rlnVoltage"].tolist() == OLD["rlnVoltage"]


def test_angpix_fills_in_and_overrides(tmp_path: Path, make_star: Make, make_stack: Make) -> None:
    make_stack()
    old = _old_star(tmp_path / "old.star")
    with pytest.raises(ParticleFileError, match=r"pixel size missing.*--angpix"):
        read_particles(old)
    assert read_particles(old, angpix=1.5).table.pixel_size_angstrom == 1.5
    changed = read_particles(make_star(), angpix=1.5)
    assert changed.table.pixel_size_angstrom == changed.table.optics[0].pixel_size_angstrom == 1.5
    write_particle_star(tmp_path / "out.star", changed.star, None)
    assert star_pixel_size(read_star(tmp_path / "out.star")) == 1.5


def test_a_refined_ctf_comes_back(tmp_path: Path, make_star: Make, make_stack: Make) -> None:
    make_stack()
    stack = read_particles(make_star())
    ctf = with_defocus_moved(stack.table.ctf, torch.linspace(-300, 300, len(stack.table)))
    write_particle_star(tmp_path / "out.star", stack.star, None, ctf=ctf)
    back = read_particles(tmp_path / "out.star").table.ctf
    for field in dataclasses.fields(ctf):
        torch.testing.assert_close(getattr(back, field.name), getattr(ctf, field.name), rtol=1e-5, atol=1e-4)


def test_a_bare_stack(tmp_path: Path, make_stack: Make) -> None:
    images = _noise().astype(np.float16)
    path = make_stack("bare.mrcs", images, angpix=3.0)
    stack = read_particles(path)
    assert (len(stack.table), stack.table.pixel_size_angstrom, stack.table.ctf) == (4, 3.0, None)
    assert any("without CTF" in note for note in stack.notes)
    np.testing.assert_array_equal(stack.images.read(ALL).numpy(), images.astype(np.float32))
    assert read_particles(path, angpix=1.0).table.pixel_size_angstrom == 1.0
    write_particle_star(tmp_path / "out.star", stack.star, None)
    again = read_particles(tmp_path / "out.star", ignore_ctf=True)
    assert torch.equal(again.images.read(ALL), stack.images.read(ALL))
    with pytest.raises(ParticleFileError, match=r"pixel size missing.*--angpix"):
        read_particles(make_stack("unsized.mrcs", images, angpix=0.0))


def test_no_ctf_needs_no_ctf_columns(make_star: Make, make_stack: Make) -> None:
    make_stack()
    path = make_star(rlnDefocusU=None, rlnDefocusV=None, rlnDefocusAngle=None, optics={"rlnVoltage": None})
    assert read_particles(path, ignore_ctf=True).table.ctf is None


def test_poses_only_when_asked_for(make_star: Make, make_stack: Make) -> None:
    make_stack()
    path = make_star(rlnAngleRot="x", rlnRandomSubset="3")
    assert read_particles(path).table.poses is None
    with pytest.raises(ParticleFileError, match="row 1: rlnAngleRot is 'x'"):
        read_particles(path, with_poses=True)
    with pytest.raises(ParticleFileError, match="row 1: rlnRandomSubset is 3"):
        star_half_set(read_star(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rlnAngleTilt": ["0", "1e39", "0", "0"]}, "row 2: rlnAngleTilt is 1e\\+39"),
        ({"rlnOriginXAngst": ["0", "0", "0", "-1e9"]}, "row 4: rlnOriginXAngst is -1e\\+09"),
        ({"rlnOriginX": ["0", "1e6", "0", "0"]}, "row 2: rlnOriginX is 1e\\+06"),
    ],
)
def test_what_is_no_angle_and_no_origin_is_named(
    make_star: Make, make_stack: Make, changes: dict[str, object], said: str
) -> None:
    make_stack()
    poses: dict[str, object] = {"rlnAngleRot": "0", "rlnAngleTilt": "0", "rlnAnglePsi": "-3600"}
    with pytest.raises(ParticleFileError, match=said):
        read_particles(make_star(**(poses | changes)), with_poses=True)


def test_origins_outside_of_the_images_are_doubted(make_star: Make, make_stack: Make) -> None:
    make_stack()
    poses: dict[str, object] = {"rlnAngleRot": "0", "rlnAngleTilt": "10", "rlnAnglePsi": "0"}
    inside = read_particles(make_star(**poses, rlnOriginXAngst="15.9"), with_poses=True)
    outside = read_particles(make_star(**poses, rlnOriginYAngst=["0", "16.5", "0", "-99"]), with_poses=True)
    (note,) = set(outside.notes) - set(inside.notes)
    assert "origins of 2 particles are beyond half the box, the first is row 2 (0, 16.5 Å)" in note


# Bad input


@pytest.mark.parametrize("column", ["rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"])
def test_a_missing_column_is_named(make_star: Make, make_stack: Make, column: str) -> None:
    make_stack()
    with pytest.raises(ParticleFileError, match=rf"particles\.star.*: column {column} is missing"):
        read_particles(make_star(**{column: None}))


@pytest.mark.parametrize("column", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"])
def test_a_missing_microscope_parameter_is_named(make_star: Make, make_stack: Make, column: str) -> None:
    make_stack()
    with pytest.raises(ParticleFileError, match=f"optics column {column} is missing"):
        read_particles(make_star(optics={column: None}))


BAD_ROWS = [
    ({"rlnDefocusU": ["1", "2", "oops", "4"]}, "row 3: rlnDefocusU is 'oops'"),
    ({"rlnDefocusV": ["1", "nan", "3", "4"]}, "row 2: rlnDefocusV is 'nan'"),
    ({"rlnDefocusV": ["1e4", "1_0000", "1e4", "1e4"]}, "row 2: rlnDefocusV is '1_0000'"),
    ({"rlnImageName": ["1@stack.mrcs", "x@stack.mrcs", "3@stack.mrcs", "4@stack.mrcs"]}, "row 2: rlnImageName is"),
    ({"rlnImageName": ["1@stack.mrcs", "2@stack.mrcs", "3@stack.mrcs", "5@stack.mrcs"]}, "row 4: image 5 .* holds 4"),
    ({"rlnImageName": ["1@stack.mrcs", "0@stack.mrcs", "3@stack.mrcs", "4@stack.mrcs"]}, "row 2: image 0"),
    (
        {"rlnImageName": ["1@stack.mrcs", f"{2**63}@stack.mrcs"] + ["1@stack.mrcs"] * 2},
        f"row 2: rlnImageName is {2**63}",
    ),
    ({"rlnImageName": ["1@stack.mrcs", f"{2**64 - 1}@stack.mrcs"] + ["1@stack.mrcs"] * 2}, "row 2: rlnImageName is"),
    ({"rlnImageName": ["000@stack.mrcs"] * 4}, "row 1: image 0 .*counted from 1"),
    ({"rlnImageName": ["1@stack.mrcs", "@stack.mrcs", "1@stack.mrcs", "1@stack.mrcs"]}, "row 2: rlnImageName is"),
    ({"rlnImageName": ["38043.769531"] * 4}, "a number, not a file: check that the columns"),
    ({"rlnOpticsGroup": ["1", "1", "2", "1"]}, "row 3: optics group 2 is not"),
    ({"optics": {"rlnImagePixelSize": "0"}}, "pixel size is 0"),
    ({"optics": {"rlnImagePixelSize": "-1"}}, "pixel size is -1"),
    ({"optics": {"rlnImagePixelSize": "1e-320"}}, "pixel size is 9.99989e-321. Expected 0.01 to 1000 Å"),
    ({"optics": {"rlnImagePixelSize": "nan"}}, "rlnImagePixelSize|pixel size is nan"),
    ({"optics": {"rlnImagePixelSize": None}}, "pixel size missing"),
    ({"optics": {"rlnImageSize": "32"}}, "rlnImageSize of the optics groups is 32 px, the images are 16 px"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_ROWS)
def test_a_bad_value_is_named_by_its_row(
    make_star: Make, make_stack: Make, changes: dict[str, object], said: str
) -> None:
    make_stack()
    with pytest.raises(ParticleFileError, match=said):
        read_particles(make_star(**changes))


def test_optics_groups_that_differ(make_star: Make, make_stack: Make) -> None:
    make_stack()
    two = {"rlnOpticsGroup": ["1", "2"], "rlnOpticsGroupName": ["a", "b"]}
    half = {"rlnOpticsGroup": ["1", "1", "2", "2"]}
    with pytest.raises(ParticleFileError, match=r"pixel sizes differ \(1.24, 1.25 Å\)"):
        read_particles(make_star(optics=two | {"rlnImagePixelSize": ["1.25", "1.24"]}, **half))
    with pytest.raises(ParticleFileError, match="rlnImageSize of the optics groups is 16, 32 px"):
        read_particles(make_star(optics=two | {"rlnImageSize": ["16", "32"]}, **half))
    with pytest.raises(ParticleFileError, match="column rlnOpticsGroup is missing"):
        read_particles(make_star(optics=two, rlnOpticsGroup=None))


OF_ANOTHER = {
    "rlnImagePixelSize": "3.9",
    "rlnVoltage": "None",
    "rlnImageSize": "64",
    "rlnSphericalAberration": "nan",
    "rlnImageDimensionality": "3",
    "rlnCtfDataAreCtfPremultiplied": "1",
}


@pytest.mark.parametrize("place", [0, 1])
def test_optics_groups_without_particles_do_not_count(make_star: Make, make_stack: Make, place: int) -> None:
    """Those of a selection: whatever they say, the particles are read as without them, and they are written again."""
    make_stack()
    own = {"rlnImagePixelSize": "2.0", "rlnVoltage": "300", "rlnImageSize": "16", "rlnSphericalAberration": "2.7"}
    own |= {"rlnImageDimensionality": "2", "rlnCtfDataAreCtfPremultiplied": "0"}
    number = str(2 - place)
    optics = {key: [own[key], OF_ANOTHER[key]] if place else [OF_ANOTHER[key], own[key]] for key in own}
    optics |= {"rlnOpticsGroup": ["1", "2"], "rlnOpticsGroupName": ["a", "b"], "rlnAmplitudeContrast": ["0.1", "0.1"]}
    alone = read_particles(make_star(optics=own, name="alone.star"))
    stack = read_particles(make_star(optics=optics, rlnOpticsGroup=number))
    assert stack.notes == ()
    assert (stack.table.pixel_size_angstrom, len(stack.table.optics)) == (2.0, 1)
    assert stack.table.ctf is not None
    assert alone.table.ctf is not None
    fields = zip(vars(stack.table.ctf).values(), vars(alone.table.ctf).values(), strict=True)
    assert all(one is other is None or torch.equal(one, other) for one, other in fields)
    assert stack.star.optics is not None
    assert stack.star.optics["rlnVoltage"].tolist() == optics["rlnVoltage"]
    assert star_box_angstrom(stack.star) == 32.0
    assert star_pixel_size(read_star(stack.star.path)) == 2.0


def test_an_empty_optics_table(make_star: Make, make_stack: Make) -> None:
    make_stack()
    path = make_star()
    text = path.read_text()
    row = text[text.index("1  og1") :].partition("\n")[0]
    path.write_text(text.replace(row, "", 1))
    with pytest.raises(ParticleFileError, match="row 1: optics group 1 is not in the optics block"):
        read_particles(path)


def test_repeated_optics_groups_are_named(make_star: Make, make_stack: Make) -> None:
    make_stack()
    optics = {"rlnOpticsGroup": ["3", "1", "1"], "rlnOpticsGroupName": ["a", "b", "c"]}
    with pytest.raises(ParticleFileError, match="optics group 1 is in rows 2 and 3 of data_optics"):
        read_particles(make_star(optics=optics))
    assert len(read_particles(make_star(optics=optics, rlnOpticsGroup="3")).table.optics) == 1


def test_a_bad_value_of_a_group_is_named_by_its_group(make_star: Make, make_stack: Make) -> None:
    make_stack()
    optics = {"rlnOpticsGroup": ["5", "7"], "rlnOpticsGroupName": ["a", "b"], "rlnVoltage": ["300", "x"]}
    with pytest.raises(ParticleFileError, match="optics group 7: rlnVoltage is 'x'"):
        read_particles(make_star(optics=optics, rlnOpticsGroup=["5", "7", "5", "7"]))


def test_in_plane_angles_are_no_orientations(make_star: Make, make_stack: Make) -> None:
    make_stack()
    psi = {"rlnAnglePsi": ["10", "20", "30", "40"], "rlnAngleRot": "0.000"}
    flat = make_star(**psi, rlnAngleTilt="0", name="flat.star")
    tilted = make_star(**psi, rlnAngleTilt=["0", "0", "0", "1"], name="tilted.star")
    assert ["2D classification" in note for note in read_particles(flat, with_poses=True).notes] == [True]
    assert read_particles(tilted, with_poses=True).notes == ()
    assert read_particles(flat).notes == ()
    with pytest.raises(ParticleFileError, match=r"rlnAngleRot is missing.*let cryoeq infer them"):
        read_particles(make_star(rlnAngleRot=None), with_poses=True)


def test_boxes_that_differ_are_odd_or_tiny(make_star: Make, make_stack: Make) -> None:
    make_stack("a.mrcs", _noise(4, 16))
    make_stack("b.mrcs", _noise(4, 18))
    names = ["1@a.mrcs", "1@b.mrcs", "2@a.mrcs", "2@b.mrcs"]
    with pytest.raises(
        ParticleFileError, match=r"box sizes differ: .*a\.mrcs holds images of 16 px, .*b\.mrcs of 18 px"
    ):
        read_particles(make_star(rlnImageName=names))
    with pytest.raises(ParticleFileError, match=r"images of 17 px.*even box.*Crop the images to 16 px"):
        read_particles(make_stack("odd.mrcs", _noise(4, 17)))
    with pytest.raises(ParticleFileError, match=r"images of 14 px.*at least 16 px"):
        read_particles(make_stack("tiny.mrcs", _noise(4, 14)))


def test_nan_pixels_are_counted_and_the_first_image_named(make_star: Make, make_stack: Make) -> None:
    images = _noise()
    images[2, 3, 4], images[3, 0, :2] = np.nan, np.inf
    make_stack(images=images)
    stack = read_particles(make_star())
    stack.images.read(torch.tensor([0, 1]))
    with pytest.raises(
        ParticleFileError, match=r"3 pixels .* in 2 of the 4 images read; the first is image 3 \(row 3\)"
    ):
        stack.images.read(ALL)


def test_unknown_files(tmp_path: Path) -> None:
    for name in ("none.star", "none.mrcs"):
        with pytest.raises(ParticleFileError, match="does not exist"):
            read_particles(tmp_path / name)


# Writing


def test_every_column_comes_back_in_order(
    tmp_path: Path, make_star: Make, make_stack: Make, generator: torch.Generator
) -> None:
    make_stack()
    odd = {"rlnAnglePsi": "1.0", "wrpMadeUp": ["nan", "007", "1e-3", "-0"], "rlnAngleTiltPrior": "12.340000"}
    path = make_star(optics={"rlnMtfFileName": "k3.star", "rlnImagePixelSize": "2.000"}, **odd)
    stack = read_particles(path)
    poses = Poses(random_rotations(4, generator), torch.tensor([[1.5, -2.25]] * 4))
    out = tmp_path / "run_data.star"
    extra = {"rlnParticleFigureOfMerit": np.array([0.5, 0.25, 1.0, 0.125])}
    write_particle_star(out, stack.star, poses, half_set=torch.tensor([1, 2, 1, 2]), extra_columns=extra)
    before, after = read_star(path), read_star(out)
    kept = [column for column in before.particles if column != "rlnAnglePsi"]
    assert list(after.particles)[: len(before.particles)] == list(before.particles)
    assert all(after.particles[column].tolist() == before.particles[column].tolist() for column in kept)
    assert before.optics is not None
    assert after.optics is not None
    assert all(after.optics[column].tolist() == before.optics[column].tolist() for column in before.optics)
    needed = {"rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality"}
    assert needed | {"rlnOpticsGroup", "rlnOpticsGroupName"} <= after.optics.keys()
    back = star_poses(after)
    assert rotation_angle_rad(back.rotations, poses.rotations).max() < 1e-6
    torch.testing.assert_close(back.shifts_angstrom, poses.shifts_angstrom)
    assert after.particles["rlnRandomSubset"].tolist() == ["1", "2", "1", "2"]
    assert after.floats("rlnParticleFigureOfMerit").tolist() == extra["rlnParticleFigureOfMerit"].tolist()
    assert before.path is not None
    assert read_star(before.path).particles["rlnAnglePsi"].tolist() == ["1.0"] * 4, "the input is as it was"


def test_outdated_columns_are_left_out_unless_they_are_set(tmp_path: Path, make_star: Make, make_stack: Make) -> None:
    make_stack()
    stack = read_particles(make_star(**{JUNK_PROBABILITY: ["0.1", "0.2", "0.3", "0.4"]}))
    probability = torch.tensor([0.5, 0.25, 0.125, 1.0])
    write_particle_star(tmp_path / "kept.star", stack.star, None)
    assert read_star(tmp_path / "kept.star").floats(JUNK_PROBABILITY).tolist() == [0.1, 0.2, 0.3, 0.4]
    write_particle_star(tmp_path / "left.star", stack.star, None, outdated=(JUNK_PROBABILITY,))
    assert read_star(tmp_path / "left.star").particles.keys() == stack.star.particles.keys() - {JUNK_PROBABILITY}
    write_particle_star(
        tmp_path / "set.star", stack.star, None, junk_probability=probability, outdated=(JUNK_PROBABILITY,)
    )
    assert read_star(tmp_path / "set.star").floats(JUNK_PROBABILITY).tolist() == probability.tolist()


def test_writing_does_not_change_its_arguments(tmp_path: Path) -> None:
    star = StarTable(None, {"rlnImageName": np.array(["1@a.mrcs"]), "rlnPixelSize": np.array(["2.0"])})
    write_particle_star(tmp_path / "o.star", star, Poses(torch.eye(3)[None], torch.zeros(1, 2)))
    assert list(star.particles) == ["rlnImageName", "rlnPixelSize"]
    assert star.optics is None


def test_output_that_cannot_be_written_or_does_not_fit(tmp_path: Path, make_star: Make, make_stack: Make) -> None:
    make_stack()
    star = read_particles(make_star()).star
    with pytest.raises(OutputError, match="folder does not exist"):
        write_particle_star(tmp_path / "none" / "o.star", star, None)
    with pytest.raises(ValueError, match="3 values of rlnAngleRot for 4 particles"):
        write_particle_star(tmp_path / "o.star", star, Poses(torch.eye(3).repeat(3, 1, 1), torch.zeros(3, 2)))


# Files of others


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "angpix", "n", "box", "pixel_size", "n_notes"),
    [
        ("relion_1wcm/particles.star", None, 1000, 64, 3.75, 0),
        ("bench_6msm/s01sh/particles.star", None, 2000, 32, 6.0, 0),
        ("real_70s_tilts/particles.star", None, 1430, 32, 12.0, 1),
        ("empiar_10076_seven/empiar_10076_7.star", None, 7, 320, 5e4 / 38168, 0),
        ("relion31_segments/relion31.star", None, 5, 256, 2.806, 1),
        ("toy_cryodrgn/toy_projections.star", 1.5, 1000, 30, 1.5, 2),
    ],
)
def test_real_files(
    reference_data: Path, name: str, angpix: float | None, n: int, box: int, pixel_size: float, n_notes: int
) -> None:
    stack = read_particles(reference_data / name, angpix=angpix)
    assert (len(stack.table), stack.table.box_size_px, len(stack.notes)) == (n, box, n_notes)
    assert stack.table.pixel_size_angstrom == pytest.approx(pixel_size, abs=1e-6)
    assert stack.images.read(torch.tensor([0, n - 1])).std() > 0.1


@pytest.mark.realdata
def test_real_pixel_sizes(reference_data: Path) -> None:
    with pytest.raises(ParticleFileError, match=r"pixel sizes differ \(1.24, 1.25 Å\)"):
        star_pixel_size(read_star(reference_data / "relion31_segments" / "relion31.6opticsgroups.star"))
    with pytest.raises(ParticleFileError, match="pixel size missing"):
        read_particles(reference_data / "toy_cryodrgn" / "toy_projections.star")
