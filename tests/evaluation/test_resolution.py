"""Shells, resolution and the correction for a mask, against RELION's numbers."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.resolution import (
    compare_maps,
    corrected_correlation,
    fourier_shell_correlation,
    randomise_phases,
    resolution_angstrom,
)
from cryoeq.io.mrc import read_map

# relion_image_handler 3.1.3, --fsc of synthetic_pair(n).
RELION_FSC = {
    16: [1.0, 0.997834, 0.974622, 0.435082, 0.039401, 0.094624, -0.06523, 0.035903, -0.00355],
    15: [1.0, 0.99759, 0.966794, 0.395831, -0.01938, 0.093805, -6.64329e-04, 0.007156],
}


def synthetic_pair(n: int) -> tuple[Tensor, Tensor]:
    """A lopsided blob under two kinds of noise that any machine computes alike."""
    index = torch.arange(n**3, dtype=torch.float64)
    k = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    blob = 8 * torch.exp(-((x - 1) ** 2 + 2 * y**2 + (z + 1) ** 2 + x * y) / n)
    first, second = ((blob + torch.sin(rate * index**2).reshape(n, n, n)).float() for rate in (0.29, 0.41))
    return first, second


def ball(n: int, radius: float, edge: float) -> Tensor:
    k = torch.arange(n) - n // 2
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    depth = ((radius + edge - (x**2 + y**2 + z**2).sqrt()) / edge).clamp(0, 1)
    return (1 - torch.cos(math.pi * depth)) / 2


def relion_table(path: Path) -> dict[str, Tensor]:
    """The columns of ``data_fsc``."""
    block = path.read_text().split("data_fsc")[1].split("data_")[0]
    labels = re.findall(r"^_rln(\S+)", block, re.MULTILINE)
    rows = [[float(value) for value in line.split()] for line in block.splitlines() if re.match(r"\s+\d", line)]
    return dict(zip(labels, torch.tensor(rows, dtype=torch.float64).T, strict=True))


@pytest.mark.parametrize("n", [15, 16])
def test_shells_are_those_of_relion(n: int) -> None:
    fsc = fourier_shell_correlation(*synthetic_pair(n))
    assert fsc.dtype == torch.float64
    torch.testing.assert_close(fsc, torch.tensor(RELION_FSC[n], dtype=torch.float64), atol=1e-5, rtol=0)


def test_work_in_slabs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = synthetic_pair(16)
    whole = fourier_shell_correlation(*pair)
    monkeypatch.setattr("cryoeq.geometry.shells._SLAB_COEFFICIENTS", 500)
    torch.testing.assert_close(fourier_shell_correlation(*pair), whole)


def test_laws_of_the_correlation() -> None:
    first, second = synthetic_pair(16)
    fsc = fourier_shell_correlation(first, second)
    torch.testing.assert_close(fourier_shell_correlation(second, first), fsc)
    torch.testing.assert_close(fourier_shell_correlation(3 * first, second), fsc)
    torch.testing.assert_close(fourier_shell_correlation(first, -second), -fsc)
    torch.testing.assert_close(fourier_shell_correlation(first, first), torch.ones_like(fsc))
    torch.testing.assert_close(fourier_shell_correlation(first.roll(3, 1), second.roll(3, 1)), fsc, atol=1e-6, rtol=0)
    mask = ball(16, 5, 3)
    torch.testing.assert_close(
        fourier_shell_correlation(first, second, mask), fourier_shell_correlation(first * mask, second * mask)
    )


def test_an_empty_shell_correlates_by_nothing() -> None:
    fsc = fourier_shell_correlation(torch.ones(8, 8, 8), torch.ones(8, 8, 8))
    torch.testing.assert_close(fsc, torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64))


def test_resolution_is_the_last_shell_before_the_first_drop() -> None:
    fsc = torch.tensor([1.0, 0.9, 0.6, 0.49, 0.7, 0.2, 0.1], dtype=torch.float64)
    assert resolution_angstrom(fsc, 0.5, 12, 2.0) == pytest.approx(24 / 2)
    assert resolution_angstrom(fsc, 0.143, 12, 2.0) == pytest.approx(24 / 5)
    assert resolution_angstrom(fsc, 0.05, 12, 2.0) == pytest.approx(24 / 6)
    assert resolution_angstrom(fsc, 0.95, 12, 2.0) == math.inf
    assert resolution_angstrom(torch.cat([torch.zeros(1), fsc[1:]]), 0.5, 12, 2.0) == pytest.approx(24 / 2)


def test_randomised_phases_keep_amplitudes_and_what_lies_inside(generator: torch.Generator) -> None:
    values = synthetic_pair(16)[0].double()
    randomised = randomise_phases(values, 4, generator)
    before, after = torch.fft.rfftn(values), torch.fft.rfftn(randomised)
    k = torch.fft.fftfreq(16, 1 / 16)
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + torch.arange(9) ** 2).sqrt()
    torch.testing.assert_close(after[radii < 4], before[radii < 4])
    # A real map has Friedel pairs in the planes x = 0 and x = n / 2: there random phases cannot all be kept.
    inner = (radii >= 4) & (torch.arange(9) > 0) & (torch.arange(9) < 8)
    torch.testing.assert_close(after.abs()[inner], before.abs()[inner])
    assert float(((after / before)[inner]).mean().abs()) < 0.1
    assert float(((after - before).abs()[inner] < 1e-6).double().mean()) == 0


def test_correction_starts_two_shells_later() -> None:
    masked = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.5, 0.2], dtype=torch.float64)
    randomised = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.2, 1.0], dtype=torch.float64)
    corrected = corrected_correlation(masked, randomised, 2)
    torch.testing.assert_close(corrected[:4], masked[:4])
    assert float(corrected[4]) == pytest.approx((0.5 - 0.2) / 0.8)
    assert bool(torch.isfinite(corrected).all())


def test_a_mask_earns_nothing_for_noise(generator: torch.Generator) -> None:
    """A common core under independent noise: a hard small mask correlates the noise, the correction takes it away."""
    n = 32
    core = ball(n, 9, 1) * torch.randn(n, n, n, generator=generator)
    smooth = torch.fft.irfftn(torch.fft.rfftn(core) * (torch.fft.rfftn(ball(n, 3, 1)).abs() + 1), s=core.shape)
    maps = [
        Volume(smooth / smooth.std() + 2 * torch.randn(n, n, n, generator=generator) * (1 + 4 * ball(n, 0, 3)), 3.0)
        for _ in range(2)
    ]
    curves = compare_maps(maps[0], maps[1], Volume(ball(n, 5, 1), 3.0), generator=generator)
    assert curves.randomised is not None
    assert curves.corrected is not None
    assert curves.masked is not None
    first = curves.randomised_from_shell
    assert first is not None
    assert float(curves.unmasked[first]) < 0.8
    assert bool((curves.unmasked[1:first] >= 0.8).all())
    beyond = slice(first + 2, None)
    torch.testing.assert_close(
        curves.corrected[beyond], (curves.masked - curves.randomised)[beyond] / (1 - curves.randomised[beyond])
    )


def test_curves_without_a_mask() -> None:
    first, second = (Volume(values, 2.5) for values in synthetic_pair(16))
    curves = compare_maps(first, second)
    assert curves.masked is None
    assert curves.corrected is None
    assert curves.resolutions_angstrom(0.143) == {"unmasked": 40 / 3, "masked": None, "corrected": None}
    assert curves.resolutions_angstrom(0.5) == {"unmasked": 20.0, "masked": None, "corrected": None}


def test_equal_maps_have_nothing_to_randomise(generator: torch.Generator) -> None:
    volume = Volume(synthetic_pair(16)[0], 2.5)
    curves = compare_maps(volume, volume, Volume(ball(16, 5, 2), 2.5), generator=generator)
    assert curves.randomised_from_shell is None
    assert curves.corrected is None
    assert curves.resolutions_angstrom(0.143)["masked"] == pytest.approx(5.0)


def test_maps_that_do_not_fit_are_refused() -> None:
    volume = Volume(torch.rand(16, 16, 16), 2.0)
    with pytest.raises(MapFileError, match="boxes of 16 and 12 pixels"):
        compare_maps(volume, Volume(torch.rand(12, 12, 12), 2.0))
    with pytest.raises(MapFileError, match=r"pixel sizes of 2 and 2\.1 Å.*--angpix"):
        compare_maps(volume, Volume(torch.rand(16, 16, 16), 2.1))
    with pytest.raises(MapFileError, match="mask has a box of 12 pixels, the maps have 16"):
        compare_maps(volume, volume, Volume(torch.rand(12, 12, 12), 2.0))
    with pytest.raises(MapFileError, match="mask has values from -1 to 1"):
        compare_maps(volume, volume, Volume(ball(16, 4, 2) * 2 - 1, 2.0))


@pytest.mark.realdata
def test_published_half_maps(reference_data: Path) -> None:
    folder = reference_data / "half_maps_mpopara"
    curves = compare_maps(*(read_map(folder / f"3D_density_map_h{half}.mrc") for half in (1, 2)))
    for name, column in (("pp", "FourierShellCorrelationUnmaskedMaps"), ("relion_fsc", "FourierShellCorrelation")):
        expected = relion_table(folder / f"{name}.star")[column]
        torch.testing.assert_close(curves.unmasked, expected, atol=1e-5, rtol=0)
    assert curves.resolutions_angstrom(0.143)["unmasked"] == pytest.approx(10.0)


@pytest.mark.realdata
def test_relions_own_half_maps_and_mask(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    first, second, mask = (read_map(folder / f"{name}.mrc") for name in ("rec_half1", "rec_half2", "mask"))
    table = relion_table(folder / "postprocess.star")
    runs = [compare_maps(first, second, mask, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    curves = runs[0]
    assert curves.masked is not None
    torch.testing.assert_close(
        curves.unmasked, relion_table(folder / "fsc_half.star")["FourierShellCorrelation"], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(curves.unmasked, table["FourierShellCorrelationUnmaskedMaps"], atol=1e-5, rtol=0)
    torch.testing.assert_close(curves.masked, table["FourierShellCorrelationMaskedMaps"], atol=1e-5, rtol=0)
    assert curves.randomised_from_shell == 12
    assert curves.resolutions_angstrom(0.143) == pytest.approx(
        {"unmasked": 240 / 28, "masked": 240 / 29, "corrected": 240 / 29}
    )
    # RELION drew other phases: its curve must be one of ours.
    for ours, column in (
        ([run.randomised for run in runs], "CorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"),
        ([run.corrected for run in runs], "FourierShellCorrelationCorrected"),
    ):
        drawn = torch.stack([curve for curve in ours if curve is not None])
        off = (table[column] - drawn.mean(0)).abs()
        assert bool((off < 5 * drawn.std(0) + 1e-3).all())


@pytest.mark.gpu
def test_cpu_and_gpu_agree() -> None:
    pair = synthetic_pair(16)
    on_gpu = fourier_shell_correlation(*(values.cuda() for values in pair))
    torch.testing.assert_close(on_gpu.cpu(), fourier_shell_correlation(*pair), atol=1e-5, rtol=0)
