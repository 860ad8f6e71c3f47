"""Headers of other programs: values mean what their writer meant, doubtful sizes are said, contradictions refused."""

import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from cryoeq.errors import MapFileError, ParticleFileError
from cryoeq.io.mrc import MrcStack, header_notes, read_map, read_micrograph

N, PIXEL = 8, 7.75
_FIELDS = (
    "nx ny nz mode nxstart nystart nzstart mx my mz cella_x cella_y cella_z alpha beta gamma mapc mapr maps "
    "dmin dmax dmean ispg nsymbt"
)
_BYTE = {name: 4 * word for word, name in enumerate(_FIELDS.split())} | {"stamp": 152, "flags": 156}
_FLOATS = {"cella_x", "cella_y", "cella_z", "alpha", "beta", "gamma", "dmin", "dmax"}


def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, N, N)).astype(np.float32)


def write(path: Path, data: np.ndarray | None = None, order: str = "<", **fields: float) -> Path:
    """A file by mrcfile, with words of its header replaced: numbers are floats where the field is one."""
    data = values() if data is None else data
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(data.dtype.newbyteorder(order)))
        mrc.voxel_size = PIXEL
        header = mrc.header.astype(HEADER_DTYPE.newbyteorder(order))  # mrcfile knows no order for bytes
    raw = bytearray(header.tobytes() + path.read_bytes()[1024:])
    for name, value in fields.items():
        kind = "f" if name in _FLOATS else "i"
        struct.pack_into(order + kind, raw, _BYTE[name], value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("stamp", "flags", "is_signed"), [(1146047817, 0, False), (1146047817, 1, True), (0, 0, True)])
def test_bytes_are_unsigned_where_imod_says_so(
    tmp_path: Path, order: str, stamp: int, flags: int, is_signed: bool
) -> None:
    stored = np.arange(N**3).reshape(N, N, N).astype(np.int8)
    path = write(tmp_path / "s.mrc", stored, order, stamp=stamp, flags=flags)
    expected = (stored if is_signed else stored.view(np.uint8)).astype(np.float32)
    np.testing.assert_array_equal(MrcStack.open(path).read(np.arange(N)), expected)
    np.testing.assert_array_equal(read_map(path).values.numpy(), expected)


@pytest.mark.parametrize(
    ("stored", "stamp", "is_doubted"), [((0, 255), 0, True), ((-5, 127), 0, False), ((0, 255), 1146047817, False)]
)
def test_bytes_beyond_their_range_are_doubted(
    tmp_path: Path, stored: tuple[int, int], stamp: int, is_doubted: bool
) -> None:
    path = write(tmp_path / "s.mrc", values().astype(np.int8), dmin=stored[0], dmax=stored[1], stamp=stamp)
    assert any("signed (-128 to 127)" in note for note in MrcStack.open(path).notes) == is_doubted


def test_without_sampling_the_pixel_size_is_the_cell_over_the_voxels(tmp_path: Path) -> None:
    path = write(tmp_path / "m.mrc", mx=0, my=0, mz=0)
    assert read_map(path).pixel_size_angstrom == pytest.approx(PIXEL, rel=1e-6)
    assert MrcStack.open(path).header.pixel_size_angstrom == pytest.approx(PIXEL, rel=1e-6)
    assert "MX is 0" in header_notes(path)[0]
    assert "7.75 Å" in header_notes(path)[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cella_x": 0.0}, "pixel size missing"),
        ({"cella_x": np.nan}, "pixel size missing"),
        ({"mx": 1, "my": 1, "mz": 1, "cella_x": 248.0, "cella_y": 248.0, "cella_z": 248.0}, "248 Å"),
        ({"cella_x": 0.08, "cella_y": 0.08, "cella_z": 0.08}, "0.01 Å"),
    ],
)
def test_a_pixel_size_that_cannot_be_is_none(tmp_path: Path, fields: dict[str, float], said: str) -> None:
    path = write(tmp_path / "m.mrc", **fields)
    assert MrcStack.open(path).header.pixel_size_angstrom is None
    with pytest.raises(MapFileError, match=rf"{said}.*--angpix"):
        read_map(path)
    assert read_map(path, angpix=2.0).pixel_size_angstrom == 2.0


def test_voxels_that_are_not_cubic_are_refused_or_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "m.mrc", cella_z=2 * N * PIXEL)
    with pytest.raises(MapFileError, match=r"7\.75 Å along x, 7\.75 Å along y and 15\.5 Å along z"):
        read_map(path)
    assert read_map(path, angpix=2.0).pixel_size_angstrom == 2.0
    assert "15.5 Å along z" in header_notes(path)[0]
    assert MrcStack.open(path).header.pixel_size_angstrom == pytest.approx(PIXEL)  # of a stack z does not count
    nearly = write(tmp_path / "nearly.mrc", cella_z=1.004 * N * PIXEL)
    assert read_map(nearly).pixel_size_angstrom == pytest.approx(PIXEL)
    assert header_notes(nearly) == ()
    unset = write(tmp_path / "unset.mrc", cella_z=0.0)
    assert read_map(unset).pixel_size_angstrom == pytest.approx(PIXEL)


def test_pixels_that_are_not_square_give_no_pixel_size(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mrcs", values()[:1], cella_y=2 * N * PIXEL)
    stack = MrcStack.open(path)
    assert stack.header.pixel_size_angstrom is None
    assert "15.5 Å along y" in stack.header.pixel_size_fault
    with pytest.raises(MapFileError, match=r"15\.5 Å along y"):
        read_micrograph(path)
    with pytest.raises(ParticleFileError, match=r"15\.5 Å along y.*--angpix"):
        stack.require_pixel_size()


def test_axes_that_are_not_orthogonal_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.mrc", gamma=60.0)
    with pytest.raises(MapFileError, match="90, 90 and 60°"):
        read_map(path, angpix=2.0)
    unset = write(tmp_path / "unset.mrc", alpha=0.0, beta=0.0, gamma=0.0)
    assert read_map(unset).pixel_size_angstrom == pytest.approx(PIXEL)


def test_columns_may_run_along_any_axis(tmp_path: Path) -> None:
    stored = values()
    path = write(tmp_path / "m.mrc", stored, mapc=2, mapr=3, maps=1, mx=0)
    np.testing.assert_array_equal(read_map(path).values.numpy(), stored.transpose(1, 2, 0))  # stored as (x, z, y)
    assert "MAPC and MAPR are 2 and 3" in MrcStack.open(path).notes[0]
    unset = write(tmp_path / "unset.mrc", stored, mapc=0, mapr=0, maps=0)
    np.testing.assert_array_equal(read_map(unset).values.numpy(), stored)
    assert MrcStack.open(unset).notes == ()


def test_an_extended_header_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mrcs", nsymbt=20480)
    with pytest.raises(ParticleFileError, match=r"NSYMBT promises 20480 bytes .* 2048 bytes of data, but 2048 bytes"):
        MrcStack.open(path)
    path.write_bytes(path.read_bytes() + bytes(20000))
    with pytest.raises(ParticleFileError, match="NSYMBT promises 20480 bytes"):
        MrcStack.open(path)
    path.write_bytes(path.read_bytes() + bytes(480))
    assert len(MrcStack.open(path)) == N
    np.testing.assert_array_equal(
        MrcStack.open(write(tmp_path / "negative.mrcs", nsymbt=-1)).read(np.arange(N)), values()
    )


def test_bytes_behind_the_images_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "s.mrcs", nz=N // 2)
    assert MrcStack.open(path).notes == ("s.mrcs: 1024 bytes lie behind the 4 images of its header, and are not read.",)
    whole = write(tmp_path / "whole.mrcs")
    whole.write_bytes(whole.read_bytes() + bytes(100))
    assert MrcStack.open(whole).notes == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": 4}, "mode 4 .complex float32, a Fourier transform"),
        ({"mode": 101}, "mode 101 .4 bits a pixel"),
        ({"mode": 7}, "mode 7, where cryoeq reads"),
        ({"nz": -3}, "makes no sense"),
    ],
)
def test_what_holds_no_densities_is_named(tmp_path: Path, fields: dict[str, float], said: str) -> None:
    with pytest.raises(MapFileError, match=said):
        read_map(write(tmp_path / "m.mrc", **fields))
