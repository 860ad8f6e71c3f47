"""Frames of maps: what their headers say differently is said with both values, from 0.1 pixels and 0.5 % on."""

import math

import pytest
import torch

from cryoeq.domain.volume import MapFrame, Volume, frame_differences, require_same_frame
from cryoeq.errors import MapFileError

OURS = MapFrame("half1.mrc", 7.75)


def test_equal_frames_differ_in_nothing() -> None:
    assert frame_differences(OURS, MapFrame("half2.mrc", 7.75)) == ()
    assert frame_differences(OURS, MapFrame("half2.mrc", 7.75 * 1.004, (0.7, -0.7, 0.0))) == ()
    assert frame_differences(OURS, MapFrame("mask.mrc", None)) == ()


def test_an_origin_is_said_in_pixels_and_angstrom() -> None:
    (said,) = frame_differences(OURS, MapFrame("half2.mrc", 7.75, (15.5, 0.0, -7.75)))
    assert "origins of half1.mrc and half2.mrc differ by 2.0 px along x, -1.0 px along z" in said
    assert "(0, 0, 0) and (15.5, 0, -7.75) Å" in said
    assert "voxel by voxel" in said


@pytest.mark.parametrize("angpix", [1.0, 7.75 * 1.006, 7.75 / 1.006])
def test_a_pixel_size_is_said_with_both_values(angpix: float) -> None:
    (said,) = frame_differences(OURS, MapFrame("mask.mrc", angpix))
    assert f"half1.mrc and mask.mrc differ: 7.75 and {angpix:.6g} Å" in said


def test_two_maps_need_one_box_and_one_pixel_size() -> None:
    ours, values = Volume(torch.zeros(4, 4, 4), 2.0), torch.zeros(4, 4, 4)
    require_same_frame(ours, Volume(values, 2.0 * 1.004))
    with pytest.raises(MapFileError, match=r"the maps have pixel sizes of 2 and 2\.02 Å"):
        require_same_frame(ours, Volume(values, 2.02))
    with pytest.raises(MapFileError, match="reference and images have boxes of 4 and 6 pixels"):
        require_same_frame(ours, Volume(torch.zeros(6, 6, 6), 2.0), names="reference and images")
    assert math.isclose(ours.pixel_size_angstrom, 2.0)
