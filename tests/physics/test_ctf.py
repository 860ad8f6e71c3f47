import math
from dataclasses import replace

import pytest
import torch

from cryoeq.domain.optics import CtfParameters
from cryoeq.physics.ctf import (
    electron_wavelength_angstrom,
    evaluate_ctf,
    image_transfer,
    matched_filter,
    phase_flips,
)


def parameters(**changes: float) -> CtfParameters:
    values = {
        "defocus_u_angstrom": 1.5e4,
        "defocus_v_angstrom": 1.2e4,
        "defocus_angle_rad": 0.4,
        "phase_shift_rad": 0.0,
        "bfactor_angstrom2": 0.0,
        "scale": 1.0,
        "voltage_kv": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
        "is_premultiplied": 0.0,
        "is_phase_flipped": 0.0,
    } | changes
    return CtfParameters(**{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()})


@pytest.mark.parametrize(("kv", "wavelength"), [(100.0, 0.037014), (200.0, 0.025079), (300.0, 0.019687)])
def test_wavelength_is_the_textbook_value(kv: float, wavelength: float) -> None:
    assert electron_wavelength_angstrom(torch.tensor([kv])).item() == pytest.approx(wavelength, abs=2e-6)


def test_origin_and_scale() -> None:
    origin = torch.zeros(1, 2, dtype=torch.float64)
    assert evaluate_ctf(parameters(), origin).item() == pytest.approx(0.1)
    assert evaluate_ctf(parameters(scale=0.7), origin).item() == pytest.approx(0.07)
    plate = parameters(phase_shift_rad=math.pi / 2)
    assert evaluate_ctf(plate, origin).item() == pytest.approx(math.sin(math.asin(0.1) + math.pi / 2))


def test_first_zero_follows_the_local_defocus() -> None:
    # Thon rings are tighter along the direction of the larger defocus.
    directions = torch.tensor([0.4, 0.4 + math.pi / 2], dtype=torch.float64)
    s = torch.linspace(0, 0.1, 2001, dtype=torch.float64)
    ctf = parameters(spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    for direction, defocus in zip(directions, (1.5e4, 1.2e4), strict=True):
        ray = torch.stack([s * direction.cos(), s * direction.sin()], dim=1)
        values = evaluate_ctf(ctf, ray)[0]
        zero = s[1:][(values[1:] < 0).nonzero()[0, 0]]
        assert zero.item() == pytest.approx(1 / math.sqrt(0.0196874 * defocus), abs=1e-4)
        assert (values[1:100] > 0).all()


def test_bfactor_is_an_envelope() -> None:
    frequencies = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2
    damped, plain = (evaluate_ctf(parameters(bfactor_angstrom2=b), frequencies) for b in (80.0, 0.0))
    torch.testing.assert_close(damped, plain * torch.exp(-20 * frequencies.square().sum(1)))


def test_premultiplied_images_carry_the_square() -> None:
    frequencies = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double() * 0.2
    plain = parameters()
    multiplied = replace(plain, is_premultiplied=torch.ones(1, dtype=torch.float64))
    ctf = evaluate_ctf(plain, frequencies)
    torch.testing.assert_close(image_transfer(plain, frequencies), ctf)
    torch.testing.assert_close(image_transfer(multiplied, frequencies), ctf.square())
    flipped = replace(plain, is_phase_flipped=torch.ones(1, dtype=torch.float64))
    both = replace(multiplied, is_phase_flipped=torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(image_transfer(both, frequencies), ctf.square())
    for stored in (plain, multiplied, flipped, both):
        factor, power = matched_filter(stored, frequencies)
        # Whichever way an image was stored, the filtered one carries the CTF squared.
        torch.testing.assert_close(factor * image_transfer(stored, frequencies), power)
        torch.testing.assert_close(power, ctf.square())


def test_a_refined_ctf_keeps_the_signs_that_images_were_flipped_by() -> None:
    frequencies = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double() * 0.2
    stated = parameters(is_phase_flipped=1.0)
    refined = replace(stated, defocus_u_angstrom=stated.defocus_u_angstrom + 800, flipped_by=stated)
    stored = evaluate_ctf(refined, frequencies) * evaluate_ctf(stated, frequencies).sign()
    assert (stored < -0.1).any(), "it is no absolute value"
    torch.testing.assert_close(image_transfer(refined, frequencies), stored)
    torch.testing.assert_close(phase_flips(refined, frequencies), phase_flips(stated, frequencies))
    factor, power = matched_filter(refined, frequencies)
    torch.testing.assert_close(factor * stored, power)
    # Some of the particles, or another type, are of the same images.
    some = refined.each(lambda values: values.repeat(3).float())[torch.tensor([2])]
    torch.testing.assert_close(image_transfer(some, frequencies.float()), stored.float(), atol=1e-3, rtol=1e-3)
    whole = replace(refined, is_phase_flipped=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(image_transfer(whole, frequencies), evaluate_ctf(refined, frequencies))
