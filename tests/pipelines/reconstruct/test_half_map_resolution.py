"""Resolution at the end of a run: what ``cryoeq fsc`` finds on the same half maps, without any option."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.cli.main import run
from cryoeq.domain.optics import Optics
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.masks import spherical_mask
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct.half_map_resolution import compare_half_maps, resolve_half_maps
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, draw_ctf
from phantoms import alpha_helices, chiral_phantom

N, ANGPIX, RADIUS = 40, 5.0, 45.0


@pytest.fixture
def halves(generator: torch.Generator) -> HalfMaps:
    """A molecule in the middle of noise, which is another in each half."""
    truth = sample_atoms(chiral_phantom(RADIUS), N, ANGPIX).values
    noise = 0.15 * float(truth.max()) * torch.randn(2, N, N, N, generator=generator)
    return HalfMaps(*(Volume(truth + one, ANGPIX) for one in noise))


def test_the_figures_are_those_of_cryoeq_fsc(halves: HalfMaps, tmp_path: Path) -> None:
    """Resolutions, mask and post-processed map: one truth, wherever it is told."""
    paths = [tmp_path / f"run_half{number}_class001_unfil.mrc" for number in (1, 2)]
    for path, volume in zip(paths, (halves.first, halves.second), strict=True):
        write_map(path, volume)
    assert run(["fsc", str(paths[0]), "-o", str(tmp_path / "fsc")]) == 0
    told = read_json(tmp_path / "fsc" / "fsc.json")["resolution_angstrom"]
    found = resolve_half_maps(HalfMaps(*map(read_map, paths)), None, None)
    assert {name: found.resolution_angstrom(name) for name in told} == pytest.approx(told)
    assert found.mask is not None
    assert found.postprocessed is not None
    torch.testing.assert_close(found.mask.values, read_map(tmp_path / "fsc" / "mask.mrc").values)
    torch.testing.assert_close(found.postprocessed.values, read_map(tmp_path / "fsc" / "postprocess.mrc").values)


@pytest.mark.parametrize(("pixel", "is_sharpened"), [(2.0, True), (4.0, False)])
def test_it_is_sharpened_where_the_fit_rests_on_ten_shells(
    pixel: float, is_sharpened: bool, generator: torch.Generator
) -> None:
    """Of the same map with other voxels: fewer shells of it lie beyond 10 Å."""
    truth = torch.randn(64, 64, 64, generator=generator)
    truth = low_pass_gaussian(truth, 0.15) * spherical_mask(64, 1.0, 8.0, 36.0).values
    noise = 0.03 * float(truth.std()) * torch.randn(2, 64, 64, 64, generator=generator)
    found = resolve_half_maps(HalfMaps(*(Volume(truth + one, pixel) for one in noise)), None, None)
    assert found.bfactor_angstrom2 is not None
    assert (found.bfactor_angstrom2 < 0) == is_sharpened


def low_pass_gaussian(values: Tensor, width_per_px: float) -> Tensor:
    """Amplitudes that fall as those of a map with a B-factor do."""
    frequencies = torch.fft.fftfreq(len(values))
    squared = frequencies[:, None, None] ** 2 + frequencies[:, None] ** 2 + frequencies**2
    return torch.fft.ifftn(torch.fft.fftn(values) * torch.exp(-squared / (2 * width_per_px**2))).real.contiguous()


def test_the_hand_is_that_of_cryoeq_fsc_and_stays_in_the_record(tmp_path: Path, generator: torch.Generator) -> None:
    values = sample_atoms(alpha_helices(generator), 64, 1.5).values
    noise = 0.3 * float(values.std()) * torch.randn(2, 64, 64, 64, generator=generator)
    halves = HalfMaps(*(Volume(values + one, 1.5) for one in noise))
    for number, volume in enumerate((halves.first, halves.second), 1):
        write_map(tmp_path / f"half{number}.mrc", volume)
    assert run(["fsc", str(tmp_path / "half1.mrc"), "--json", str(tmp_path / "fsc.json")]) == 0
    told = read_json(tmp_path / "fsc.json")["hand"]
    recorded = resolve_half_maps(halves, None, None).into(ReconstructionMetrics()).to_json()
    assert recorded["hand_t"] == pytest.approx(told["t"], rel=1e-4)
    assert recorded["hand_probability"] == pytest.approx(told["probability_right"], rel=1e-4)
    assert told["found"] == "right"
    assert ReconstructionMetrics.from_json(recorded).hand_t == recorded["hand_t"]


def test_no_hand_is_told_beyond_8_angstrom(halves: HalfMaps) -> None:
    found = resolve_half_maps(halves, None, None)
    assert found.hand is None
    assert "hand_t" not in found.into(ReconstructionMetrics()).to_json()


def test_noise_around_the_molecule_counts_without_a_mask_only(halves: HalfMaps) -> None:
    found = resolve_half_maps(halves, None, None)
    metrics = found.into(ReconstructionMetrics())
    assert metrics.corrected_resolution_angstrom is not None
    assert metrics.half_map_resolution_angstrom is not None
    assert metrics.corrected_resolution_angstrom < metrics.half_map_resolution_angstrom
    assert metrics.map_diameter_angstrom == pytest.approx(2 * RADIUS, rel=0.25)
    assert metrics.resolution_beyond_ctf_zeros_angstrom is None
    again = compare_half_maps(halves, found.mask, None)  # as the report reads them
    assert again.curves.corrected is not None
    assert torch.equal(again.curves.corrected, found.curves.corrected)  # type: ignore[arg-type]


def test_a_mask_that_was_given_is_the_one(halves: HalfMaps) -> None:
    given = spherical_mask(N, ANGPIX, 30.0, 120.0)
    found = resolve_half_maps(halves, given, None)
    assert found.mask is given
    assert found.diameter_angstrom is None
    assert found.postprocessed is not None


def test_halves_that_agree_nowhere_or_entirely_have_no_mask(halves: HalfMaps, generator: torch.Generator) -> None:
    """A mask of noise says nothing, nor do halves that are not independent."""
    noise = HalfMaps(*(Volume(torch.randn(16, 16, 16, generator=generator), 3.0) for _ in range(2)))
    noise = HalfMaps(noise.first, Volume(noise.second.values - noise.first.values, 3.0))
    for pair in (noise, HalfMaps(halves.first, halves.first)):
        found = resolve_half_maps(pair, None, None)
        assert found.mask is None
        assert found.postprocessed is None
        assert found.resolution_angstrom("corrected") is None
    assert found.into(ReconstructionMetrics()).dependent_halves is not None


def test_a_dip_at_a_zero_of_the_ctf_is_told_with_where_it_ends(halves: HalfMaps, generator: torch.Generator) -> None:
    """And the curve counts on beyond it, in a figure of its own."""
    ctf = draw_ctf(20, Optics("one", ANGPIX, 300.0, 2.7, 0.1), DefocusRange(20_000.0, 20_500.0), generator)
    power = compare_half_maps(halves, None, ctf).ctf_power
    assert power is not None
    zero = 5 + int(power[5:14].argmin())  # with the noise of that shell alone the halves agree everywhere else
    filtered = [_without_shell(volume, zero, generator) for volume in (halves.first, halves.first)]
    found = compare_half_maps(HalfMaps(*filtered), None, ctf)
    (dip,) = found.dips
    assert dip.last_before < zero < dip.first_after
    side = N * ANGPIX
    assert found.beyond_zeros_angstrom == pytest.approx(side / dip.last_after)
    (note,) = found.notes()
    assert note.level == "info"
    assert f"falls below 0.143 at {side / dip.last_before:.1f} Å" in note.text
    assert f"to {side / dip.last_after:.1f} Å" in note.text
    assert not list(compare_half_maps(HalfMaps(*filtered), None, None).notes()), "without a CTF nothing excuses it"


def _without_shell(volume: Volume, shell: int, generator: torch.Generator) -> Volume:
    """A map with noise in place of one shell."""
    k = torch.fft.fftfreq(N, 1 / N)
    radius = torch.cartesian_prod(k, k, k).norm(dim=1).reshape(N, N, N).round()
    noise = torch.fft.fftn(float(volume.values.std()) * torch.randn(N, N, N, generator=generator))
    return Volume(
        torch.fft.ifftn(torch.where(radius == shell, noise, torch.fft.fftn(volume.values))).real.contiguous(), ANGPIX
    )
