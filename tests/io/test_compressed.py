"""Files packed by gzip or bzip2 give what the plain file gives; damage is named."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError, OutputError, ParticleFileError
from cryoeq.io.compressed import without_compression_suffix
from cryoeq.io.map_frame import read_map_corner
from cryoeq.io.mrc import MrcStack, header_notes, read_map, read_micrograph, write_map
from cryoeq.io.particles import read_particles

Make = Callable[..., Path]
_PACK = {"gzip": gzip.compress, "bzip2": bz2.compress}
PACKERS = pytest.mark.parametrize(("packer", "suffix"), [("gzip", ".gz"), ("bzip2", ".bz2"), ("gzip", "")])


@pytest.fixture
def plain(tmp_path: Path, generator: torch.Generator) -> Path:
    """A map that lies off the origin."""
    path = tmp_path / "m.map"
    write_map(path, Volume(torch.randn(12, 12, 12, generator=generator), 2.5), origin_angstrom=(5.0, 0.0, 0.0))
    return path


@PACKERS
def test_a_map_is_read_as_if_it_were_plain(plain: Path, tmp_path: Path, packer: str, suffix: str) -> None:
    packed = tmp_path / f"packed.map{suffix}"
    packed.write_bytes(_PACK[packer](plain.read_bytes()))
    assert torch.equal(read_map(packed).values, read_map(plain).values)
    assert read_map(packed).pixel_size_angstrom == 2.5
    assert read_map_corner(packed, 2.5).tolist() == [5.0, 0.0, 0.0]
    assert header_notes(packed) == ()


@PACKERS
def test_a_stack_is_unpacked_once_and_said(make_stack: Make, tmp_path: Path, packer: str, suffix: str) -> None:
    images = np.random.default_rng(1).normal(size=(5, 16, 16)).astype(np.float32)
    packed = tmp_path / f"packed.mrcs{suffix}"
    packed.write_bytes(_PACK[packer](make_stack(images=images).read_bytes()))
    stack = MrcStack.open(packed)
    packed.unlink()  # nothing is read from it any more
    np.testing.assert_array_equal(stack.read(np.array([4, 0, 0])), images[[4, 0, 0]])
    assert (len(stack), stack.header.pixel_size_angstrom) == (5, 2.0)
    assert "is compressed: it was unpacked into" in stack.notes[0]


def test_packed_stacks_are_particles(make_stack: Make, make_star: Make, tmp_path: Path) -> None:
    plain = make_stack()
    packed = tmp_path / "stack.mrcs.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = torch.arange(4)
    expected = read_particles(make_star()).images.read(rows)
    assert torch.equal(read_particles(make_star(stack="stack.mrcs.gz")).images.read(rows), expected)
    assert torch.equal(read_particles(packed).images.read(rows), expected)


def test_a_packed_micrograph(make_stack: Make, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(1, 16, 18)).astype(np.float32)
    packed = tmp_path / "mic.mrc.gz"
    packed.write_bytes(gzip.compress(make_stack(images=image).read_bytes()))
    np.testing.assert_array_equal(read_micrograph(packed)[0].numpy(), image[0])


@pytest.mark.parametrize("packer", ["gzip", "bzip2"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_packing_is_named(plain: Path, packer: str, damage: str) -> None:
    packed = bytearray(_PACK[packer](plain.read_bytes()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2] ^= 255
    path = plain.with_name("packed.map.gz")
    path.write_bytes(packed)
    # A bit of bzip2 changes a whole block, so also the header.
    said = "cannot be unpacked by bz2|makes no sense" if packer == "bzip2" else "cannot be unpacked by gzip"
    with pytest.raises(MapFileError, match=said):
        read_map(path)
    with pytest.raises(ParticleFileError, match=said):
        MrcStack.open(path)


def test_a_packed_file_that_was_cut_before_it_was_packed_is_truncated(plain: Path) -> None:
    path = plain.with_name("packed.map.gz")
    path.write_bytes(gzip.compress(plain.read_bytes()[:-1]))
    with pytest.raises(MapFileError, match="promises 12 images, 11 are there whole"):
        read_map(path)
    with pytest.raises(ParticleFileError, match="promises 12 images, 11 are there whole"):
        MrcStack.open(path)


def test_what_is_packed_may_be_no_map(tmp_path: Path) -> None:
    path = tmp_path / "m.map.gz"
    path.write_bytes(gzip.compress(b"<html>not found</html>"))
    with pytest.raises(MapFileError, match="an HTML page"):
        read_map(path)


def test_no_room_to_unpack_is_said(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = plain.with_name("stack.mrcs.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    monkeypatch.setattr("tempfile.tempdir", str(plain.with_name("nowhere")))
    with pytest.raises(OutputError, match="Set TMPDIR"):
        MrcStack.open(packed)


@pytest.mark.parametrize(("name", "plain_name"), [("a.map.gz", "a.map"), ("a.MRC.BZ2", "a.MRC"), ("a.gz.b", "a.gz.b")])
def test_the_suffix_of_the_packing_is_left_out(name: str, plain_name: str) -> None:
    assert without_compression_suffix(name) == plain_name
