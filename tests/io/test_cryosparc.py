"""cryoSPARC's tables: the conventions of poses, shifts and CTF, and that they come back as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoeq.cli.main import run
from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.cryosparc import read_cs, write_cs
from cryoeq.io.particles import read_particles, star_half_set, star_poses
from cryoeq.io.star import read_star
from cryoeq.physics.ctf import with_defocus_moved

FIELDS: list[Any] = [
    ("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"), ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/pose", "<f4", (3,)), ("alignments3D/psize_A", "<f4"), ("alignments3D/class", "<u4"),
]  # fmt: skip


def write_table(path: Path, table: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, table)
    return path


def table_of(folder: Path) -> np.ndarray:
    """The particles of ``truth.star`` as cryoSPARC would have them, its shifts counted in larger pixels."""
    star = read_star(folder / "truth.star")
    euler = np.stack([star.floats(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], 1)
    table = np.zeros(len(star), FIELDS)
    table["uid"] = np.arange(len(star), dtype=np.uint64) + np.uint64(2**63)
    table["blob/path"], table["blob/idx"] = ">particles.mrcs", np.arange(len(star))
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 16, 5.0, 1.0
    table["ctf/exp_group_id"] = 7 + np.arange(len(star)) % 2
    for name, value in (("accel_kv", 300.0), ("cs_mm", 2.7), ("amp_contrast", 0.1)):
        table[f"ctf/{name}"] = value
    for field, label in (("df1_A", "rlnDefocusU"), ("df2_A", "rlnDefocusV")):
        table[f"ctf/{field}"] = star.floats(label)
    table["ctf/df_angle_rad"] = np.radians(star.floats("rlnDefocusAngle"))
    table["alignments3D/pose"] = Rotation.from_euler("ZYZ", euler, degrees=True).as_rotvec()
    shifts = np.stack([star.floats(f"rlnOrigin{axis}Angst") for axis in "XY"], 1)
    table["alignments3D/shift"], table["alignments3D/psize_A"] = shifts / 7.5, 7.5
    table["alignments3D/split"] = star.floats("rlnRandomSubset") - 1
    return table


@pytest.fixture
def cs(tmp_path: Path, tiny_particles: Path) -> Path:
    (tmp_path / "particles.mrcs").symlink_to(tiny_particles / "particles.mrcs")
    return write_table(tmp_path / "particles.cs", table_of(tiny_particles))


def test_the_table_says_what_the_star_says(cs: Path, tiny_particles: Path) -> None:
    ours, theirs = (read_particles(path, with_poses=True).table for path in (cs, tiny_particles / "truth.star"))
    assert ours.poses is not None
    assert theirs.poses is not None
    assert torch.rad2deg(rotation_angle_rad(ours.poses.rotations, theirs.poses.rotations)).max() < 1e-4
    torch.testing.assert_close(ours.poses.shifts_angstrom, theirs.poses.shifts_angstrom, rtol=0, atol=1e-5)
    assert torch.equal(ours.half_set, theirs.half_set)
    assert ours.ctf is not None
    assert theirs.ctf is not None
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_rad", "voltage_kv", "amplitude_contrast"):
        torch.testing.assert_close(getattr(ours.ctf, name), getattr(theirs.ctf, name), rtol=1e-6, atol=1e-6)
    assert [group.name for group in ours.optics] == ["exposureGroup7", "exposureGroup8"]
    assert ours.optics_index.tolist() == [0, 1] * 24
    assert (ours.pixel_size_angstrom, ours.box_size_px) == (5.0, 16)


def with_micrographs(table: np.ndarray, names: np.ndarray) -> np.ndarray:
    located = np.zeros(len(table), [("uid", "<u8"), ("location/micrograph_path", "S40")])
    located["uid"], located["location/micrograph_path"] = table["uid"], names
    return located


def test_micrographs_are_those_of_the_table_or_of_what_was_passed_through(cs: Path, tiny_particles: Path) -> None:
    table = table_of(tiny_particles)
    assert read_particles(cs).table.micrograph_index is None
    names = np.array([f">J3/imported/mic_{number // 5}.mrc".encode() for number in range(len(table))])
    located, order = with_micrographs(table, names), np.random.default_rng(0).permutation(len(table))
    beside = cs.with_name("P1_J4_passthrough_particles.cs")
    expected = [number // 5 for number in range(len(table))]

    def numbers(path: Path) -> Any:
        found = read_particles(path).table.micrograph_index
        return None if found is None else found.tolist()

    write_table(beside, located[order[:-1]])
    assert numbers(cs) is None, "it is of other particles"
    beside.write_bytes(b"\x93NUMPY and no more")
    assert numbers(cs) is None
    write_table(beside, located[order])
    assert numbers(cs) == expected
    assert read_cs(cs)[0].particles["rlnMicrographName"][0] == "J3/imported/mic_0.mrc"
    beside.unlink()
    joined = np.zeros(len(table), [*FIELDS, ("location/micrograph_path", "S40")])
    for name in table.dtype.names or ():
        joined[name] = table[name]
    joined["location/micrograph_path"] = names
    assert numbers(write_table(cs, joined)) == expected
    joined["location/micrograph_path"] = b""
    assert numbers(write_table(cs, joined)) is None


def test_poses_come_back_and_all_else_stays(cs: Path, generator: torch.Generator) -> None:
    from cryoeq.geometry.so3 import random_rotations

    before = np.load(cs)
    poses = Poses(random_rotations(48, generator), 10 * torch.randn(48, 2, generator=generator))
    half_set = torch.arange(48) % 2 + 1
    write_cs(cs.with_name("out.cs"), cs, poses, half_set=half_set)
    after, star = np.load(cs.with_name("out.cs")), read_cs(cs.with_name("out.cs"))[0]
    assert set(after.dtype.names) == set(before.dtype.names)
    for name in before.dtype.names:
        if not name.startswith("alignments3D") or name.endswith("class"):
            np.testing.assert_array_equal(after[name], before[name], name)
    back = star_poses(star)
    assert torch.rad2deg(rotation_angle_rad(back.rotations, poses.rotations)).max() < 1e-4
    torch.testing.assert_close(back.shifts_angstrom, poses.shifts_angstrom, rtol=0, atol=1e-4)
    assert torch.equal(star_half_set(star), half_set)


def test_classes_count_from_zero_and_those_of_before_are_gone(cs: Path) -> None:
    """The probability of an earlier class would be believed of the new one."""
    table = np.load(cs)
    kinds: list[Any] = [*FIELDS, ("alignments3D/class_posterior", "<f4"), ("alignments3D/class_ess", "<f4")]
    earlier = np.zeros(len(table), kinds)
    for name in table.dtype.names:
        earlier[name] = table[name]
    earlier["alignments3D/class_posterior"], earlier["alignments3D/class_ess"] = 0.3, 2.5
    write_table(cs, earlier)
    poses, classes = star_poses(read_cs(cs)[0]), torch.arange(48) % 3 + 1
    write_cs(cs.with_name("out.cs"), cs, poses, class_number=classes)
    after = np.load(cs.with_name("out.cs"))
    assert after["alignments3D/class"].tolist() == (classes - 1).tolist()
    assert after.dtype["alignments3D/class"] == np.dtype("<u4")
    assert set(after["alignments3D/class_posterior"]) == set(after["alignments3D/class_ess"]) == {1.0}
    assert read_cs(cs.with_name("out.cs"))[0].floats("rlnClassNumber").tolist() == classes.tolist()
    write_cs(cs.with_name("out.cs"), cs, poses)
    assert set(np.load(cs.with_name("out.cs"))["alignments3D/class_ess"]) == {2.5}, "without classes all stays"


def test_a_refined_ctf_comes_back(cs: Path) -> None:
    read = read_particles(cs)
    ctf = with_defocus_moved(read.table.ctf, torch.linspace(-300, 300, 48))
    write_cs(cs.with_name("out.cs"), cs, star_poses(read_cs(cs)[0]), ctf=ctf)
    back = read_particles(cs.with_name("out.cs")).table.ctf
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_rad", "phase_shift_rad"):
        torch.testing.assert_close(getattr(back, name), getattr(ctf, name), rtol=1e-5, atol=1e-4)


def test_a_table_without_alignments_gets_them(cs: Path) -> None:
    table = np.load(cs)
    bare = table[[name for name in table.dtype.names if not name.startswith("alignments3D")]].copy()
    write_table(cs, bare)
    assert star_half_set(read_cs(cs)[0]) is None
    with pytest.raises(ParticleFileError, match=r"field alignments3D/pose is missing.*let cryoeq infer the poses"):
        star_poses(read_cs(cs)[0])
    write_cs(cs, cs, Poses(torch.eye(3).repeat(48, 1, 1), torch.ones(48, 2)))
    torch.testing.assert_close(star_poses(read_cs(cs)[0]).shifts_angstrom, torch.ones(48, 2))


@pytest.mark.usefixtures("without_pictures")
def test_a_reconstruction_leaves_a_table_too(
    cs: Path, tiny_particles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = cs.with_name("run")
    assert run(["reconstruct", str(cs), "-o", str(output), "--pose-inference", "known", "--both-hands"]) == 0
    said = capsys.readouterr().err
    assert "particles.cs: cryoSPARC takes the protein to be bright" in said
    assert "Warning: particles.cs" not in said
    after, before = np.load(output / "run_data.cs"), table_of(tiny_particles)
    assert after["uid"].tolist() == before["uid"].tolist()
    ours, theirs = (Rotation.from_rotvec(table["alignments3D/pose"]) for table in (after, before))
    assert (ours * theirs.inv()).magnitude().max() < 1e-5
    angstrom = [table["alignments3D/shift"] * table["alignments3D/psize_A"][:, None] for table in (after, before)]
    np.testing.assert_allclose(*angstrom, rtol=0, atol=1e-4)
    assert run(["orientations", str(cs)]) == 0
    as_star, as_table = (star_poses(read(output / f"run_data_mirrored{suffix}")) for suffix, read in (
        (".star", read_star), (".cs", lambda path: read_cs(path)[0])))  # fmt: skip
    torch.testing.assert_close(as_table.rotations, as_star.rotations, atol=1e-4, rtol=0)
    torch.testing.assert_close(as_table.shifts_angstrom, as_star.shifts_angstrom, atol=1e-3, rtol=0)
    assert not np.allclose(np.load(output / "run_data_mirrored.cs")["alignments3D/pose"], after["alignments3D/pose"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x94CSDAT12345678", "is compressed"),
        (b"nothing of the kind", "is text, which begins with"),
        (b"", "is empty"),
        (b"PK\x03\x04", "is a ZIP archive"),
        (b"\x93NUMPY\x01\x00", "is damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': [('uid' ", "is damaged"),
        (b"\x93NUMPY\x01\x00\x38\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", "is damaged"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.cs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ParticleFileError, match=said):
        read_cs(path)


@pytest.mark.parametrize(("name", "said"), [("blob/path", "field blob/path is missing"), (None, "holds no table")])
def test_tables_that_lack_what_is_needed(cs: Path, name: str | None, said: str) -> None:
    table = np.load(cs)
    kept = table[[field for field in table.dtype.names if field != name]].copy() if name else np.zeros(3)
    with pytest.raises(ParticleFileError, match=said):
        read_cs(write_table(cs, kept))


def _with_field(table: np.ndarray, name: str, values: np.ndarray) -> np.ndarray:
    """A table with one field of another type."""
    kept = [(field, table.dtype[field]) for field in table.dtype.names if field != name]
    changed = np.zeros(len(table), [*kept, (name, values.dtype, values.shape[1:])])
    for field, _ in kept:
        changed[field] = table[field]
    changed[name] = values
    return changed


def test_tables_of_other_layouts(cs: Path) -> None:
    table = np.load(cs)
    expected = read_cs(cs)[0]
    layouts = {
        "blob/shape": np.full(48, 16, "<u4"),
        "blob/path": table["blob/path"].astype(np.str_),
        "blob/idx": table["blob/idx"].astype("<u8"),
        "ctf/accel_kv": table["ctf/accel_kv"].astype(">f8"),
        "alignments3D/pose": table["alignments3D/pose"].astype(">f8"),
    }
    for name, values in layouts.items():
        star = read_cs(write_table(cs, _with_field(table, name, values)))[0]
        for ours, theirs in ((star.particles, expected.particles), (star.optics, expected.optics)):
            assert {label: text.tolist() for label, text in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


FIELDS_OF_NUMBERS = ["blob/idx", "blob/psize_A", "ctf/accel_kv", "alignments3D/pose", "alignments3D/split"]


@pytest.mark.parametrize("name", FIELDS_OF_NUMBERS)
def test_fields_of_another_kind_are_named(cs: Path, name: str) -> None:
    table = np.load(cs)
    for values in (np.full(48, b"x", "S4"), np.zeros((48, 2, 2), "<f4")):
        write_table(cs, _with_field(table, name, values))
        with pytest.raises(ParticleFileError, match=rf"field {name} is of type .*were expected.*cryoSPARC"):
            read_cs(cs)


def test_objects_are_not_loaded(cs: Path) -> None:
    write_table(cs, _with_field(np.load(cs), "blob/path", np.full(48, "particles.mrcs", object)))
    with pytest.raises(ParticleFileError, match=r"holds Python objects.*Export the particles from cryoSPARC again"):
        read_cs(cs)


def test_paths_that_are_no_ascii(cs: Path) -> None:
    for raw in ("Größe.mrcs".encode(), b"Gr\xf6\xdfe.mrcs"):
        write_table(cs, _with_field(np.load(cs), "blob/path", np.full(48, b">" + raw, "S40")))
        assert read_cs(cs)[0].particles["rlnImageName"][0].encode("utf-8", "surrogateescape") == b"000001@" + raw


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ("ctf/accel_kv", "field ctf/accel_kv is missing.*pass --no-ctf"),
        ("ctf/df1_A", "field ctf/df1_A is missing"),
        ("alignments3D/pose", "field alignments3D/pose is missing.*There is alignments_class_0/pose"),
        ("alignments3D/psize_A", "field alignments3D/psize_A is missing"),
    ],
)
def test_messages_speak_of_cryosparc(cs: Path, dropped: str, said: str) -> None:
    table = _with_field(np.load(cs), "alignments_class_0/pose", np.zeros((48, 3), "<f4"))
    write_table(cs, table[[name for name in table.dtype.names if name != dropped]].copy())
    with pytest.raises(ParticleFileError, match=said) as caught:
        read_particles(cs, with_poses=True)
    assert not any(word in str(caught.value) for word in ("rln", "star"))


def test_a_pixel_size_of_shifts_that_cannot_be(cs: Path) -> None:
    table = np.load(cs)
    table["alignments3D/psize_A"][3] = -5.0
    write_table(cs, table)
    with pytest.raises(ParticleFileError, match=r"particles\.cs: alignments3D/psize_A is -5"):
        read_particles(cs, with_poses=True)


def test_rotations_that_cannot_be(cs: Path) -> None:
    table = np.load(cs)
    table["alignments3D/pose"][5, 1] = 120.0  # degrees
    write_table(cs, table)
    with pytest.raises(ParticleFileError, match=r"particles\.cs: a value of alignments3D/pose is 120"):
        read_particles(cs, with_poses=True)


def test_values_are_named_by_their_field(cs: Path) -> None:
    table = np.load(cs)
    table["ctf/df1_A"][4] = np.nan
    write_table(cs, table)
    with pytest.raises(ParticleFileError, match=r"particles\.cs, row 5: ctf/df1_A is 'nan'"):
        read_particles(cs)
    table["ctf/df1_A"][4], table["blob/idx"][7] = 1e4, 48
    write_table(cs, table)
    with pytest.raises(ParticleFileError, match=r"row 8: image 49 is beyond .*Check that particles\.cs and stack"):
        read_particles(cs)


@pytest.mark.parametrize(("split", "said"), [([0] * 48, "0 for all particles"), (list(range(48)), "one of 48 numbers")])
def test_splits_that_are_no_half_sets_are_said(cs: Path, split: list[int], said: str) -> None:
    table = np.load(cs)
    table["alignments3D/split"] = split
    star, notes = read_cs(write_table(cs, table))
    assert star_half_set(star) is None
    assert any(f"alignments3D/split is {said}" in note for note in notes)


@pytest.mark.parametrize(
    ("field", "said"), [("location/center_x_frac", "picked particles"), ("micrograph_blob/path", "micrographs")]
)
def test_tables_of_other_things(cs: Path, field: str, said: str) -> None:
    with pytest.raises(ParticleFileError, match=rf"is a table of {said}.*: field blob/path is missing"):
        read_cs(write_table(cs, np.zeros(3, [("uid", "<u8"), (field, "<f4")])))


@pytest.mark.realdata
def test_real_tables_against_an_independent_parse(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "cryosparc_tables"
    path, expected = folder / "cryosparc_P12_J24_001_particles.cs", np.load(folder / "cryosparc_P12_J24_expected.npz")
    star, notes = read_cs(path)
    assert "dark" in notes[0]
    poses = star_poses(star)
    rotations = torch.from_numpy(expected["rotations"])
    assert torch.rad2deg(rotation_angle_rad(poses.rotations, rotations)).max() < 1e-4
    box, pixel = expected["ctf"][0, :2]
    fractions = poses.shifts_angstrom.numpy() / (box * pixel)
    np.testing.assert_allclose(fractions, expected["shifts_box_fraction"], rtol=0, atol=1e-7)
    for column, label in enumerate(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), 2):
        np.testing.assert_allclose(star.floats(label), expected["ctf"][:, column], rtol=1e-6, atol=1e-5)
    for column, label in ((1, "rlnImagePixelSize"), (5, "rlnVoltage"), (6, "rlnSphericalAberration")):
        np.testing.assert_allclose(star.optics_floats(label), expected["ctf"][0, column], rtol=1e-6)
    half_set = star_half_set(star)
    assert half_set is not None
    write_cs(tmp_path / "back.cs", path, poses, half_set=half_set)
    before, after = np.load(path), np.load(tmp_path / "back.cs")
    # Other vectors may stand for the same rotation, since those of cryoSPARC may be longer than pi.
    ours, theirs = (Rotation.from_rotvec(table["alignments3D/pose"]) for table in (after, before))
    assert (ours * theirs.inv()).magnitude().max() < 1e-6
    for name in set(before.dtype.names) - {"alignments3D/pose"}:
        tolerance = 2e-6 if name == "alignments3D/shift" else 0
        if before[name].dtype.kind == "f":
            np.testing.assert_allclose(after[name], before[name], rtol=0, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(after[name], before[name], name)


@pytest.mark.realdata
def test_the_same_particles_as_star_and_as_table(reference_data: Path) -> None:
    folder = reference_data / "empiar_10076_seven"
    ours, theirs = (read_particles(folder / f"empiar_10076_7.{suffix}").table for suffix in ("cs", "star"))
    assert ours.ctf is not None
    assert theirs.ctf is not None
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle_rad", "amplitude_contrast"):
        torch.testing.assert_close(getattr(ours.ctf, name), getattr(theirs.ctf, name), rtol=1e-6, atol=1e-5)
    assert torch.equal(ours.slice_index, theirs.slice_index)
    assert ours.pixel_size_angstrom == pytest.approx(theirs.pixel_size_angstrom, rel=1e-5)
