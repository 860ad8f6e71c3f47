"""Local refinement of poses: its derivatives, where it ends, and how sure it says to be."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction import local_refinement
from cryoeq.reconstruction.local_refinement import Reference, RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

Make = Callable[..., Any]

RADIUS = 6.0
SHIFT_SIGMA_PX = 2.0


@dataclass(frozen=True)
class Scene:
    """Images with the poses that they were made with, and the map, in float64."""

    images: ParticleTransforms
    reference: Reference
    volume: torch.Tensor
    rotations: torch.Tensor
    shifts_px: torch.Tensor

    def refine(
        self,
        rotations: torch.Tensor,
        shifts_px: torch.Tensor,
        *,
        steps: int,
        shift_sigma_px: float = SHIFT_SIGMA_PX,
    ) -> RefinedPoses:
        return refine_poses(
            self.images, self.reference, rotations, shifts_px, shift_sigma_px=shift_sigma_px, steps=steps
        )

    def at(self, rotations: torch.Tensor, shifts_px: torch.Tensor) -> local_refinement._Local:
        """The likelihood around these poses."""
        return local_refinement._evaluate(self.images, self.reference, rotations, shifts_px, SHIFT_SIGMA_PX)

    def moved(self, angle_deg: float, distance_px: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Poses off by an angle about random axes, and by a distance."""
        generator = torch.Generator().manual_seed(9)
        axes, ways = (torch.randn(len(self.images), k, generator=generator).double() for k in (3, 2))
        turns = torch.nn.functional.normalize(axes, dim=1) * math.radians(angle_deg)
        return (
            rotation_from_vector(turns) @ self.rotations,
            self.shifts_px + distance_px * torch.nn.functional.normalize(ways, dim=1),
        )


@pytest.fixture
def make_scene(make_known: Make, observe: Make) -> Callable[..., Scene]:
    def make(count: int, sigma: float = 0.0, variance: float = 0.01) -> Scene:
        known = make_known(count, sigma=sigma)
        images = observe(known.dataset).within(RADIUS, 16)
        images = replace(
            images, ctf_multiplied=images.ctf_multiplied.to(torch.complex128), ctf_squared=images.ctf_squared.double()
        )
        volume = known.volume.values.double()
        precision = torch.full((len(images.plane),), 1 / variance, dtype=torch.float64)
        reference = Reference.build(volume, images.plane, precision)
        return Scene(images, reference, volume, known.poses.rotations.double(), known.shifts_px.double())

    return make


def differences(scene: Scene, rotations: torch.Tensor, shifts_px: torch.Tensor, step: float) -> torch.Tensor:
    """Central differences of the log-likelihood over the three turns (in the frame of the image) and two shifts."""
    columns = []
    for axis in range(5):
        values = []
        for sign in (1, -1):
            move = torch.zeros(5, dtype=torch.float64)
            move[axis] = sign * step
            turned = rotation_from_vector(move[:3]) @ rotations
            values.append(scene.refine(turned, shifts_px + move[3:], steps=0).log_likelihood)
        columns.append((values[0] - values[1]) / (2 * step))
    return torch.stack(columns, 1)


def test_the_gradient_is_that_of_the_likelihood(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(20)
    rotations, shifts = scene.moved(6.0, 0.5)
    found = local_refinement._evaluate(scene.images, scene.reference, rotations, shifts, SHIFT_SIGMA_PX).gradient
    expected = differences(scene, rotations, shifts, 0.02)
    for part, error in ((slice(0, 3), 0.06), (slice(3, 5), 2e-3)):
        assert (found - expected)[:, part].norm() / expected[:, part].norm() < error


def test_the_curvature_is_that_of_the_prediction(make_scene: Callable[..., Scene]) -> None:
    """Gauss and Newton: products of the derivatives of the predicted image, and the prior of the shift."""
    scene = make_scene(10)
    plane = scene.images.plane
    padded, step = prepare_slices(scene.volume), 0.02

    def predicted(move: torch.Tensor) -> torch.Tensor:
        slices = extract_slices(padded, rotation_from_vector(move[:3]) @ scene.rotations, plane)
        k = plane.coords.double()
        return slices * scene.images.ctf_squared.sqrt() * torch.exp(2j * math.pi / 16 * (k @ move[3:]))

    unit = torch.eye(5, dtype=torch.float64) * step
    jacobian = torch.stack([(predicted(move) - predicted(-move)) / (2 * step) for move in unit], 1)
    weighted = jacobian * scene.reference.weighted_precision
    expected = torch.einsum("bip,bjp->bij", weighted, jacobian.conj()).real
    expected[:, 3:, 3:] += torch.eye(2) / SHIFT_SIGMA_PX**2
    found = scene.at(scene.rotations, scene.shifts_px).curvature
    assert (found - expected).norm() / expected.norm() < 0.08


def test_at_the_truth_the_curvature_is_the_likelihoods(make_scene: Callable[..., Scene]) -> None:
    """Where nothing is left over, Gauss and Newton's curvature is the second derivative."""
    scene = make_scene(10)
    step = 0.05
    columns = []
    for axis in range(5):
        move = torch.zeros(5, dtype=torch.float64)
        move[axis] = step
        ahead, behind = (
            scene.at(
                rotation_from_vector(sign * move[:3]) @ scene.rotations, scene.shifts_px + sign * move[3:]
            ).gradient
            for sign in (1, -1)
        )
        columns.append((behind - ahead) / (2 * step))
    found = scene.at(scene.rotations, scene.shifts_px).curvature
    expected = torch.stack(columns, 1)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_images_without_noise_find_their_poses(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(60)
    found = scene.refine(*scene.moved(5.0, 0.5), steps=8)
    angles = rotation_angle_rad(found.rotations, scene.rotations) * 180 / math.pi
    apart = (found.shifts_px - scene.shifts_px).norm(dim=1)
    assert float(angles.max()) < 0.2
    assert float(apart.max()) < 0.02
    torch.testing.assert_close(
        torch.linalg.det(found.rotations), torch.ones(60, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_the_likelihood_never_falls(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(60, sigma=1.0, variance=1.0)
    start = scene.moved(25.0, 1.5)
    values = torch.stack([scene.refine(*start, steps=steps).log_likelihood for steps in range(6)])
    assert (values.diff(dim=0) >= 0).all()
    assert (values[-1] > values[0]).all()


def test_centred_particles_stay_centred(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(10, sigma=0.5)
    rotations, shifts = scene.moved(5.0, 0.5)
    found = scene.refine(rotations, shifts, steps=5, shift_sigma_px=0.0)
    assert torch.equal(found.shifts_px, shifts)
    assert (rotation_angle_rad(found.rotations, rotations) > 1e-3).all()


def test_a_narrow_prior_holds_shifts_back(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(20, sigma=1.0, variance=1.0)
    zero = torch.zeros_like(scene.shifts_px)
    lengths = [
        float(scene.refine(scene.rotations, zero, steps=5, shift_sigma_px=sigma).shifts_px.norm())
        for sigma in (0.05, 0.5, 5.0)
    ]
    assert lengths[0] < 0.5 * lengths[1] < 0.5 * lengths[2]


def test_chunks_make_no_difference(make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(11, sigma=0.5)
    start = scene.moved(5.0, 0.5)
    whole = scene.refine(*start, steps=3)
    monkeypatch.setattr(local_refinement, "_CHUNK_POINTS_CPU", 4 * len(scene.images.plane))
    parts = scene.refine(*start, steps=3)
    for name in RefinedPoses.__dataclass_fields__:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_the_width_of_the_posterior_is_that_of_the_errors(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(200, sigma=1.0, variance=1.0)
    found = scene.refine(scene.rotations, scene.shifts_px, steps=8)
    errors = rotation_angle_rad(found.rotations, scene.rotations)
    said = found.rotation_sigma_rad
    ratio = errors / said
    assert 1 / 1.5 < float(ratio.square().mean().sqrt()) < 1.5
