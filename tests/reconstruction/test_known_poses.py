"""Reconstruction from known poses on RELION's data, beside RELION's own figures; and on a small stack of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.pose import Poses
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles
from cryoeq.physics.ctf import evaluate_ctf
from cryoeq.reconstruction.known_poses import ReconstructedMaps, filter_by_halves, reconstruct_from_poses
from known_particles import ANGPIX, Known, N

# RELION's FSC per shell, from 1: real_70s_tilts (half maps; all against the authors' map), then relion_1wcm (all
# against the truth).
RELION_70S_HALVES = (0.927063, 0.765157, 0.642657, 0.500466, 0.351197, 0.238192, 0.185317, 0.178417, 0.166236, 0.156833)
RELION_70S_AUTHORS = (
    0.974896,
    0.929977,
    0.818592,
    0.784704,
    0.633576,
    0.555490,
    0.521692,
    0.540471,
    0.535696,
    0.451163,
)
RELION_1WCM_TRUTH = (
    0.999260, 0.999085, 0.998423, 0.998067, 0.997794, 0.996305, 0.995095, 0.993257, 0.985910, 0.972665,
    0.949892, 0.910872, 0.892654, 0.883046, 0.882087, 0.855888, 0.857066, 0.847884, 0.812957, 0.796116,
    0.778239, 0.734953, 0.704940, 0.689869, 0.649688, 0.633199, 0.595397, 0.534168, 0.332159,
)  # fmt: skip


def reconstruct(folder: Path, **options: int) -> ReconstructedMaps:
    stack = read_particles(folder / "particles.star", with_poses=True)
    assert stack.table.poses is not None
    return reconstruct_from_poses(ParticleDataset.open(stack), stack.table.poses, stack.table.half_set, **options)


def test_phase_flipped_images_give_the_same_map(
    make_known: Callable[..., Known], make_dataset: Callable[..., ParticleDataset]
) -> None:
    known = make_known(100, sigma=0.5)
    (batch,) = known.dataset.batches(100)
    plane = HalfPlane.up_to(N, N / 2 - 1)
    sign = evaluate_ctf(batch.ctf, plane.frequencies_per_angstrom(ANGPIX)).sign()
    images, flipped = (plane.images(plane.transform(batch.images) * factor) for factor in (1, sign))
    flagged = replace(batch.ctf, is_phase_flipped=torch.ones(100))
    first, second, unflagged = (
        reconstruct_from_poses(make_dataset(values, ctf), known.poses).all.values
        for values, ctf in ((images, batch.ctf), (flipped, flagged), (flipped, batch.ctf))
    )
    # The noise is measured around the particles, where flipped ripples are others.
    assert (second - first).norm() < 0.01 * first.norm()
    assert (unflagged - first).norm() > 0.3 * first.norm()


def test_a_defocus_that_is_wrong_by_some_hundred_angstrom_does_not_matter(
    make_known: Callable[..., Known], make_dataset: Callable[..., ParticleDataset]
) -> None:
    """To 10 A; one that is wrong by half a micrometre does."""
    known = make_known(200, sigma=1.0)
    (batch,) = known.dataset.batches(200)
    drawn = torch.randn(200, generator=torch.Generator().manual_seed(5))
    found = []
    for error in (0.0, 300.0, 5000.0):
        defocus = {f"defocus_{axis}_angstrom": getattr(batch.ctf, f"defocus_{axis}_angstrom") for axis in "uv"}
        ctf = replace(batch.ctf, **{name: values + error * drawn for name, values in defocus.items()})
        values = reconstruct_from_poses(make_dataset(batch.images, ctf), known.poses).all.values
        found.append(fourier_shell_correlation(values, known.volume.values)[1:8])
    assert (found[0] - found[1]).max() < 0.01
    assert (found[0] - found[2]).max() > 0.1


@pytest.mark.realdata
def test_70s_tilts_give_relions_correlations(reference_data: Path) -> None:
    folder = reference_data / "real_70s_tilts"
    found = reconstruct(folder)
    assert found.halves is not None
    halves = fourier_shell_correlation(found.halves.first.values, found.halves.second.values)[1:11]
    assert (halves - torch.tensor(RELION_70S_HALVES)).abs().max() < 0.03
    authors = read_map(folder / "warptools_test_box-32_angpix-12_reconstruct.mrc").values
    against_authors = fourier_shell_correlation(found.all.values, authors)[1:11]
    assert (against_authors - torch.tensor(RELION_70S_AUTHORS)).abs().max() < 0.03


@pytest.mark.realdata
def test_1wcm_is_no_worse_than_relion(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    found = reconstruct(folder)
    truth = read_map(folder / "truth_1WCM_64p_3.75A.mrc").values
    fsc = fourier_shell_correlation(found.all.values, truth)[1:30]
    assert (fsc - torch.tensor(RELION_1WCM_TRUTH)).min() > -0.01
    assert found.half_fsc is not None
    assert found.all.pixel_size_angstrom == pytest.approx(3.75)


@pytest.mark.realdata
def test_batches_do_not_matter_and_wrong_poses_do(reference_data: Path) -> None:
    folder = reference_data / "real_70s_tilts"
    whole, streamed = reconstruct(folder), reconstruct(folder, batch_size=500)
    assert (whole.all.values - streamed.all.values).norm() / whole.all.values.norm() < 1e-3
    stack = read_particles(folder / "particles.star", with_poses=True)
    poses = stack.table.poses
    assert poses is not None
    # Half maps cannot tell the other hand, the authors' map can; transposed matrices give no map at all.
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    wrong = Poses(poses.rotations.mT, poses.shifts_angstrom)
    mirrored = Poses(flip @ poses.rotations @ flip, poses.shifts_angstrom)
    dataset = ParticleDataset.open(stack)
    assert whole.half_fsc is not None
    for poses_used, expected in ((mirrored, whole.half_fsc[4].item()), (wrong, 0.0)):
        found = reconstruct_from_poses(dataset, poses_used, stack.table.half_set)
        assert found.half_fsc is not None
        assert abs(found.half_fsc[4].item() - expected) < 0.25
    authors = read_map(folder / "warptools_test_box-32_angpix-12_reconstruct.mrc").values
    other_hand = reconstruct_from_poses(dataset, mirrored).all.values
    assert fourier_shell_correlation(other_hand, authors)[4] < 0.2


@pytest.mark.realdata
def test_without_half_sets_there_is_one_map(reference_data: Path) -> None:
    stack = read_particles(reference_data / "real_70s_tilts" / "particles.star", with_poses=True)
    assert stack.table.poses is not None
    found = reconstruct_from_poses(ParticleDataset.open(stack), stack.table.poses)
    assert found.halves is None
    assert found.half_fsc is None
    assert found.all.values.isfinite().all()


def test_half_maps_of_other_poses_come_from_the_same_pass(make_known: Callable[..., Known]) -> None:
    """As from a pass each: the map of all from its poses, each half map from the half sets' own."""
    known = make_known(60, sigma=0.5)
    dataset, half_set = known.dataset, torch.arange(len(known.poses)) % 2 + 1
    other = replace(known.poses, rotations=known.poses.rotations.flip(0))
    found = reconstruct_from_poses(dataset, known.poses, half_set, half_poses=other)
    assert found.halves is not None
    own = reconstruct_from_poses(dataset, other, half_set).halves
    assert own is not None
    for one, two in ((found.halves.first, own.first), (found.halves.second, own.second)):
        torch.testing.assert_close(one.values, two.values)
    merged = filter_by_halves(reconstruct_from_poses(dataset, known.poses).all, own).all
    torch.testing.assert_close(found.all.values, merged.values, rtol=1e-4, atol=1e-5)
