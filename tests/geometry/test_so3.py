"""Rotations: against scipy, the exponential and the logarithm as inverses, derivatives where formulas are singular."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoeq.geometry.so3 import (
    nearest_rotation,
    random_rotations,
    rotation_angle_rad,
    rotation_from_vector,
    rotation_vector,
)

TINY = 1e-9


def axes(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)


def test_random_rotations_are_those_of_scalar_last_quaternions() -> None:
    rotations = random_rotations(50, torch.Generator().manual_seed(3))
    quaternions = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    expected = Rotation.from_quat(quaternions.double().numpy()).as_matrix()
    np.testing.assert_allclose(rotations.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("angle_rad", [0.0, TINY, 1e-4, 1.0, math.pi - 1e-4, math.pi - TINY, math.pi, 5.0])
def test_the_exponential_is_that_of_scipy(angle_rad: float, generator: torch.Generator) -> None:
    vectors = axes(20, generator) * angle_rad
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(rotation_from_vector(vectors).numpy(), expected, atol=1e-14)
    assert rotation_from_vector(vectors.float()).dtype == torch.float32
    np.testing.assert_allclose(rotation_from_vector(vectors.float()).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("angle_rad", [0.0, TINY, 1e-4, 1.0, 2.5, math.pi - 1e-4, math.pi - TINY])
def test_the_logarithm_undoes_the_exponential(angle_rad: float, generator: torch.Generator) -> None:
    vectors = axes(4 * 5, generator).reshape(4, 5, 3) * angle_rad
    torch.testing.assert_close(rotation_vector(rotation_from_vector(vectors)), vectors, atol=1e-14, rtol=1e-12)
    single = rotation_vector(rotation_from_vector(vectors).float()).double()
    torch.testing.assert_close(rotation_from_vector(single), rotation_from_vector(vectors), atol=1e-6, rtol=0)


def test_half_turns_have_a_logarithm_too() -> None:
    half_turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    vectors = rotation_vector(half_turns)
    torch.testing.assert_close(vectors.abs(), math.pi * torch.eye(3))
    torch.testing.assert_close(rotation_from_vector(vectors), half_turns, atol=1e-6, rtol=0)


@pytest.mark.parametrize("angle_rad", [0.0, TINY, 1e-3, 2.0, 3.1])
def test_derivatives_exist_everywhere(angle_rad: float, generator: torch.Generator) -> None:
    vectors = axes(3, generator) * angle_rad
    turns = axes(3, generator).requires_grad_()

    def logarithm(small: torch.Tensor) -> torch.Tensor:
        return rotation_vector(rotation_from_vector(small) @ rotation_from_vector(vectors))

    assert torch.autograd.gradcheck(rotation_from_vector, vectors.clone().requires_grad_())
    assert torch.autograd.gradcheck(logarithm, (1e-3 * turns.detach()).requires_grad_(), atol=1e-4)


def test_the_derivative_at_nothing_is_the_axis() -> None:
    zero = torch.zeros(3, requires_grad=True)
    (exponential,) = torch.autograd.grad(rotation_from_vector(zero)[1, 0], zero)
    torch.testing.assert_close(exponential, torch.tensor([0.0, 0.0, 1.0]))
    identity = torch.eye(3, requires_grad=True)
    (logarithm,) = torch.autograd.grad(rotation_vector(identity)[2], identity)
    torch.testing.assert_close(logarithm, torch.tensor([[0.0, -0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_the_nearest_rotation_beats_all_others(generator: torch.Generator) -> None:
    matrices = torch.randn(10, 3, 3, generator=generator)
    nearest = nearest_rotation(matrices)
    torch.testing.assert_close(nearest @ nearest.mT, torch.eye(3).expand(10, 3, 3), atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(nearest), torch.ones(10))
    others = torch.cat([random_rotations(300, generator), nearest[0] @ rotation_from_vector(0.1 * torch.eye(3))])
    distances = (others[:, None] - matrices).flatten(-2).norm(dim=-1)
    assert bool(((nearest - matrices).flatten(-2).norm(dim=-1) <= distances + 1e-6).all())
    expected = [Rotation.align_vectors(matrix.T, np.eye(3))[0].as_matrix() for matrix in matrices.double().numpy()]
    np.testing.assert_allclose(nearest.numpy(), np.stack(expected), atol=1e-5)


def test_a_rotation_is_its_own_nearest_and_the_derivative_turns_it(generator: torch.Generator) -> None:
    rotations = random_rotations(4, generator).double()
    torch.testing.assert_close(nearest_rotation(3 * rotations), rotations, atol=1e-6, rtol=0)
    assert torch.autograd.gradcheck(nearest_rotation, (2 * nearest_rotation(rotations)).requires_grad_())
    assert torch.autograd.gradcheck(
        nearest_rotation, torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    )


def test_angles_are_those_of_scipy(generator: torch.Generator) -> None:
    first, second = nearest_rotation(random_rotations(100, generator).double()).chunk(2)
    expected = (Rotation.from_matrix(first.numpy()).inv() * Rotation.from_matrix(second.numpy())).magnitude()
    np.testing.assert_allclose(rotation_angle_rad(first, second).numpy(), expected, atol=1e-12)
