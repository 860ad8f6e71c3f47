"""Post-processing: laws on maps made for them, and RELION's numbers."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.mtf import MtfCurve
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.resolution import add_mask, compare_maps, corrected_correlation, resolution_angstrom
from cryoeq.evaluation.sharpening import LOG_OF_NOTHING, Sharpening, fsc_weights, sharpen
from cryoeq.geometry.map_filter import filter_radially
from cryoeq.io.mrc import read_map
from cryoeq.io.mtf import read_mtf

N, PIXEL = 32, 1.5

# relion_postprocess 3.1.3 on relion_1wcm: its options, the voxels below, their standard deviation, and of the fit the
# B-factor, slope, intercept and correlation.
VOXELS = ((32, 32, 32), (20, 40, 30), (45, 28, 33), (32, 20, 44), (5, 60, 50))
RELION = {
    "--auto_bfac": (
        Sharpening(),
        (-0.408232, -0.45009, -0.589238, -0.104082, 0.0030504),
        0.177075,
        (-743.43999, -185.86, -7.5597, 0.686544),
    ),
    "--auto_bfac --autob_lowres 15 --low_pass -1": (
        Sharpening(fit_from_angstrom=15.0, low_pass_angstrom=240 / 29),
        (-0.070646, -0.118032, -0.162832, -0.0193612, -0.00448762),
        0.0625897,
        (-332.37396, -83.09349, -8.90659, 0.63507),
    ),
    "--adhoc_bfac -200": (
        Sharpening(-200.0),
        (-0.0409725, -0.0472282, -0.109932, -0.0186183, -0.00787661),
        0.0526956,
        None,
    ),
    "--skip_fsc_weighting --adhoc_bfac -100": (
        Sharpening(-100.0, with_fsc_weighting=False),
        (-0.0563126, -0.0282034, -0.0889358, -0.0207895, -0.0104975),
        0.0540176,
        None,
    ),
    "--low_pass 12": (
        Sharpening(0.0, low_pass_angstrom=12.0),
        (0.0312377, 0.0710905, 0.0453358, -0.015862, -0.00863744),
        0.0384544,
        None,
    ),
}
# With --mtf of mtf_values() beside --adhoc_bfac -200.
RELION_MTF = {
    None: (-0.145643, -0.169803, -0.268803, -0.0341511, -0.00615045),
    2.0: (-0.0863921, -0.0995509, -0.179215, -0.0251946, -0.00686915),
}


def mtf_values() -> Tensor:
    frequencies = torch.arange(51, dtype=torch.float64) / 100
    return torch.exp(-1.5 * frequencies) * frequencies.cos()


def falling_map(bfactor: float, generator: torch.Generator) -> Volume:
    """White noise, blurred by a B-factor."""
    squared = torch.arange(3 * (N // 2) ** 2 + 1) / (N * PIXEL) ** 2
    noise = torch.randn(N, N, N, generator=generator, dtype=torch.float64)
    return Volume(filter_radially(noise, torch.exp(-bfactor / 4 * squared)), PIXEL)


def table(path: Path, name: str) -> dict[str, Tensor]:
    """The columns of a block of RELION's."""
    block = path.read_text().split(f"data_{name}")[1].split("data_")[0]
    labels = re.findall(r"^_rln(\S+)", block, re.MULTILINE)
    rows = [[float(value) for value in line.split()] for line in block.splitlines() if re.match(r"\s*-?\d", line)]
    return dict(zip(labels, torch.tensor(rows, dtype=torch.float64).T, strict=True))


def test_the_fit_finds_the_bfactor_and_sharpening_takes_it_away(generator: torch.Generator) -> None:
    volume = falling_map(80.0, generator)
    ones = torch.ones(N // 2 + 1, dtype=torch.float64)
    sharpened, guinier = sharpen(volume, ones, Sharpening())
    assert guinier.fit is not None
    assert guinier.bfactor_angstrom2 == pytest.approx(-80, abs=3)
    assert guinier.fit.n_points == N // 2 - math.ceil(N * PIXEL / 10) + 1
    assert guinier.fit.correlation > 0.99
    _, again = sharpen(sharpened, ones, Sharpening(fit_to_angstrom=3.1))  # the corners of the last shell are cut off
    assert again.bfactor_angstrom2 == pytest.approx(0, abs=0.5)
    assert guinier.sharpened is not None
    torch.testing.assert_close(again.original, guinier.sharpened)


def test_a_bfactor_that_is_given_is_applied(generator: torch.Generator) -> None:
    volume = falling_map(0.0, generator)
    ones = torch.ones(N // 2 + 1, dtype=torch.float64)
    blurred, guinier = sharpen(volume, ones, Sharpening(50.0))
    assert guinier.fit is None
    assert guinier.bfactor_angstrom2 == 50
    expected = torch.fft.rfftn(volume.values)[1, 2, 3] * math.exp(-50 / 4 * 14 / (N * PIXEL) ** 2)
    torch.testing.assert_close(torch.fft.rfftn(blurred.values)[1, 2, 3], expected)
    same, untouched = sharpen(volume, ones, Sharpening(0.0, with_fsc_weighting=False))
    torch.testing.assert_close(same.values, volume.values)
    assert untouched.weighted is None
    assert untouched.sharpened is None


def test_nothing_is_fitted_where_there_is_no_signal_to_fit(generator: torch.Generator) -> None:
    fsc = (torch.arange(N // 2 + 1) < 5).double()  # nothing beyond 12 Angstrom
    _, guinier = sharpen(falling_map(80.0, generator), fsc, Sharpening())
    assert guinier.fit is None
    assert guinier.bfactor_angstrom2 == 0
    assert guinier.weighted is not None
    assert guinier.weighted[5:].eq(LOG_OF_NOTHING).all()


def test_weights_are_those_of_rosenthal_and_henderson_up_to_the_first_drop() -> None:
    fsc = torch.tensor([1.0, 0.9, 0.5, 0.0, 0.4, -0.1], dtype=torch.float64)
    expected = torch.tensor([1, (1.8 / 1.9) ** 0.5, (1 / 1.5) ** 0.5, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(fsc_weights(fsc), expected)


def test_the_mtf_is_divided_out(generator: torch.Generator) -> None:
    volume = falling_map(0.0, generator)
    mtf = MtfCurve(torch.tensor([0.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.2], dtype=torch.float64))
    radii = torch.arange(3 * (N // 2) ** 2 + 1).double().sqrt() / N  # cycles per pixel
    blurred = Volume(filter_radially(volume.values, torch.where(radii < 0.5, 1 - 1.6 * radii, 1.0)), PIXEL)
    ones = torch.ones(N // 2 + 1, dtype=torch.float64)
    restored, guinier = sharpen(blurred, ones, Sharpening(0.0, with_fsc_weighting=False, mtf=mtf))
    torch.testing.assert_close(restored.values, volume.values)
    assert guinier.mtf_corrected is not None
    assert bool((guinier.mtf_corrected > guinier.original)[1:-1].all())
    finer = Sharpening(0.0, with_fsc_weighting=False, mtf=mtf, mtf_pixel_size_angstrom=PIXEL / 2)
    _, half = sharpen(blurred, ones, finer)
    assert half.mtf_corrected is not None
    expected = blurred.values.new_tensor(-math.log(1 - 1.6 * 8 / N / 2))
    torch.testing.assert_close((half.mtf_corrected - half.original)[8], expected, atol=0.02, rtol=0)


def test_a_star_of_relion_holds_the_mtf(tmp_path: Path) -> None:
    path = tmp_path / "mtf.star"
    heading = "data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n"
    path.write_text(heading + "0.0 1.0\n0.5 0.4\n")
    mtf = read_mtf(path)
    assert mtf.frequencies_per_px.tolist() == [0.0, 0.5]
    assert mtf.values.tolist() == [1.0, 0.4]
    path.write_text(heading + "0.0 1.0\n0.5 0.0\n")
    with pytest.raises(MapFileError, match="no MTF curve"):
        read_mtf(path)
    path.write_text("data_\n\nloop_\n_rlnOther #1\n1.0\n2.0\n")
    with pytest.raises(MapFileError, match="rlnResolutionInversePixel"):
        read_mtf(path)


@pytest.mark.realdata
@pytest.mark.parametrize("options", RELION)
def test_maps_and_fits_are_those_of_relion(reference_data: Path, options: str) -> None:
    settings, voxels, spread, fit = RELION[options]
    full, fsc = relion_average(reference_data)
    sharpened, guinier = sharpen(full, fsc, settings)
    found = [float(sharpened.values[place]) for place in VOXELS]
    assert found == pytest.approx(voxels, rel=2e-5, abs=2e-6)
    assert float(sharpened.values.std()) == pytest.approx(spread, rel=1e-5)
    if fit is not None:
        assert guinier.fit is not None
        ours = (
            guinier.bfactor_angstrom2, guinier.fit.slope_angstrom2, guinier.fit.intercept, guinier.fit.correlation,
        )  # fmt: skip
        assert ours == pytest.approx(fit, rel=1e-5)


@pytest.mark.realdata
@pytest.mark.parametrize("pixel_size", RELION_MTF)
def test_the_mtf_is_that_of_relion_but_for_its_rounding(reference_data: Path, pixel_size: float | None) -> None:
    """RELION takes the first value for the whole first interval, and extrapolates: up to 0.6 % in single shells."""
    full, fsc = relion_average(reference_data)
    mtf = MtfCurve(torch.arange(51, dtype=torch.float64) / 100, mtf_values())
    sharpened, _ = sharpen(full, fsc, Sharpening(-200.0, mtf=mtf, mtf_pixel_size_angstrom=pixel_size))
    found = [float(sharpened.values[place]) for place in VOXELS]
    assert found == pytest.approx(RELION_MTF[pixel_size], abs=6e-4)  # 1 % of the standard deviation


def relion_average(reference_data: Path) -> tuple[Volume, Tensor]:
    """The average of RELION's half maps, and its final curve."""
    folder = reference_data / "relion_1wcm"
    first, second = (read_map(folder / f"rec_half{half}.mrc") for half in (1, 2))
    fsc = table(folder / "postprocess.star", "fsc")["FourierShellCorrelationCorrected"]
    return Volume((first.values + second.values) / 2, first.pixel_size_angstrom), fsc


@pytest.mark.realdata
def test_the_map_and_the_guinier_plot_that_relion_left(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    full, fsc = relion_average(reference_data)
    sharpened, guinier = sharpen(full, fsc, Sharpening(0.0))
    torch.testing.assert_close(sharpened.values, read_map(folder / "postprocess.mrc").values, atol=1e-6, rtol=0)
    expected = table(folder / "postprocess.star", "guinier")
    assert guinier.weighted is not None
    torch.testing.assert_close(guinier.inverse_square_resolution, expected["ResolutionSquared"], atol=1e-6, rtol=0)
    torch.testing.assert_close(guinier.original, expected["LogAmplitudesOriginal"], atol=1e-5, rtol=0)
    torch.testing.assert_close(guinier.weighted, expected["LogAmplitudesWeighted"], atol=1e-5, rtol=0)


@pytest.mark.realdata
def test_curves_and_final_resolution_are_those_of_relion_for_every_seed(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    first, second, mask = (read_map(folder / f"{name}.mrc") for name in ("rec_half1", "rec_half2", "mask"))
    expected = table(folder / "postprocess.star", "fsc")
    plain = compare_maps(first, second)
    drawn = []
    for seed in range(20):
        curves = add_mask(plain, first, second, mask, torch.Generator().manual_seed(seed))
        assert curves.final_resolution_angstrom == pytest.approx(8.275862)
        assert curves.randomised_from_shell == 12  # 20 Angstrom
        assert curves.randomised is not None
        drawn.append(curves.randomised)
    for ours, column in (
        (curves.unmasked, "FourierShellCorrelationUnmaskedMaps"),
        (curves.masked, "FourierShellCorrelationMaskedMaps"),
        (curves.particle_fraction, "FourierShellCorrelationParticleMaskFraction"),
    ):
        torch.testing.assert_close(ours, expected[column], atol=1e-4, rtol=0)
    assert curves.solvent_fraction == pytest.approx(4.080062)
    random = expected["CorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"]
    spread = torch.stack(drawn).std(0)
    assert bool(((random - torch.stack(drawn).mean(0)).abs() < 4 * spread + 1e-6).all())
    assert float(spread[12:].min()) > 0.015
    assert float(spread[12:].max()) < 0.045
    again = add_mask(plain, first, second, mask, torch.Generator().manual_seed(19))
    assert again.randomised is not None
    assert torch.equal(again.randomised, drawn[-1])
    recomputed = corrected_correlation(expected["FourierShellCorrelationMaskedMaps"], random, 12)
    torch.testing.assert_close(recomputed, expected["FourierShellCorrelationCorrected"], atol=1e-4, rtol=0)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("starfile_postprocess", 16.363636),
        ("cryosieve_EMPIAR-11233_iter0", 3.052973),
        ("cryosieve_EMPIAR-11233_iter5", 2.972632),
    ],
)
def test_the_rule_for_the_final_resolution_on_stars_of_others(reference_data: Path, name: str, final: float) -> None:
    path = reference_data / "fsc_reference" / f"{name}.star"
    columns = table(path, "fsc")
    assert f"_rlnFinalResolution{final:>34.6f}"[-12:].strip() in path.read_text()
    side = float(columns["AngstromResolution"][1])
    found = resolution_angstrom(columns["FourierShellCorrelationCorrected"], 0.143, 1, side)
    assert found == pytest.approx(final, abs=1e-6)
