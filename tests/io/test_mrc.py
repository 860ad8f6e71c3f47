"""MRC maps and stacks: what is written is valid, what is read is what was stored, and damage is named."""

import io
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError, ParticleFileError
from cryoeq.io.density import read_density
from cryoeq.io.mrc import MrcStack, StackWriter, header_notes, read_map, write_map


def _assert_valid(path: Path) -> None:
    said = io.StringIO()
    assert mrcfile.validate(path, print_file=said), said.getvalue()


def _volume(generator: torch.Generator, n: int = 18) -> Volume:
    return Volume(torch.randn(n, n, n, generator=generator), 3.75)


def test_a_map_comes_back_and_is_valid(tmp_path: Path, generator: torch.Generator) -> None:
    path, volume = tmp_path / "map.mrc", _volume(generator)
    write_map(path, volume, label="cryoeq reconstruct " + "x" * 100)
    _assert_valid(path)
    back = read_map(path)
    assert torch.equal(back.values, volume.values)
    assert back.pixel_size_angstrom == pytest.approx(3.75, abs=1e-6)
    with mrcfile.open(path) as mrc:
        header = mrc.header
        assert (int(header.ispg), int(header.mz), int(header.nz), int(header.mode)) == (1, 18, 18, 2)
        assert (float(header.origin.x), int(header.nxstart)) == (0.0, 0)
        assert bytes(header.label[0]).startswith(b"cryoeq 0.")
        assert bytes(header.machst)[:2] == b"\x44\x44"
        assert float(header.rms) == pytest.approx(float(volume.values.std(correction=0)), rel=1e-5)


def test_a_stack_is_written_in_pieces_and_is_valid(tmp_path: Path, generator: torch.Generator) -> None:
    path, images = tmp_path / "stack.mrcs", torch.randn(7, 16, 16, generator=generator) + 3
    with StackWriter(path, 7, 16, 1.5, label="test") as writer:
        writer.append(images[:4])
        writer.append(images[4:])
        assert not path.exists()
    _assert_valid(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert (int(mrc.header.mz), float(mrc.voxel_size.x)) == (1, 1.5)
        np.testing.assert_array_equal(mrc.data, images.numpy())
        assert float(mrc.header.dmean) == pytest.approx(float(images.mean()), rel=1e-6)
    stack = MrcStack.open(path)
    assert (len(stack), stack.box_size_px, stack.header.pixel_size_angstrom, stack.notes) == (7, 16, 1.5, ())
    np.testing.assert_array_equal(stack.read(np.array([6, 0, 0])), images[[6, 0, 0]].numpy())


def test_an_unfinished_stack_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    with pytest.raises(ValueError, match="1 of 3 images"), StackWriter(path, 3, 16, 1.0) as writer:
        writer.append(torch.zeros(1, 16, 16))
    with pytest.raises(KeyboardInterrupt), StackWriter(path, 3, 16, 1.0):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="do not fit"), StackWriter(path, 3, 16, 1.0) as writer:
        writer.append(torch.zeros(4, 16, 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "int16", "uint16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_and_byte_order_reads_as_float32(tmp_path: Path, kind: str, order: str) -> None:
    images = np.random.default_rng(0).integers(0, 100, (3, 16, 16)).astype(np.dtype(kind).newbyteorder(order))
    path = tmp_path / "s.mrcs"
    mrcfile.write(path, images)
    read = MrcStack.open(path).read(np.arange(3))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, images.astype(np.float32))


def test_signed_bytes_stay_negative(tmp_path: Path) -> None:
    mrcfile.write(tmp_path / "s.mrcs", np.full((2, 16, 16), -7, np.int8))
    assert MrcStack.open(tmp_path / "s.mrcs").read(np.array([1])).max() == -7


def test_extended_header_and_single_image(tmp_path: Path) -> None:
    path, image = tmp_path / "one.mrc", np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    with mrcfile.new(path) as mrc:
        mrc.set_data(image)
        mrc.set_extended_header(np.zeros(768, "V1"))
    stack = MrcStack.open(path)
    assert len(stack) == 1
    np.testing.assert_array_equal(stack.read(np.array([0]))[0], image)


def test_axes_in_another_order(tmp_path: Path) -> None:
    values = np.arange(4**3, dtype=np.float32).reshape(4, 4, 4)
    with mrcfile.new(tmp_path / "m.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(values.transpose(2, 1, 0)))
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = 3, 2, 1
        mrc.voxel_size = 1.0
    np.testing.assert_array_equal(read_map(tmp_path / "m.mrc").values.numpy(), values)


def test_header_without_stamp_is_read_with_one_note(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "map.mrc"
    write_map(path, _volume(generator))
    raw = bytearray(path.read_bytes())
    raw[208:216] = bytes(8)
    path.write_bytes(raw)
    assert len(header_notes(path)) == 1
    assert "MAP stamp" in header_notes(path)[0]
    with pytest.raises(MapFileError, match="pixel size missing"):
        read_map(path)
    assert read_map(path, angpix=2.0).pixel_size_angstrom == 2.0


def test_angpix_overrides_the_header(tmp_path: Path, generator: torch.Generator) -> None:
    write_map(tmp_path / "map.mrc", _volume(generator))
    assert read_map(tmp_path / "map.mrc", angpix=1.25).pixel_size_angstrom == 1.25
    with pytest.raises(MapFileError, match="pixel size"):
        read_map(tmp_path / "map.mrc", angpix=0.0)


def test_bad_maps(tmp_path: Path, generator: torch.Generator) -> None:
    volume = _volume(generator)
    with pytest.raises(MapFileError, match="does not exist"):
        read_map(tmp_path / "none.mrc")
    with pytest.raises(MapFileError, match="cannot be read"):
        read_map(tmp_path)
    volume.values[1, 2, 3] = torch.nan
    write_map(tmp_path / "nan.mrc", volume)
    with pytest.raises(MapFileError, match="1 voxels are NaN"):
        read_map(tmp_path / "nan.mrc")
    mrcfile.write(tmp_path / "slab.mrc", np.zeros((3, 4, 5), np.float32))
    with pytest.raises(MapFileError, match="3 x 4 x 5"):
        read_map(tmp_path / "slab.mrc")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (torch.zeros_like, "is constant"),
        (lambda values: values * 0 + 3.0, "is constant"),
        (lambda values: values / values.abs().max() + 1e6, "is constant"),  # what rounding has left
        (lambda values: values * 1e30, "largest density is"),
        (lambda values: values * 1e-30, "largest density is"),
    ],
    ids=["zero", "three", "rounded", "huge", "tiny"],
)
def test_a_map_that_shows_nothing_is_no_density(
    tmp_path: Path, generator: torch.Generator, spoil: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    volume = _volume(generator)
    write_map(tmp_path / "map.mrc", volume)
    np.testing.assert_array_equal(read_density(tmp_path / "map.mrc").values, read_map(tmp_path / "map.mrc").values)
    write_map(tmp_path / "map.mrc", Volume(spoil(volume.values), 1.0))
    with pytest.raises(MapFileError, match=rf"map\.mrc:?.* {said}"):
        read_density(tmp_path / "map.mrc")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"_rlnImageName #1\n" * 100, "is not an MRC file"),
        (b"\0\1short", "shorter than an MRC header"),
        (bytes(4096), "is not an MRC file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 16, "is not an MRC file"),
    ],
)
def test_files_that_are_not_mrc(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "s.mrcs"
    path.write_bytes(content)
    with pytest.raises(ParticleFileError, match=said):
        MrcStack.open(path)


def test_truncated_and_oblong_and_complex_stacks(tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs"
    mrcfile.write(path, np.zeros((5, 16, 16), np.float32))
    path.write_bytes(path.read_bytes()[: 1024 + 3 * 1024 + 10])
    with pytest.raises(ParticleFileError, match="promises 5 images, 3 are there"):
        MrcStack.open(path)
    mrcfile.write(tmp_path / "oblong.mrcs", np.zeros((5, 16, 18), np.float32))
    with pytest.raises(ParticleFileError, match="18 x 16 pixels"):
        MrcStack.open(tmp_path / "oblong.mrcs")
    mrcfile.write(tmp_path / "complex.mrcs", np.zeros((5, 16, 16), np.complex64))
    with pytest.raises(ParticleFileError, match="mode 4"):
        MrcStack.open(tmp_path / "complex.mrcs")


@pytest.mark.realdata
def test_maps_of_relion(reference_data: Path) -> None:
    volume = read_map(reference_data / "relion_1wcm" / "rec_half1.mrc")
    assert volume.box_size_px == 64
    assert volume.pixel_size_angstrom == pytest.approx(3.75)
    assert float(volume.values.std()) == pytest.approx(0.054076925, rel=1e-5)
