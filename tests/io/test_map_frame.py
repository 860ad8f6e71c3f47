"""Where headers place maps: ORIGIN where it is set, else NXSTART; contradictions are said."""

from pathlib import Path

import mrcfile
import pytest
import torch

from cryoeq.domain.volume import MapFrame, Volume
from cryoeq.io.map_frame import origin_notes, read_map_corner, read_map_frame
from cryoeq.io.mrc import write_map


def place(
    path: Path, origin: tuple[float, float, float] = (0.0, 0.0, 0.0), start: tuple[int, int, int] = (0, 0, 0)
) -> Path:
    """A map of 2 Å pixels."""
    write_map(path, Volume(torch.zeros(6, 6, 6), 2.0), origin_angstrom=origin)
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = start
    return path


@pytest.mark.parametrize(
    ("origin", "start", "corner"),
    [
        ((0.0, 0.0, 0.0), (0, 0, 0), (0.0, 0.0, 0.0)),
        ((4.0, 0.0, -6.0), (0, 0, 0), (4.0, 0.0, -6.0)),
        ((0.0, 0.0, 0.0), (2, 0, -3), (4.0, 0.0, -6.0)),
        ((4.0, 0.0, -6.0), (2, 0, -3), (4.0, 0.0, -6.0)),
        ((4.0, 0.0, -6.0), (7, 7, 7), (4.0, 0.0, -6.0)),
        ((float("nan"), 0.0, 0.0), (2, 0, -3), (4.0, 0.0, -6.0)),
    ],
)
def test_one_corner_of_two_fields(
    tmp_path: Path, origin: tuple[float, float, float], start: tuple[int, int, int], corner: tuple[float, float, float]
) -> None:
    path = place(tmp_path / "m.mrc", origin, start)
    assert read_map_frame(path) == MapFrame("m.mrc", 2.0, corner)
    assert tuple(read_map_corner(path, 2.0).tolist()) == corner
    assert bool(origin_notes(path, 2.0)) == (start == (7, 7, 7))


def test_a_given_pixel_size_counts(tmp_path: Path) -> None:
    path = place(tmp_path / "m.mrc", start=(1, 0, 0))
    assert read_map_frame(path, angpix=3.0) == MapFrame("m.mrc", 3.0, (3.0, 0.0, 0.0))


def test_a_contradiction_is_said_with_both_places(tmp_path: Path) -> None:
    (said,) = origin_notes(place(tmp_path / "m.mrc", (4.0, 0.0, 0.0), (1, 1, 0)), 2.0)
    assert "ORIGIN places its first voxel at (4, 0, 0) Å, NXSTART at (2, 2, 0) Å; ORIGIN is taken" in said
