"""Laws of every volume decoder; a new one is one entry of ``DECODERS``."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane, fft_image, fft_map
from cryoeq.geometry.so3 import random_rotations
from cryoeq.models.implicit_decoder import ImplicitDecoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.simulation.slicing import FourierSampler

N = 16
PLANE = HalfPlane.up_to(N, N / 2 - 1)
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))

Decoder = VoxelDecoder | ImplicitDecoder


@dataclass(frozen=True)
class Law:
    """Builder of a decoder with random initial values, and tolerances of its slices there.

    Args:
        build: from a source of chance.
        grid_error: relative error of slices at poses that map the grid of frequencies to itself.
        any_error: the same at any pose, against the exact transform of a map that is zero outside its box; None for a
            decoder whose map is not.
    """

    build: Callable[[torch.Generator], Decoder]
    grid_error: float
    any_error: float | None


# The voxel decoder starts as white noise, where trilinear interpolation of the transform errs most; at a protein's
# density it errs by a third of this.
DECODERS = {
    "voxel": Law(lambda generator: VoxelDecoder(N, generator), 0.15, 0.06),
    "implicit": Law(lambda generator: ImplicitDecoder(N, generator, width=16), 1e-5, None),
}


@pytest.fixture(params=DECODERS)
def law(request: pytest.FixtureRequest) -> Law:
    return DECODERS[request.param]


@pytest.fixture
def decoder(law: Law, generator: torch.Generator) -> Decoder:
    return law.build(generator)


@pytest.fixture
def rotations(generator: torch.Generator) -> Tensor:
    return random_rotations(12, generator)


def rotations_of_the_cube() -> Tensor:
    signed = [
        torch.eye(3)[list(order)] * torch.tensor(signs)[:, None]
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    return torch.stack([matrix for matrix in signed if torch.linalg.det(matrix) > 0])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def test_the_map_is_real(decoder: Decoder, rotations: Tensor) -> None:
    slices, opposite = decoder(rotations, PLANE).detach(), decoder(HALF_TURN @ rotations, PLANE)
    assert float(slices.abs().max()) > 0
    assert relative_error(opposite, slices.conj()) < 1e-5
    assert relative_error(slices, slices.conj()) > 0.1
    assert float(slices[:, (PLANE.coords == 0).all(1)].imag.abs().max()) < 1e-6


def test_slices_are_the_transform_of_the_map(law: Law, decoder: Decoder) -> None:
    rotations = rotations_of_the_cube()
    assert len(rotations) == 24
    x, y, z = ((PLANE.coords.float() @ rotations[:, :2]).long() + N // 2).unbind(-1)
    assert relative_error(decoder(rotations, PLANE), fft_map(decoder.to_map())[z, y, x]) < law.grid_error


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_the_transforms_of_projections(law: Law, decoder: Decoder, axis: int) -> None:
    pose = torch.eye(3).roll(-axis, 1)[None]  # (x, y, z) of the image are (x, y, z), (z, x, y) or (y, z, x) of the map
    projection = decoder.to_map().sum(axis)
    image = projection.T if axis == 1 else projection
    assert relative_error(decoder(pose, PLANE)[0], PLANE.gather(fft_image(image))) < law.grid_error


def test_slices_at_any_pose_are_those_of_the_map(law: Law, decoder: Decoder, rotations: Tensor) -> None:
    if law.any_error is None:
        full = decoder.to_map()
        edge = torch.cat([full[0].flatten(), full[:, 0].flatten(), full[:, :, 0].flatten()])
        assert float(edge.abs().mean() / full.abs().mean()) > 0.3  # why this decoder is excused
        return
    exact = FourierSampler(decoder.to_map()).slices(rotations, PLANE)
    assert relative_error(decoder(rotations, PLANE), exact) < law.any_error


def test_gradients_reach_everything(decoder: Decoder, rotations: Tensor) -> None:
    rotations.requires_grad_()
    decoder(rotations, PLANE).abs().square().sum().backward()
    for parameter in (*decoder.parameters(), rotations):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert float(parameter.grad.norm()) > 0


def test_the_gradient_is_that_of_the_loss(decoder: Decoder, rotations: Tensor, generator: torch.Generator) -> None:
    """By a central difference along one random direction of all parameters and poses."""
    decoder = decoder.double()
    variables = [*decoder.parameters(), rotations.double().requires_grad_()]

    def loss() -> Tensor:
        return decoder(variables[-1], PLANE).abs().square().sum()

    loss().backward()
    directions = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in variables]
    slope = sum(
        float((part.grad * along).sum())
        for part, along in zip(variables, directions, strict=True)
        if part.grad is not None
    )
    step, values = 1e-6, []
    with torch.no_grad():
        for distance in (step, -2 * step):
            for part, along in zip(variables, directions, strict=True):
                part.add_(along, alpha=distance)
            values.append(float(loss()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-4)


def test_a_state_dict_makes_the_same_decoder(law: Law, decoder: Decoder, rotations: Tensor) -> None:
    other = law.build(torch.Generator().manual_seed(99))
    assert not torch.equal(other.to_map(), decoder.to_map())
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other.to_map(), decoder.to_map())
    assert torch.equal(other(rotations, PLANE), decoder(rotations, PLANE))


def test_the_seed_decides_the_start(law: Law) -> None:
    maps = [law.build(torch.Generator().manual_seed(seed)).to_map() for seed in (3, 3, 4)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_a_batch_is_a_loop(decoder: Decoder, rotations: Tensor) -> None:
    before = rotations.clone()
    together = decoder(rotations, PLANE)
    one_by_one = torch.cat([decoder(rotation[None], PLANE) for rotation in rotations])
    assert relative_error(together, one_by_one) < 1e-6
    assert torch.equal(rotations, before)


def test_fewer_coefficients_are_the_leading_ones(decoder: Decoder, rotations: Tensor) -> None:
    """Frequency marching relies on it."""
    inner = PLANE.within(4.0)
    assert relative_error(decoder(rotations, inner), decoder(rotations, PLANE)[:, : len(inner)]) < 1e-6


def test_the_precision_is_kept(decoder: Decoder, rotations: Tensor) -> None:
    single, single_map = decoder(rotations, PLANE), decoder.to_map()
    assert (single.dtype, single_map.dtype) == (torch.complex64, torch.float32)
    decoder = decoder.double()
    double, double_map = decoder(rotations.double(), PLANE), decoder.to_map()
    assert (double.dtype, double_map.dtype) == (torch.complex128, torch.float64)
    assert relative_error(single.to(double), double) < 1e-5
    assert relative_error(single_map.to(double_map), double_map) < 1e-5


@pytest.mark.gpu
def test_cpu_and_gpu_agree(decoder: Decoder, rotations: Tensor) -> None:
    slices, full = decoder(rotations, PLANE), decoder.to_map()
    device = torch.device("cuda:0")
    decoder = decoder.to(device)
    there = decoder(rotations.to(device), HalfPlane.up_to(N, N / 2 - 1, device))
    assert there.device == decoder.to_map().device == device
    assert relative_error(there.cpu(), slices) < 1e-5
    assert relative_error(decoder.to_map().cpu(), full) < 1e-5
