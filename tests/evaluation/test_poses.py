"""Pose errors: the gauge that images cannot tell is removed, whatever else is wrong."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.evaluation.poses import compare_poses, summarise_errors
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.maps.alignment import mirror_map, rotate_map
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases

HAND = torch.tensor([1.0, 1.0, -1.0])


def mirrored(rotations: Tensor) -> Tensor:
    return rotations * HAND[:, None] * HAND


def noise(count: int, degrees_per_axis: float, generator: torch.Generator) -> Tensor:
    return rotation_from_vector(torch.randn(count, 3, generator=generator) * math.radians(degrees_per_axis))


def centred(rotations: Tensor) -> Poses:
    return Poses(rotations, torch.zeros(len(rotations), 2))


def median_deg(errors: Tensor) -> float:
    return math.degrees(float(errors.median()))


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_noise_of_five_degrees_per_axis_is_measured_as_such(is_mirrored: bool, generator: torch.Generator) -> None:
    truth = random_rotations(5000, generator)
    predicted = noise(5000, 5.0, generator) @ truth @ random_rotations(1, generator)[0].T
    if is_mirrored:
        predicted = mirrored(predicted)
    errors = compare_poses(centred(predicted), centred(truth), generator=generator)
    assert errors.hand == ("mirrored" if is_mirrored else "same")
    # The norm of three normal deviates of 5 degrees has the median 7.691; a frame from one image would give 11.
    assert median_deg(errors.rotation_rad) == pytest.approx(7.691, abs=0.15)
    assert median_deg(errors.view_direction_rad) == pytest.approx(5.887, abs=0.15)
    assert median_deg(errors.in_plane_rad) == pytest.approx(3.372, abs=0.15)


@pytest.mark.parametrize("symmetry", ["C1", "d3", "T"])
def test_outliers_do_not_move_the_frame(symmetry: str, generator: torch.Generator) -> None:
    count, n_bad = 1000, 400
    group = symmetry_rotations(symmetry).float()
    truth, frame = random_rotations(count, generator), random_rotations(1, generator)[0]
    copies = group[torch.randint(len(group), (count,), generator=generator)]
    predicted = mirrored(noise(count, 5.0, generator) @ truth @ copies @ frame.T)
    predicted[:n_bad] = random_rotations(n_bad, generator)
    errors = compare_poses(centred(predicted), centred(truth), symmetry=symmetry, generator=generator)
    assert errors.hand == "mirrored"
    # 300 good images of 5 degrees fix the frame to 5 / sqrt(300) = 0.3 degrees per axis.
    assert median_deg(errors.rotation_rad[n_bad:]) == pytest.approx(7.69, abs=0.5)
    for gauge in errors.gauges:
        off = rotation_angle_rad(gauge.rotation.float() @ group, frame.expand_as(group)).min()
        assert math.degrees(float(off)) < 1.5


def test_two_clouds_half_a_turn_apart_give_the_larger_one(generator: torch.Generator) -> None:
    # The plain chordal mean of such clouds is degenerate: their sum has two vanishing singular values.
    truth, frame = random_rotations(1000, generator), random_rotations(1, generator)[0]
    predicted = noise(1000, 5.0, generator) @ truth @ frame.T
    half_turn = rotation_from_vector(torch.tensor([0.0, math.pi, 0.0]))
    predicted[:450] = predicted[:450] @ frame @ half_turn @ frame.T
    errors = compare_poses(centred(predicted), centred(truth), generator=generator)
    assert errors.hand == "same"
    assert median_deg(errors.rotation_rad[450:]) == pytest.approx(7.69, abs=0.5)
    assert median_deg(errors.rotation_rad[:450]) > 165


def test_mixed_hands_with_outliers_give_the_larger_hand(generator: torch.Generator) -> None:
    truth, frame = random_rotations(2000, generator), random_rotations(1, generator)[0]
    predicted = noise(2000, 5.0, generator) @ truth @ frame.T
    predicted[800:] = mirrored(predicted[800:])
    predicted[:200] = random_rotations(200, generator)
    predicted[-400:] = random_rotations(400, generator)
    errors = compare_poses(centred(predicted), centred(truth), generator=generator)
    assert errors.hand == "mirrored"
    assert median_deg(errors.rotation_rad[800:-400]) == pytest.approx(7.69, abs=0.5)


def test_random_poses_score_as_chance_because_no_image_fits_its_own_frame(generator: torch.Generator) -> None:
    shares = []
    for _ in range(10):
        errors = compare_poses(
            centred(random_rotations(20, generator)), centred(random_rotations(20, generator)), generator=generator
        )
        shares.append(float((errors.rotation_rad.rad2deg() < 10).double().mean()))
    # Scored in the frame of the same half, the anchor alone would make this share 0.1; chance is 0.0003.
    assert sum(shares) / len(shares) < 0.01


def test_kinds_of_error_are_told_apart(generator: torch.Generator) -> None:
    truth = random_rotations(6000, generator)
    signs = torch.where(torch.arange(6000) % 2 == 0, 1.0, -1.0)[:, None]
    for axis, in_plane, view in ((torch.tensor([0.0, 0.0, 1.0]), 10.0, 0.0), (torch.tensor([1.0, 0, 0]), 0.0, 10.0)):
        turned = rotation_from_vector(signs * axis * math.radians(10.0)) @ truth
        errors = compare_poses(centred(turned), centred(truth), generator=generator)
        assert median_deg(errors.rotation_rad) == pytest.approx(10.0, abs=0.5)
        assert median_deg(errors.in_plane_rad) == pytest.approx(in_plane, abs=0.5)
        assert median_deg(errors.view_direction_rad) == pytest.approx(view, abs=0.5)


def lopsided_map(n: int) -> Tensor:
    k = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    places = ((3.0, 1.0, -2.0), (-4.0, 2.0, 1.0), (0.0, -4.0, 3.0), (1.0, 3.0, 4.0))
    blobs = [
        height * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 5)
        for height, (a, b, c) in zip((1.0, 2.0, 1.5, 0.7), places, strict=True)
    ]
    return sum(blobs, torch.zeros_like(x)).float()


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_poses_that_give_the_same_images_have_no_error(is_mirrored: bool, generator: torch.Generator) -> None:
    """A turned, mirrored and moved map with poses to match: the images agree, so the poses must, shifts included."""
    n, pixel_size, count = 28, 3.0, 24
    volume, frame, move = lopsided_map(n), random_rotations(1, generator)[0], torch.tensor([2.0, -1.0, 3.0])
    truth = Poses(random_rotations(count, generator), torch.randn(count, 2, generator=generator) * pixel_size)
    moved = rotate_map(volume, frame, move)
    rotations = truth.rotations @ frame.T
    shifts = truth.shifts_angstrom + (rotations @ move)[:, :2] * pixel_size
    if is_mirrored:
        moved, rotations = mirror_map(moved), mirrored(rotations)
    plane = HalfPlane.up_to(n, 9.0)

    def images(values: Tensor, poses: Poses) -> Tensor:
        slices = extract_slices(prepare_slices(values, padding=4), poses.rotations, plane)
        return slices * shift_phases(poses.shifts_angstrom / pixel_size, plane.coords, n)

    ours, theirs = images(moved, Poses(rotations, shifts)), images(volume, truth)
    assert float((ours - theirs).abs().norm() / theirs.abs().norm()) < 0.02
    errors = compare_poses(Poses(rotations, shifts), truth, generator=generator)
    assert errors.hand == ("mirrored" if is_mirrored else "same")
    assert float(errors.rotation_rad.max()) < 1e-5
    assert float(errors.shift_angstrom.max()) < 1e-4
    for gauge in errors.gauges:
        torch.testing.assert_close(gauge.shift_angstrom.float(), move * pixel_size, atol=1e-3, rtol=0)


def test_shift_errors_are_what_was_added(generator: torch.Generator) -> None:
    truth = Poses(random_rotations(2000, generator), torch.randn(2000, 2, generator=generator) * 4)
    error = torch.randn(2000, 2, generator=generator) * 1.5
    common = (truth.rotations @ torch.tensor([10.0, -20.0, 5.0]))[:, :2]
    errors = compare_poses(Poses(truth.rotations, truth.shifts_angstrom + error + common), truth, generator=generator)
    torch.testing.assert_close(errors.shift_angstrom.float(), error.norm(dim=1), atol=0.3, rtol=0)
    summary = summarise_errors(errors, pixel_size_angstrom=2.0)
    assert summary["shift_angstrom"]["median"] == pytest.approx(1.5 * math.sqrt(2 * math.log(2)), abs=0.08)
    assert summary["shift_px"]["mean"] == pytest.approx(summary["shift_angstrom"]["mean"] / 2)


def test_views_along_one_axis_leave_the_shift_along_it_alone() -> None:
    rotations = rotation_from_vector(torch.linspace(0, 6, 40)[:, None] * torch.tensor([0.0, 0.0, 1.0]))
    common = (rotations @ torch.tensor([1.0, 2.0, 50.0]))[:, :2]
    errors = compare_poses(Poses(rotations, common), centred(rotations))
    assert float(errors.shift_angstrom.max()) < 1e-4
    assert all(abs(float(gauge.shift_angstrom[2])) < 1e-6 for gauge in errors.gauges)


def test_summary_counts(generator: torch.Generator) -> None:
    truth = random_rotations(1000, generator)
    predicted = truth.clone()
    predicted[:100] = random_rotations(100, generator)
    summary = summarise_errors(compare_poses(centred(predicted), centred(truth), generator=generator), 1.0)[
        "rotation_deg"
    ]
    assert summary["median"] < 1e-3
    assert summary["share_below_5"] == pytest.approx(0.9, abs=0.002)
    assert summary["share_below_30"] == pytest.approx(0.9, abs=0.005)
    assert summary["mean"] == pytest.approx(12.67, abs=1.0)


def test_same_seed_same_answer_and_inputs_stay(generator: torch.Generator) -> None:
    truth, predicted = centred(random_rotations(50, generator)), centred(random_rotations(50, generator))
    before = predicted.rotations.clone()
    first, second = (compare_poses(predicted, truth) for _ in range(2))
    torch.testing.assert_close(first.rotation_rad, second.rotation_rad, atol=0, rtol=0)
    torch.testing.assert_close(predicted.rotations, before, atol=0, rtol=0)


def test_wrong_numbers_of_poses_are_errors(generator: torch.Generator) -> None:
    rotations = random_rotations(20, generator)
    with pytest.raises(ParticleFileError, match="20 predicted poses for 19"):
        compare_poses(centred(rotations), centred(rotations[:19]))
    with pytest.raises(ParticleFileError, match="7 images"):
        compare_poses(centred(rotations[:7]), centred(rotations[:7]))
