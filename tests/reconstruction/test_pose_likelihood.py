"""Likelihoods over a grid of poses and sums of images against the same, pose by pose, with slices."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import healpy
import numpy as np
import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.maps.alignment import rotate_map
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction.expectation import expectation_step
from cryoeq.reconstruction.particle_transforms import (
    POWER_ORDERS,
    LikelihoodTerms,
    ParticleTransforms,
    power_hats,
    power_radii,
)
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood, grid_size, pose_grid
from cryoeq.reconstruction.reference import Reference

Make = Callable[..., Any]

RADIUS = 6.0


@dataclass(frozen=True)
class Scene:
    """Noisy, shifted particles with astigmatic CTFs, a map, and the likelihood under it."""

    particles: ParticleTransforms
    volume: torch.Tensor
    shifts_px: torch.Tensor
    likelihood: PoseLikelihood
    terms: LikelihoodTerms

    def log_likelihood(self, image: int, rotations: torch.Tensor) -> torch.Tensor:
        """The sum over the plane, written out."""
        plane, precision = self.likelihood.harmonics.plane, self.likelihood.precision
        slices = extract_slices(prepare_slices(self.volume), rotations, plane)
        centred = self.particles.centred(self.shifts_px)[image]
        terms = (centred * slices.conj()).real - 0.5 * self.particles.ctf_squared[image] * slices.abs().square()
        return terms @ (plane.weights * precision)


def random_grid(healpix_order: int, n_inplane: int, seed: int = 5) -> PoseGrid:
    generator = torch.Generator().manual_seed(seed)
    return PoseGrid.build(healpix_order, n_inplane, random_rotations(1, generator)[0], offset_rad=0.3)


@pytest.fixture
def make_scene(make_known: Make, observe: Make) -> Callable[[float], Scene]:
    def make(slope: float) -> Scene:
        """Precision falls or grows with the radius, exp(-slope |k| / radius)."""
        known = make_known(12, sigma=0.7)
        volume = known.volume.values * soft_sphere(16, 6.0, 2.0)
        harmonics = disk_harmonics(16, RADIUS, 7.5, torch.device("cpu"))
        particles = observe(known.dataset).within(RADIUS, 16)
        precision = 2 * torch.exp(-slope * particles.plane.radii / RADIUS)
        likelihood = PoseLikelihood.build(Reference.build(volume, precision), random_grid(1, 24), harmonics)
        terms = particles.at_offsets(known.shifts_px[:, None], harmonics)
        return Scene(particles, volume, known.shifts_px, likelihood, terms)

    return make


def some_poses(scene: Scene, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random in-plane angles and hypotheses, mirrored ones among them."""
    generator = torch.Generator().manual_seed(1)
    grid = scene.likelihood.grid
    angle = torch.randint(len(grid.inplane_rad), (count,), generator=generator)
    return angle, torch.randint(2 * len(grid.views), (count,), generator=generator)


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_all_poses_of_the_grid_get_their_log_likelihood(make_scene: Callable[[float], Scene], slope: float) -> None:
    """To a few percent of what they differ by from pose to pose."""
    scene = make_scene(slope)
    values = scene.likelihood.log_likelihoods(scene.terms)
    grid = scene.likelihood.grid
    assert values.shape == (len(grid.inplane_rad), 2 * len(grid.views), len(scene.particles))
    angle, hypothesis = some_poses(scene, 100)
    rotations = grid.rotations(angle, hypothesis)
    assert (hypothesis >= len(grid.views)).any()
    for image in range(len(scene.particles)):
        exact = scene.log_likelihood(image, rotations)
        found = values[angle, hypothesis, image]
        assert (found - exact).square().mean().sqrt() < 0.08 * exact.std()


@pytest.mark.parametrize("slope", [0.0, 2.0, -2.0])
def test_sums_are_those_of_images_rotated_one_by_one(make_scene: Callable[[float], Scene], slope: float) -> None:
    """Within the mask, and as far as the basis goes: the outermost shell is cut off by half."""
    scene = make_scene(slope)
    grid, plane = scene.likelihood.grid, scene.likelihood.harmonics.plane
    count = len(scene.particles)
    angle, hypothesis = some_poses(scene, 20 * count)
    row = torch.arange(count).repeat_interleave(20)
    weights = torch.zeros(len(grid.inplane_rad), 2 * len(grid.views), count)
    given = torch.rand(len(row), generator=torch.Generator().manual_seed(2))
    weights.index_put_((angle, hypothesis, row), given, accumulate=True)
    sums = scene.likelihood.insert(scene.likelihood.sum_images(weights, scene.terms))
    precision = scene.likelihood.precision * given[:, None]
    direct = WienerBackprojection.empty(16).add_(
        scene.particles.centred(scene.shifts_px)[row] * precision,
        scene.particles.ctf_squared[row] * precision,
        grid.rotations(angle, hypothesis),
        plane,
    )
    torch.testing.assert_close(sums.shell_weights[:7], direct.shell_weights[:7], rtol=0.06, atol=0)
    prior = 0.05 * direct.shell_weights.mean().expand(8)
    ours, theirs = (part.most_probable(prior) * soft_sphere(16, 5.0, 2.0) for part in (sums, direct))
    assert (ours - theirs).norm() < 0.15 * theirs.norm()


def test_summing_is_the_adjoint_of_the_cross_term(make_scene: Callable[[float], Scene]) -> None:
    """Weighted log-likelihoods are products of the weighted sums with the views' own coefficients and powers."""
    scene = make_scene(1.0)
    generator = torch.Generator().manual_seed(3)
    values = scene.likelihood.log_likelihoods(scene.terms)
    weights = torch.rand(values.shape, generator=generator)
    sums = scene.likelihood.sum_images(weights, scene.terms)
    grid = replace(scene.likelihood.grid, inplane_rad=torch.tensor([0.0, math.pi]))
    upright = replace(scene.likelihood, grid=grid)
    count = len(grid.views)
    # Each view with its own sum, neither rotated nor mirrored.
    own = upright.log_likelihoods(sums)[0, :count].diagonal()
    torch.testing.assert_close(own.sum(), (weights * values).sum(), rtol=1e-3, atol=1e-2)


def test_symmetry_inserts_every_copy(make_scene: Callable[[float], Scene]) -> None:
    scene = make_scene(0.0)
    angle, hypothesis = some_poses(scene, len(scene.particles))
    grid = scene.likelihood.grid
    weights = torch.zeros(len(grid.inplane_rad), 2 * len(grid.views), len(scene.particles))
    weights[angle, hypothesis, torch.arange(len(scene.particles))] = 1.0
    sums = scene.likelihood.sum_images(weights, scene.terms)
    group = torch.stack([torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))])
    once, twice = (scene.likelihood.insert(sums, symmetry=some).sums[..., 1:] for some in (None, group))
    # A half turn about z takes coefficient (x, y, z) to (-x, -y, z), whose Friedel mate is (x, y, -z).
    rotated = once.flip(1) * torch.tensor([1, -1, 1])[:, None, None, None]
    torch.testing.assert_close(twice, once + rotated, atol=1e-3, rtol=1e-3)


def cubic_group(name: str) -> torch.Tensor:
    """A group that maps the lattice of coefficients onto itself, so that interpolation breaks no symmetry."""
    if name != "T":
        return symmetry_rotations(name).float()
    group = symmetry_rotations("O").float()
    return group[torch.linalg.det(group.abs()) > 0]  # the even permutations of the axes


@pytest.mark.parametrize("name", ["C4", "D2", "T", "O"])
def test_the_asymmetric_unit_is_as_good_as_all_views(make_scene: Callable[[float], Scene], name: str) -> None:
    """For a map of the group: the same evidence, the same most probable pose but for the group, and the same map."""
    scene, group = make_scene(0.0), cubic_group(name)
    volume = sum(rotate_map(scene.volume, element, torch.zeros(3)) for element in group) / len(group)
    frame = random_rotations(1, torch.Generator().manual_seed(4))[0]
    unit = PoseGrid.build(2, 24, frame, 0.3, group)
    assert len(unit.views) == pytest.approx(96 / len(group), abs=4)
    whole = replace(unit, views=(unit.views[:, None] @ group).flatten(0, 1))
    posteriors, sums = [], []
    for grid, elements in ((unit, group), (whole, None)):
        reference = Reference.build(volume, scene.likelihood.precision)
        likelihood = PoseLikelihood.build(reference, grid, scene.likelihood.harmonics)
        steps = expectation_step(scene.particles, likelihood, scene.shifts_px[:, None], shift_sigma_px=0.0)
        result = result_of(steps)
        posteriors.append(result.posterior)
        sums.append(likelihood.insert(result.sums, symmetry=elements).sums[..., 1:])  # each pair once
    of_unit, of_whole = posteriors
    torch.testing.assert_close(of_unit.log_evidence, of_whole.log_evidence, rtol=0, atol=0.1)
    torch.testing.assert_close(of_unit.confidence, len(group) * of_whole.confidence, rtol=0.1, atol=0)
    copies = of_unit.poses.rotations[:, None] @ group
    nearest = rotation_angle_rad(copies, of_whole.poses.rotations[:, None].expand_as(copies)).amin(1)
    assert int((nearest < 2e-3).sum()) >= len(nearest) - 1, "but for a tie"
    # Each image counts once for each element in the unit's sums, once in those of all views.
    assert (sums[0] - len(group) * sums[1]).norm() < 0.05 * sums[0].norm()


def test_scaling_images_scales_their_sums(make_scene: Callable[[float], Scene]) -> None:
    scene = make_scene(0.0)
    factor = torch.arange(1.0, 13.0)
    scaled = scene.terms.scaled(factor)
    torch.testing.assert_close(scaled.cross_term[:, 4], 5 * scene.terms.cross_term[:, 4])
    torch.testing.assert_close(scaled.quadratic_term[:, 4], 5 * scene.terms.quadratic_term[:, 4])


@pytest.mark.parametrize("name", ["C1", "C4", "C360", "D2", "D7", "T", "O", "I"])
@pytest.mark.parametrize("radius", [7, 12])
def test_no_group_needs_more_views_than_none(name: str, radius: int) -> None:
    """Nor is its asymmetric unit ever without views."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        grid = pose_grid(radius, generator, torch.device("cpu"), symmetry_rotations(name).float())
        assert 4 <= len(grid.views) <= grid_size(radius)[0]


@pytest.mark.parametrize(("order", "covering_deg"), [(0, 50.0), (1, 27.0)])
def test_the_grid_covers_all_rotations(order: int, covering_deg: float, generator: torch.Generator) -> None:
    grid = random_grid(order, 12 * 2**order)
    count = len(grid.views)
    angle, hypothesis = torch.meshgrid(torch.arange(len(grid.inplane_rad)), torch.arange(2 * count), indexing="ij")
    rotations = grid.rotations(angle.flatten(), hypothesis.flatten())
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(rotations)))
    probes = random_rotations(200, generator)
    shape = (len(probes), len(rotations), 3, 3)
    nearest = rotation_angle_rad(probes[:, None].expand(shape), rotations.expand(shape)).amin(1)
    assert math.degrees(float(nearest.max())) < covering_deg


@pytest.mark.parametrize("order", [0, 1, 2])
def test_one_view_of_each_antipodal_pair(order: int) -> None:
    """The mirror of a view is seen from the other side; together they are all of HEALPix."""
    generator = torch.Generator().manual_seed(8)
    frame = random_rotations(1, generator)[0]
    grid = PoseGrid.build(order, 8, frame)
    count = len(grid.views)
    assert 2 * count == healpy.nside2npix(2**order)
    zero = torch.zeros(2 * count, dtype=torch.long)
    directions = grid.rotations(zero, torch.arange(2 * count))[:, 2]
    torch.testing.assert_close(directions[count:], -directions[:count])
    expected = torch.from_numpy(np.stack(healpy.pix2vec(2**order, np.arange(2 * count)), 1)).float() @ frame
    distance = torch.cdist(directions, expected)
    assert float(distance.amin(1).max()) < 1e-3
    assert distance.argmin(1).unique().numel() == 2 * count


def test_in_plane_rotations_and_mirrors_are_the_group_action() -> None:
    """diag(g, det g) on the left of A: a mirror is a half turn about the x axis of the image."""
    grid = random_grid(1, 8)
    count = len(grid.views)
    view, steps = torch.tensor([3, 3, 3]), torch.tensor([0, 1, 5])
    plain, mirrored = grid.rotations(steps, view), grid.rotations(steps, view + count)
    cos, sin = (grid.inplane_rad[1] - grid.inplane_rad[0]).cos(), (grid.inplane_rad[1] - grid.inplane_rad[0]).sin()
    step = torch.eye(3)
    step[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    start = plain[0] @ grid.views[3].T
    for power, (one, other) in enumerate(zip(plain, mirrored, strict=True)):
        turn = torch.linalg.matrix_power(step, int(steps[power])) @ start
        torch.testing.assert_close(one, turn @ grid.views[3], atol=1e-5, rtol=0)
        torch.testing.assert_close(other, turn @ half_turn @ grid.views[3], atol=1e-5, rtol=0)


def test_hats_are_a_partition_of_unity() -> None:
    plane = HalfPlane.up_to(16, RADIUS)
    hats = power_hats(plane)
    assert hats.shape == (len(plane), len(power_radii(RADIUS)), POWER_ORDERS)
    torch.testing.assert_close(hats[..., 0].sum(1), torch.ones(len(plane), dtype=hats.dtype))
    torch.testing.assert_close(hats[..., 1].sum(1).abs(), torch.ones(len(plane)))


def test_sums_stay_in_their_shells_when_precision_jumps(make_scene: Callable[[float], Scene]) -> None:
    """A shell weighed 24 times its neighbour must not leak into it: the map would grow there without bound."""
    scene = make_scene(0.0)
    plane, grid = scene.likelihood.harmonics.plane, scene.likelihood.grid
    precision = torch.tensor([6.54, 2.99, 0.27, 1.12, 1.35, 1.09, 1.13]).reciprocal()[plane.shells]
    likelihood = PoseLikelihood.build(Reference.build(scene.volume, precision), grid, scene.likelihood.harmonics)
    terms = scene.particles.at_offsets(scene.shifts_px[:, None], likelihood.harmonics)
    angle, hypothesis = some_poses(scene, len(scene.particles))
    weights = torch.zeros(len(grid.inplane_rad), 2 * len(grid.views), len(scene.particles))
    weights[angle, hypothesis, torch.arange(len(scene.particles))] = 1.0
    sums = likelihood.insert(likelihood.sum_images(weights, terms))
    direct = WienerBackprojection.empty(16).add_(
        scene.particles.centred(scene.shifts_px) * precision,
        scene.particles.ctf_squared * precision,
        grid.rotations(angle, hypothesis),
        plane,
    )
    prior = 0.05 * direct.shell_weights.mean().expand(8)
    ours, theirs = (part.most_probable(prior) * soft_sphere(16, 5.0, 2.0) for part in (sums, direct))
    assert (ours - theirs).norm() < 0.4 * theirs.norm()
