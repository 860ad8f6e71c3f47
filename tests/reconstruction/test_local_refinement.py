"""Local refinement of poses: its derivatives, where it ends, and the standard deviation that it reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction import local_refinement
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.normal_equations import NormalEquations, WeightedImages, normal_equations
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference

Make = Callable[..., Any]

RADIUS = 6.0
SHIFT_SIGMA_PX = 2.0


@dataclass(frozen=True)
class Scene:
    """Particles with their true poses, and the map, in float64."""

    particles: ParticleTransforms
    reference: Reference
    poses: PoseSet

    def refine(self, poses: PoseSet, *, steps: int, shift_sigma_px: float = SHIFT_SIGMA_PX) -> RefinedPoses:
        return refine_poses(self.particles, self.reference, poses, shift_sigma_px=shift_sigma_px, steps=steps)

    def at(self, poses: PoseSet) -> NormalEquations:
        """The likelihood around these poses."""
        observed = WeightedImages.of(self.particles, self.reference.weights(self.particles.plane))
        found = normal_equations(observed, self.reference.padded, poses.rotations, poses.shifts_px)
        return found.with_shift_prior(poses.shifts_px, SHIFT_SIGMA_PX)

    def off_by(self, angle_deg: float, distance_px: float) -> PoseSet:
        """Poses off by an angle about random axes, and by a distance."""
        generator = torch.Generator().manual_seed(9)
        axes, directions = (torch.randn(len(self.particles), k, generator=generator).double() for k in (3, 2))
        vectors = torch.nn.functional.normalize(axes, dim=1) * math.radians(angle_deg)
        return moved(self.poses, vectors, distance_px * torch.nn.functional.normalize(directions, dim=1))


def moved(poses: PoseSet, rotation_vectors: torch.Tensor, shifts_px: torch.Tensor) -> PoseSet:
    """Poses after a rotation in the frame of the image, and a shift."""
    rotations = rotation_from_vector(rotation_vectors) @ poses.rotations
    return replace(poses, rotations=rotations, shifts_px=poses.shifts_px + shifts_px)


@pytest.fixture
def make_scene(make_known: Make, observe: Make) -> Callable[..., Scene]:
    def make(count: int, sigma: float = 0.0, variance: float = 0.01) -> Scene:
        known = make_known(count, sigma=sigma)
        particles = observe(known.dataset).within(RADIUS, 16)
        particles = replace(
            particles,
            ctf_multiplied=particles.ctf_multiplied.to(torch.complex128),
            ctf_squared=particles.ctf_squared.double(),
        )
        precision = torch.full((len(particles.plane),), 1 / variance, dtype=torch.float64)
        reference = Reference.build(known.volume.values.double(), precision)
        return Scene(particles, reference, known.pose_set.each(torch.Tensor.double))

    return make


def differences(scene: Scene, poses: PoseSet, step: float) -> torch.Tensor:
    """Central differences of the log-likelihood over three rotations (in the frame of the image) and two shifts."""
    columns = []
    for axis in range(5):
        values = []
        for sign in (1, -1):
            move = torch.zeros(5, dtype=torch.float64)
            move[axis] = sign * step
            values.append(scene.refine(moved(poses, move[:3], move[3:]), steps=0).log_likelihood)
        columns.append((values[0] - values[1]) / (2 * step))
    return torch.stack(columns, 1)


def test_the_gradient_is_that_of_the_likelihood(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(20)
    poses = scene.off_by(6.0, 0.5)
    found = scene.at(poses).gradient
    expected = differences(scene, poses, 0.02)
    for part, error in ((slice(0, 3), 0.06), (slice(3, 5), 2e-3)):
        assert (found - expected)[:, part].norm() / expected[:, part].norm() < error


def test_the_curvature_is_that_of_the_prediction(make_scene: Callable[..., Scene]) -> None:
    """Gauss and Newton: products of the derivatives of the predicted image, and the prior of the shift."""
    scene = make_scene(10)
    plane, step = scene.particles.plane, 0.02
    padded = prepare_slices(scene.reference.volume)

    def predicted(move: torch.Tensor) -> torch.Tensor:
        slices = extract_slices(padded, rotation_from_vector(move[:3]) @ scene.poses.rotations, plane)
        k = plane.coords.double()
        return slices * scene.particles.ctf_squared.sqrt() * torch.exp(2j * math.pi / 16 * (k @ move[3:]))

    unit = torch.eye(5, dtype=torch.float64) * step
    jacobian = torch.stack([(predicted(move) - predicted(-move)) / (2 * step) for move in unit], 1)
    weighted = jacobian * scene.reference.weights(plane)
    expected = torch.einsum("bip,bjp->bij", weighted, jacobian.conj()).real
    expected[:, 3:, 3:] += torch.eye(2) / SHIFT_SIGMA_PX**2
    found = scene.at(scene.poses).curvature
    assert (found - expected).norm() / expected.norm() < 0.08


def test_at_the_truth_the_curvature_is_the_likelihoods(make_scene: Callable[..., Scene]) -> None:
    """Where nothing is left over, Gauss and Newton's curvature is the second derivative."""
    scene = make_scene(10)
    step = 0.05
    columns = []
    for axis in range(5):
        move = torch.zeros(5, dtype=torch.float64)
        move[axis] = step
        ahead, behind = (scene.at(moved(scene.poses, sign * move[:3], sign * move[3:])).gradient for sign in (1, -1))
        columns.append((behind - ahead) / (2 * step))
    found = scene.at(scene.poses).curvature
    expected = torch.stack(columns, 1)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_images_without_noise_find_their_poses(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(60)
    found = scene.refine(scene.off_by(5.0, 0.5), steps=8).poses
    angles = rotation_angle_rad(found.rotations, scene.poses.rotations) * 180 / math.pi
    apart = (found.shifts_px - scene.poses.shifts_px).norm(dim=1)
    assert float(angles.max()) < 0.2
    assert float(apart.max()) < 0.02
    torch.testing.assert_close(
        torch.linalg.det(found.rotations), torch.ones(60, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_the_likelihood_never_falls(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(60, sigma=1.0, variance=1.0)
    start = scene.off_by(25.0, 1.5)
    values = torch.stack([scene.refine(start, steps=steps).log_likelihood for steps in range(6)])
    assert (values.diff(dim=0) >= 0).all()
    assert (values[-1] > values[0]).all()


def test_centred_particles_stay_centred(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(10, sigma=0.5)
    start = scene.off_by(5.0, 0.5)
    found = scene.refine(start, steps=5, shift_sigma_px=0.0).poses
    assert torch.equal(found.shifts_px, start.shifts_px)
    assert (rotation_angle_rad(found.rotations, start.rotations) > 1e-3).all()


def test_a_narrow_prior_holds_shifts_back(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(20, sigma=1.0, variance=1.0)
    unshifted = replace(scene.poses, shifts_px=torch.zeros_like(scene.poses.shifts_px))
    lengths = [
        float(scene.refine(unshifted, steps=5, shift_sigma_px=sigma).poses.shifts_px.norm())
        for sigma in (0.05, 0.5, 5.0)
    ]
    assert lengths[0] < 0.5 * lengths[1] < 0.5 * lengths[2]


def test_chunks_make_no_difference(make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(11, sigma=0.5)
    start = scene.off_by(5.0, 0.5)
    whole = scene.refine(start, steps=3)
    monkeypatch.setattr(local_refinement, "CHUNK_POINTS_ON_CPU", 4 * len(scene.particles.plane))
    chunked = scene.refine(start, steps=3)
    assert chunked.poses.box_size_px == whole.poses.box_size_px == 16
    for ours, theirs in zip(chunked.tensors(), whole.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_threads_change_no_bit(make_known: Make, observe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = make_known(12, sigma=1.0)
    particles = observe(known.dataset).within(RADIUS, 16)
    reference = Reference.build(known.volume.values, torch.ones(len(particles.plane)))
    monkeypatch.setattr(local_refinement, "CHUNK_POINTS_ON_CPU", 2 * len(particles.plane))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(refine_poses(particles, reference, known.pose_set, shift_sigma_px=SHIFT_SIGMA_PX))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found[0].tensors(), found[1].tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_standard_deviation_of_the_posterior_is_that_of_the_errors(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(200, sigma=1.0, variance=1.0)
    found = scene.refine(scene.poses, steps=8)
    ratio = rotation_angle_rad(found.poses.rotations, scene.poses.rotations) / found.rotation_sigma_rad
    assert 1 / 1.5 < float(ratio.square().mean().sqrt()) < 1.5


def test_rows_are_refined_as_if_they_were_all(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(8, sigma=0.5)
    rows, initial = torch.tensor([6, 1, 4]), scene.off_by(3.0, 0.3)
    among, alone = (
        refine_poses(particles, scene.reference, initial.rows(rows), shift_sigma_px=SHIFT_SIGMA_PX, rows=chosen)
        for particles, chosen in ((scene.particles, rows), (scene.particles.rows(rows), None))
    )
    for ours, theirs in zip(among.tensors(), alone.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_particles_have_no_poses(make_scene: Callable[..., Scene]) -> None:
    """As where other processes have them all."""
    scene = make_scene(4)
    none = refine_poses(
        scene.particles,
        scene.reference,
        scene.poses.rows(torch.arange(0)),
        shift_sigma_px=SHIFT_SIGMA_PX,
        rows=torch.arange(0),
    )
    assert len(none.poses) == len(none.log_likelihood) == 0
