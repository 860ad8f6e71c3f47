"""The basis that turns with the images: what it keeps, and how it answers to turns and mirrors."""

import math

import pytest
import torch

from cryoeq.geometry.disk_harmonics import DiskHarmonics, disk_harmonics
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

BOXES = pytest.mark.parametrize("n", [23, 24])


def project(n: int, radius: float, rotations: torch.Tensor) -> tuple[DiskHarmonics, torch.Tensor]:
    """Slices of a phantom that reaches to 0.35 of the box, and the basis for a disk of 0.45 of it."""
    volume = sample_atoms(chiral_phantom(0.35 * n * 4.0), n, 4.0).values
    plane = HalfPlane.up_to(n, radius)
    harmonics = DiskHarmonics.build(plane, 0.45 * n)
    return harmonics, extract_slices(prepare_slices(volume), rotations, plane)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def turn(angle_rad: float, sign: float = 1.0) -> torch.Tensor:
    """Rz(angle) diag(1, sign, sign): what turning or mirroring the image does to the pose."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return torch.tensor([[cos, -sin * sign, 0.0], [sin, cos * sign, 0.0], [0.0, 0.0, sign]])


@BOXES
@pytest.mark.parametrize(("radius", "lost"), [(5.0, 0.06), (7.0, 0.04), (10.0, 0.02)])
def test_projections_of_a_compact_map_come_back(n: int, radius: float, lost: float, generator: torch.Generator) -> None:
    """But for the outermost coefficients, whose neighbours lie beyond the band."""
    harmonics, slices = project(n, radius, random_rotations(20, generator))
    assert relative(harmonics.synthesise(harmonics.analyse(slices)), slices) < lost


@BOXES
@pytest.mark.parametrize(("radius", "error"), [(3.0, 0.03), (5.0, 0.005), (10.0, 0.0005)])
def test_inner_products_are_kept(n: int, radius: float, error: float, generator: torch.Generator) -> None:
    harmonics, slices = project(n, radius, random_rotations(40, generator))
    first, second = slices.tensor_split(2)
    exact = (first * second.conj()).real @ harmonics.plane.weights
    twice = torch.where(harmonics.orders == 0, 1.0, 2.0)
    products = (harmonics.analyse(first) * harmonics.analyse(second)).sum((2, 3))
    power = float((first.abs().square() @ harmonics.plane.weights).mean())
    assert float((twice @ products - exact).abs().max()) < error * power


def test_what_lies_outside_the_disk_is_dropped(generator: torch.Generator) -> None:
    n = 32
    plane = HalfPlane.up_to(n, 10.0)
    harmonics = DiskHarmonics.build(plane, 8.0)
    x = torch.arange(n) - n // 2
    inside, outside = (torch.exp(-((x - at) ** 2 + (x[:, None] - 1) ** 2) / 8.0)[None] for at in (2, 14))
    kept = [float(harmonics.analyse(plane.transform(image)).norm() / image.norm()) for image in (inside, outside)]
    # Orders above 0 stand for those below 0 too.
    assert kept[0] > 0.6
    assert kept[1] < 0.02


@pytest.mark.parametrize(("n", "radius"), [(31, 14.0), (32, 15.0), (24, 11.0)])
def test_the_basis_is_orthonormal(n: int, radius: float) -> None:
    """To a few percent: sums over pixels stand for integrals, worst at the edge of the band, where half is cut off."""
    harmonics = DiskHarmonics.build(HalfPlane.up_to(n, radius), 0.45 * n)
    orders, _, radial = harmonics.basis.shape
    units = torch.eye(orders * radial * 2).view(-1, orders, radial, 2).transpose(0, 1)
    gram = harmonics.analyse(harmonics.synthesise(units)).transpose(0, 1).flatten(1)
    present = (harmonics.basis.abs().sum(1) > 0)[..., None].repeat(1, 1, 2)
    present[harmonics.orders == 0, :, 1] = False  # the mean of a real image over the angle is real
    assert float(gram[~present.flatten()].abs().max()) == 0
    gram = gram[present.flatten()][:, present.flatten()]
    assert len(gram) < 0.8 * (2 * len(harmonics.plane) - 1)
    off = (gram - torch.eye(len(gram))).norm(dim=1)
    assert float(off.median()) < 0.1
    assert float(torch.linalg.eigvals(gram).abs().max()) < 1.1


@BOXES
def test_turning_multiplies_by_a_phase(n: int, generator: torch.Generator) -> None:
    rotations = random_rotations(20, generator)
    harmonics, slices = project(n, 10.0, rotations)
    for angle_rad, error in ((0.4, 0.03), (2.0, 0.03), (math.pi / 2, 0.002)):
        _, turned = project(n, 10.0, turn(angle_rad) @ rotations)
        phase = torch.polar(torch.ones(len(harmonics.orders)), -angle_rad * harmonics.orders)[:, None, None]
        expected = torch.view_as_complex(harmonics.analyse(slices)) * phase
        assert relative(torch.view_as_complex(harmonics.analyse(turned)), expected) < error


@BOXES
def test_mirroring_takes_conjugates(n: int, generator: torch.Generator) -> None:
    rotations = random_rotations(20, generator)
    harmonics, slices = project(n, 9.0, rotations)
    _, mirrored = project(n, 9.0, turn(0.0, -1.0) @ rotations)
    sign = (1 - 2 * (harmonics.orders % 2))[:, None, None]
    # diag(1, -1) on the image takes theta to -theta: the coefficients of order m become those of order -m, and these
    # are (-1)^m times the conjugates, as for every real image.
    expected = torch.view_as_complex(harmonics.analyse(slices)).conj() * sign
    assert relative(torch.view_as_complex(harmonics.analyse(mirrored)), expected) < 1e-3


def test_even_orders_come_first_and_the_basis_is_kept() -> None:
    harmonics = disk_harmonics(16, 6.0, 7.0, torch.device("cpu"))
    orders = harmonics.orders.tolist()
    assert orders[: harmonics.n_even] == list(range(0, len(orders), 2))
    assert orders[harmonics.n_even :] == list(range(1, len(orders), 2))
    assert disk_harmonics(16, 6.0, 7.0, torch.device("cpu")) is harmonics
