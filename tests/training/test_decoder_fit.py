"""A decoder fitted to particles of known pose shows their map."""

from collections.abc import Callable
from typing import Any

import torch

from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.models.decoder import ImplicitDecoder
from cryoeq.training.decoder_fit import DecoderFitSettings, fit_decoder

Make = Callable[..., Any]
SETTINGS = DecoderFitSettings(steps=150, batch_size=32, rate=1e-3)


def fit(known: Any, images: Any, shifts_px: torch.Tensor) -> torch.Tensor:
    decoder = ImplicitDecoder(16, torch.Generator().manual_seed(0), width=32)
    precision = torch.ones(len(images.plane))
    poses = (known.poses.rotations, shifts_px)
    events = list(fit_decoder(decoder, images, poses, precision, SETTINGS, seed=0))
    assert [event.done for event in events] == list(range(1, 151))
    assert events[-1].figures["log likelihood"] > events[0].figures["log likelihood"]
    return fourier_shell_correlation(decoder.to_map(), known.volume.values)


def test_it_shows_the_map_and_needs_the_shifts(make_known: Make, observe: Make) -> None:
    known = make_known(200, sigma=0.5)
    images = observe(known.dataset)
    assert float(fit(known, images, known.shifts_px)[1:6].min()) > 0.9
    assert float(fit(known, images, torch.zeros_like(known.shifts_px))[1:6].min()) < 0.8
