"""What half maps share beside their spherical average."""

import torch

from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.roundness import measure_roundness, spherical_average
from cryoeq.geometry.soft_mask import soft_sphere

N, PIXEL = 32, 4.0


def _shell() -> torch.Tensor:
    return (soft_sphere(N, 10.0, 2.0) - soft_sphere(N, 6.0, 2.0)).double()


def _halves(values: torch.Tensor, noise: float, generator: torch.Generator) -> HalfMaps:
    return HalfMaps(
        *(Volume(values + noise * torch.randn(N, N, N, generator=generator).double(), PIXEL) for _ in range(2))
    )


def test_a_sphere_is_its_own_average_and_an_average_is_kept() -> None:
    shell = _shell()
    average = spherical_average(shell)
    assert float((average - shell).norm() / shell.norm()) < 0.02  # linear between its knots
    assert float((spherical_average(average) - average).norm() / average.norm()) < 1e-3
    odd = torch.arange(N).double()[:, None, None] - N // 2  # changes sign under inversion
    inner = soft_sphere(N, 10.0, 2.0).double()
    assert float(spherical_average(shell * odd * inner).abs().max()) < 1e-9 * N


def test_half_maps_of_a_shell_agree_by_their_spherical_average_alone(generator: torch.Generator) -> None:
    roundness = measure_roundness(_halves(_shell(), 0.05, generator))
    assert roundness.nonspherical_share < 0.01
    assert float(roundness.fsc[3:12].abs().max()) < 0.25


def test_the_share_does_not_depend_on_noise(generator: torch.Generator) -> None:
    x = (torch.arange(N).double() - N // 2) / 10
    molecule = _shell() * (1 + 0.8 * x)  # a gradient has no spherical average
    clean = measure_roundness(_halves(molecule, 0.0, generator))
    noisy = measure_roundness(_halves(molecule, 0.3, generator))
    assert 0.1 < clean.nonspherical_share < 0.9
    assert abs(noisy.nonspherical_share - clean.nonspherical_share) < 0.03
    assert float(clean.fsc[1:12].min()) > 0.999
