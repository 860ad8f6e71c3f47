"""Synthetic outliers: the requested fraction, noise with the image's own amplitudes, pairs at the variance of one."""

import torch

from cryoeq.geometry.fourier import fft_image
from cryoeq.simulation.junk import KINDS, choose_outliers, overlap_pairs, scramble_phases


def test_the_requested_fraction_is_corrupted_evenly_over_the_kinds(generator: torch.Generator) -> None:
    kinds = choose_outliers(300, 0.4, generator)
    counts = torch.bincount(kinds + 1, minlength=len(KINDS) + 1)
    assert counts.tolist() == [180, 40, 40, 40]


def test_scrambled_images_keep_their_amplitudes_and_nothing_else(generator: torch.Generator) -> None:
    images = torch.randn(6, 16, 16, generator=generator)
    scrambled = scramble_phases(images, generator)
    torch.testing.assert_close(fft_image(scrambled).abs(), fft_image(images).abs(), atol=1e-5, rtol=1e-4)
    correlation = (scrambled * images).sum((1, 2)) / images.square().sum((1, 2))
    assert correlation.abs().max() < 0.3


def test_pairs_lie_beside_each_other_and_keep_the_variance_of_noise(generator: torch.Generator) -> None:
    spots = torch.zeros(50, 32, 32)
    spots[:, 16, 16] = 1
    pairs = overlap_pairs(spots, spots, generator) * 2**0.5
    torch.testing.assert_close(pairs[:, 16, 16], torch.ones(50))
    second = (pairs - spots).flatten(1).argmax(1)
    y, x = (second // 32 - 16).float(), (second % 32 - 16).float()
    assert ((y.hypot(x) > 7) & (y.hypot(x) < 16)).all()
    noise = torch.randn(50, 2, 32, 32, generator=generator)
    assert abs(float(overlap_pairs(noise[:, 0], noise[:, 1], generator).var()) - 1) < 0.05
