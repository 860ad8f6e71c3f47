"""Defocus and astigmatism refined against maps: planted errors come back, and right ones stay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.fourier import fft_image, ifft_image
from cryoeq.physics.ctf import evaluate_ctf, image_transfer, with_defocus_moved
from cryoeq.reconstruction.ctf_refinement import CtfErrors, needed_resolution_angstrom, reached_shell, refine_ctf

Make = Callable[..., Any]
COUNT, SIZE = 240, 20
GROUP, HALF = torch.arange(COUNT) // SIZE, 1 + torch.arange(COUNT) % 2


def restated(dataset: ParticleDataset, ctf: CtfParameters) -> ParticleDataset:
    return replace(dataset, table=replace(dataset.table, ctf=ctf, micrograph_index=GROUP))


def planted(dataset: ParticleDataset, defocus: float, astigmatism: float) -> CtfErrors:
    """Errors that the stated CTF gets, so that minus these are to be found."""
    generator = torch.Generator().manual_seed(5)
    zero = CtfErrors.none(restated(dataset, dataset.table.ctf))
    return replace(
        zero,
        defocus_angstrom=defocus * torch.randn(COUNT, generator=generator),
        astigmatism_angstrom=astigmatism * torch.randn(COUNT // SIZE, 2, generator=generator),
    )


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def flipped(dataset: ParticleDataset, ctf: CtfParameters) -> ParticleDataset:
    """The images times the sign of a CTF."""
    n, pixel = dataset.box_size_px, dataset.pixel_size_angstrom
    k = (torch.arange(n) - n // 2) / (n * pixel)
    y, x = torch.meshgrid(k, k, indexing="ij")
    signs = evaluate_ctf(ctf, torch.stack([x, y], -1).flatten(0, 1)).sign().view(-1, n, n)
    images = ifft_image(fft_image(dataset.cache) * signs)
    return restated(replace(dataset, cache=images), replace(ctf, is_phase_flipped=torch.ones(COUNT)))


@pytest.mark.parametrize("is_flipped", [False, True])
def test_planted_errors_are_found_as_far_as_the_noise_allows(make_known: Make, is_flipped: bool) -> None:
    known = make_known(COUNT, sigma=0.8)
    errors = planted(known.dataset, 600.0, 0.0)
    stated = errors.corrected(known.dataset.table.ctf)
    dataset = flipped(known.dataset, stated) if is_flipped else restated(known.dataset, stated)
    found = result_of(refine_ctf(dataset, known.poses, HALF, HalfMaps(known.volume, known.volume)))
    left = found.defocus_angstrom + errors.defocus_angstrom
    assert rms(left) < 0.7 * rms(errors.defocus_angstrom)
    assert rms(left / found.defocus_sigma_angstrom) == pytest.approx(1, abs=0.25)


def test_astigmatism_of_micrographs_is_found_beside_defocus(make_known: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    errors = planted(known.dataset, 300.0, 300.0)
    dataset = restated(known.dataset, errors.corrected(known.dataset.table.ctf))
    halves, found = HalfMaps(known.volume, known.volume), None
    for _ in range(4):
        found = result_of(refine_ctf(dataset, known.poses, HALF, halves, found))
    left = found.astigmatism_angstrom + errors.astigmatism_angstrom
    assert rms(left) < 0.4 * rms(errors.astigmatism_angstrom)
    assert rms(found.defocus_angstrom + errors.defocus_angstrom) < 0.8 * rms(errors.defocus_angstrom)


def test_a_right_ctf_is_left_alone(make_known: Make) -> None:
    known = make_known(COUNT, sigma=1.0)
    dataset, halves = restated(known.dataset, known.dataset.table.ctf), HalfMaps(known.volume, known.volume)
    found = result_of(refine_ctf(dataset, known.poses, HALF, halves))
    found = result_of(refine_ctf(dataset, known.poses, HALF, halves, found))
    assert float(found.defocus_angstrom.square().mean().sqrt()) < 100
    assert float(found.astigmatism_angstrom.square().mean().sqrt()) < 30


def test_errors_are_added_as_vectors_of_twice_the_angle(make_known: Make) -> None:
    known = make_known(COUNT)
    ctf = known.dataset.table.ctf
    errors = planted(known.dataset, 200.0, 150.0)
    opposite = replace(
        errors, defocus_angstrom=-errors.defocus_angstrom, astigmatism_angstrom=-errors.astigmatism_angstrom
    )
    back = opposite.corrected(errors.corrected(ctf))
    torch.testing.assert_close(back.defocus_u_angstrom, ctf.defocus_u_angstrom, atol=0.1, rtol=0)
    torch.testing.assert_close(back.defocus_v_angstrom, ctf.defocus_v_angstrom, atol=0.1, rtol=0)
    turned = 2 * (back.defocus_angle_rad - ctf.defocus_angle_rad)
    astigmatic = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom > 50
    assert float(turned.cos()[astigmatic].min()) > 0.999


def test_images_that_were_multiplied_by_their_ctf_are_refused(make_known: Make) -> None:
    known = make_known(COUNT)
    ctf = replace(known.dataset.table.ctf, is_premultiplied=torch.ones(COUNT))
    with pytest.raises(ValueError, match="multiplied"):
        result_of(refine_ctf(restated(known.dataset, ctf), known.poses, HALF, HalfMaps(known.volume, known.volume)))


def test_images_stay_flipped_by_the_stated_ctf(make_known: Make) -> None:
    """After a refinement the model of an image is the refined CTF times the sign of the stated one."""
    known = make_known(COUNT)
    true = known.dataset.table.ctf
    errors = planted(known.dataset, 600.0, 200.0)
    stated = errors.corrected(true)
    dataset = flipped(known.dataset, stated)
    opposite = replace(
        errors, defocus_angstrom=-errors.defocus_angstrom, astigmatism_angstrom=-errors.astigmatism_angstrom
    )
    refined = opposite.corrected(dataset.table.ctf)
    frequencies = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    expected = evaluate_ctf(true, frequencies) * evaluate_ctf(stated, frequencies).sign()
    torch.testing.assert_close(image_transfer(refined, frequencies), expected, atol=2e-3, rtol=0)
    assert CtfErrors.none(dataset).corrected(refined).flipped_by is dataset.table.ctf, "also after another round"
    assert errors.corrected(true).flipped_by is None


def test_errors_beyond_the_range_are_told_and_found_in_a_wider_one(make_known: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    error = torch.where(GROUP < 3, 2600.0, 0.0)
    dataset = restated(known.dataset, with_defocus_moved(known.dataset.table.ctf, error))
    halves = HalfMaps(known.volume, known.volume)
    near, wide = (
        result_of(refine_ctf(dataset, known.poses, HALF, halves, range_angstrom=reach)) for reach in (2000.0, 4000.0)
    )
    assert bool(near.is_at_end[GROUP < 3].float().mean() > 0.5)
    assert float(near.is_at_end[GROUP >= 3].float().mean()) < 0.02
    assert wide.share_at_end < 0.02
    assert CtfErrors.none(dataset).share_at_end == 0
    assert rms((wide.defocus_angstrom + error)[GROUP < 3]) < 300


@pytest.mark.parametrize("kilovolts", [100.0, 300.0])
def test_what_is_needed_turns_the_phase_of_a_typical_error_by_the_same_angle(
    make_known: Make, kilovolts: float
) -> None:
    ctf = make_known(COUNT).dataset.table.ctf[torch.arange(4)]
    plain = replace(
        ctf,
        voltage_kv=torch.full((4,), kilovolts),
        spherical_aberration_mm=torch.zeros(4),
        defocus_v_angstrom=ctf.defocus_u_angstrom,
        amplitude_contrast=torch.zeros(4),
    )
    at = torch.tensor([[1 / needed_resolution_angstrom(plain), 0.0]])
    quarter = replace(plain, phase_shift_rad=torch.full((4,), torch.pi / 2))
    moved = with_defocus_moved(plain, torch.full((4,), 500.0))
    turned = evaluate_ctf(plain, at) * torch.cos(torch.tensor(0.22)) + evaluate_ctf(quarter, at) * torch.sin(
        torch.tensor(0.22)
    )
    torch.testing.assert_close(evaluate_ctf(moved, at), turned, atol=1e-3, rtol=0)


def test_the_reached_shell_is_the_first_without_agreement(make_known: Make) -> None:
    volume = make_known(4).volume
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert reached_shell(HalfMaps(volume, volume)) == 8
    assert reached_shell(HalfMaps(*(replace(volume, values=each) for each in noise))) <= 2
