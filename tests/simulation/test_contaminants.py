"""Contaminants are loud, have an edge in the image, and know nothing of its border."""

from dataclasses import replace

import torch

from cryoeq.domain.optics import Optics
from cryoeq.simulation.contaminants import STRENGTH, draw_contaminants, image_contaminants, middle
from cryoeq.simulation.particles import DefocusRange, draw_ctf

OPTICS = Optics("test", 5.0, 300.0, 2.7, 0.1)
N = 32


def test_each_is_as_many_times_as_strong_as_particles(generator: torch.Generator) -> None:
    objects = draw_contaminants(40, N, generator)
    ctf = draw_ctf(40, OPTICS, DefocusRange(1e4, 2e4), generator)
    deviation = image_contaminants(objects, ctf, 5.0, 0.3, generator).flatten(1).std(1) / 0.3
    assert STRENGTH[0] - 1e-3 <= float(deviation.min()) < float(deviation.max()) <= STRENGTH[1] + 1e-3


def test_there_is_an_edge_in_the_image(generator: torch.Generator) -> None:
    inside = middle(draw_contaminants(60, N, generator), N).abs() > 0
    share = inside.flatten(1).double().mean(1)
    assert float(share.min()) > 0.01
    assert float(share.max()) < 0.99
    assert float(share.std()) > 0.1


def test_the_step_is_seen_through_the_ctf(generator: torch.Generator) -> None:
    """The film is brighter than the hole, contaminants mostly too: amplitude contrast passes the origin."""
    objects = draw_contaminants(60, N, generator)
    ctf = draw_ctf(60, OPTICS, DefocusRange(1e4, 2e4), generator)
    images = image_contaminants(objects, ctf, 5.0, 1.0, generator)
    inside = middle(objects, N).abs() > 0
    steps = torch.stack([image[mask].mean() - image[~mask].mean() for image, mask in zip(images, inside, strict=True)])
    assert float((steps > 0).double().mean()) > 0.7
    assert float(steps.abs().median()) > 1.0


def test_nothing_enters_from_the_other_side(generator: torch.Generator) -> None:
    """A larger box around the same object gives the same image."""
    small = torch.zeros(1, 2 * N, 2 * N)
    small[0, 10:30, 5:25] = 1 + torch.randn(20, 20, generator=generator)
    large = torch.nn.functional.pad(small, (N, N, N, N))
    ctf = replace(draw_ctf(1, OPTICS, DefocusRange(1e4, 1.1e4), generator), bfactor_angstrom2=torch.full((1,), 1500.0))
    one = image_contaminants(small, ctf, 5.0, 1.0, torch.Generator().manual_seed(1))
    other = middle(image_contaminants(large, ctf, 5.0, 1.0, torch.Generator().manual_seed(1)), N)
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert float(correlation) > 0.99
