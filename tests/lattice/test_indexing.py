"""The lattice of simulated crystals is found, and none where there is none; lattice subtraction removes it."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.lattice.indexing import MIN_SCORE, FoundLattice, find_lattice
from cryoeq.lattice.power_spectrum import find_peaks, local_background, whiten_spectrum
from cryoeq.lattice.reduction import LagrangeGauss, transform_basis
from cryoeq.lattice.subtraction import spot_mask, subtract_lattice
from cryoeq.lattice.unit_cell import basis_of_cell, cell_of_basis
from cryoeq.simulation.crystal import Crystal, crystal_image
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import draw_noise, noise_amplitudes
from phantoms import chiral_phantom

ANGPIX, SIDE = 4.0, 384


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return sample_atoms(chiral_phantom(36.0), 24, ANGPIX)


def crystal_of(a: float, b: float, gamma_deg: float, *, tilt_deg: float = 0.0, disorder: float = 3.0) -> Crystal:
    basis = basis_of_cell((a, b, math.radians(gamma_deg)))
    return Crystal(basis, 0.4, math.radians(tilt_deg), 0.9, disorder)


def micrograph(molecule: Volume, crystal: Crystal, snr: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(image, its noise), the noise of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    signal = crystal_image(molecule, crystal, SIDE, generator)
    noise = draw_noise(1, noise_amplitudes(SIDE, "coloured"), generator)[0]
    return noise + signal * math.sqrt(snr) / signal.std(), noise


def search(image: Tensor) -> FoundLattice | None:
    spectrum = whiten_spectrum(image, ANGPIX, coarsest_angstrom=300.0, finest_angstrom=2 * ANGPIX)
    return find_lattice(spectrum, smallest_cell_angstrom=20.0, largest_cell_angstrom=300.0)


def reduced(basis: Tensor) -> tuple[Tensor, float]:
    """Lengths in order, and the angle between the vectors that is not acute, in degrees."""
    lengths, angles_rad = cell_of_basis(transform_basis(basis, LagrangeGauss()(basis[None])[0]))
    angle = math.degrees(angles_rad[0])
    return lengths.sort().values, max(angle, 180 - angle)


@pytest.mark.parametrize(
    ("cell", "snr", "tilt_deg"),
    [
        ((110.0, 90.0, 100.0), 0.05, 0.0),
        ((90.0, 90.0, 90.0), 0.05, 0.0),
        ((100.0, 100.0, 120.0), 0.2, 0.0),
        ((80.0, 150.0, 115.0), 0.05, 0.0),
        ((110.0, 90.0, 100.0), 0.1, 40.0),
        ((200.0, 85.0, 63.0), 0.1, 20.0),
    ],
)
def test_cells_are_found_within_one_percent(
    molecule: Volume, cell: tuple[float, float, float], snr: float, tilt_deg: float
) -> None:
    crystal = crystal_of(*cell, tilt_deg=tilt_deg)
    lattice = search(micrograph(molecule, crystal, snr)[0])
    assert lattice is not None
    assert lattice.score > MIN_SCORE
    lengths, angle = reduced(torch.linalg.inv(lattice.reciprocal).T * ANGPIX)
    expected_lengths, expected_angle = reduced(crystal.projected_basis_angstrom)
    assert float((lengths / expected_lengths - 1).abs().max()) < 0.01
    assert abs(angle - expected_angle) < 0.7


@pytest.mark.parametrize("kind", ["white", "coloured"])
def test_noise_has_no_lattice(kind: str, generator: torch.Generator) -> None:
    for side in (256, 320, 384):
        image = draw_noise(1, noise_amplitudes(side, kind), generator)[0]
        lattice = search(image)
        assert lattice is None or lattice.score < 0.8 * MIN_SCORE


def test_molecules_at_random_positions_have_no_lattice(molecule: Volume) -> None:
    """The cells of a crystal, each displaced by more than a cell: all of the signal, no order."""
    lattice = search(micrograph(molecule, crystal_of(110.0, 90.0, 100.0, disorder=300.0), 0.2)[0])
    assert lattice is None or lattice.score < MIN_SCORE


def test_a_blank_image_has_no_lattice() -> None:
    assert search(torch.ones(128, 128)) is None


def test_background_and_peaks_of_a_known_spectrum(generator: torch.Generator) -> None:
    """Waves of whole periods in white noise: the background is 1, the waves are the peaks."""
    n = 256
    x = torch.arange(n)
    image = torch.randn(n, n, generator=generator)
    for kx, ky in ((20, 31), (-45, 12)):
        image = image + 0.5 * torch.cos(2 * math.pi * (kx * x + ky * x[:, None]) / n)
    spectrum = whiten_spectrum(image, 1.0, coarsest_angstrom=100.0, finest_angstrom=2.0)
    assert float(spectrum.excess[spectrum.usable].clamp(max=10).mean()) == pytest.approx(1.0, abs=0.05)
    peaks = find_peaks(spectrum, 10.0, 2) * n
    expected = torch.tensor([[20.0, 31.0], [-45.0, 12.0]], dtype=torch.float64)
    assert float(torch.cdist(peaks, expected).min(1).values.max()) < 0.15
    flat = local_background(torch.ones(64, 64), torch.ones(64, 64))
    torch.testing.assert_close(flat, flat[0, 0].expand(64, 64))


def test_a_subtracted_lattice_is_gone_and_the_rest_untouched(molecule: Volume, generator: torch.Generator) -> None:
    image, noise = micrograph(molecule, crystal_of(110.0, 90.0, 100.0), 0.2)
    lattice = search(image)
    assert lattice is not None
    cleaned, fraction = subtract_lattice(image, lattice.reciprocal, generator)
    remaining = search(cleaned)
    assert remaining is None or remaining.score < MIN_SCORE < 0.5 * lattice.score
    assert 0 < fraction < 0.05
    before, after, expected = (torch.fft.fftshift(torch.fft.fft2(one, norm="ortho")) for one in (image, cleaned, noise))
    assert float(((after - before).abs() > 1e-4).float().mean()) == pytest.approx(fraction, rel=0.02)
    inside = (after - before).abs() > 1e-2
    assert int(inside.sum()) > 100
    discs = spot_mask(torch.ones(image.shape), lattice.reciprocal)
    assert float(before[discs].abs().square().mean()) > 1.5 * float(expected[discs].abs().square().mean())
    # Coefficients of noise above the threshold are reduced too: 0.85 is expected.
    assert 0.75 < float(after[discs].abs().square().mean() / expected[discs].abs().square().mean()) < 1.0
    phase_change = (after[inside] * before[inside].conj()).angle().abs()
    assert float(phase_change.max()) < 1e-2
    assert float(cleaned.mean()) == pytest.approx(float(image.mean()), abs=1e-5)


def test_deviations_are_those_of_the_covariance(molecule: Volume) -> None:
    """Deviations of the reciprocal vectors over three samples of noise, within a factor of 3."""
    crystal, vectors, variances = crystal_of(110.0, 90.0, 100.0), [], []
    for seed in range(3):
        lattice = search(micrograph(molecule, crystal, 0.2, seed)[0])
        assert lattice is not None
        expected = torch.linalg.inv(crystal.projected_basis_angstrom / ANGPIX)
        orders = (expected @ torch.linalg.inv(lattice.reciprocal.T)).round()  # of the true vectors in the found lattice
        assert abs(float(torch.linalg.det(orders))) == pytest.approx(1.0)
        vectors.append((lattice.reciprocal @ orders.T - expected.T).flatten())
        variances.append(lattice.covariance.diagonal().mean())
    measured, reported = torch.stack(vectors).square().mean().sqrt(), torch.stack(variances).mean().sqrt()
    assert 1 / 3 < float(measured / reported) < 3
