"""Class averages and their embeddings: they follow the particle, not the way it is turned on the image."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.equivariance.measure import transform_images
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.models.encoder import PoseEncoder
from cryoeq.training.class_embedding import ClassEmbedding, class_averages, turn_images
from cryoeq.training.rendering_lessons import EncoderView, encoder_box_px
from cryoeq.training.taught_encoder import TaughtEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
RADIUS, COUNT = 5, 24


@pytest.fixture(scope="module")
def embedding() -> ClassEmbedding:
    torch.manual_seed(0)
    box = encoder_box_px(RADIUS)
    plane = HalfPlane.up_to(box, RADIUS, torch.device("cpu"))
    view = EncoderView(plane, torch.ones(len(plane)), 1.0, torch.zeros(1, 2), True)
    encoder = PoseEncoder("d4", box, 1, (32,), trunk="dense").eval()
    return ClassEmbedding(TaughtEncoder(encoder, view, RADIUS, box, 4.0, False))


def quarter_turns(count: int, generator: torch.Generator) -> Tensor:
    """Turns about the beam by whole quarters."""
    turns = torch.randint(4, (count,), generator=generator) * (math.pi / 2)
    return rotation_from_vector(torch.stack([torch.zeros(count), torch.zeros(count), turns], 1))


def test_turning_is_the_action_on_images(generator: torch.Generator) -> None:
    images = torch.randn(3, 9, 9, generator=generator)
    g = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(
        turn_images(images, torch.full((3,), math.pi / 2)), transform_images(images, g), atol=1e-5, rtol=0
    )


def test_a_class_of_turned_copies_averages_to_the_particle(generator: torch.Generator) -> None:
    image = torch.randn(1, 9, 9, generator=generator)
    turns = quarter_turns(8, generator)
    copies = torch.cat([transform_images(image, turn[:2, :2].round()) for turn in turns])
    rotations = turns @ random_rotations(1, generator)
    averages = class_averages(copies, rotations, torch.arange(8).expand(8, 8), torch.arange(8))
    torch.testing.assert_close(averages, copies, atol=1e-4, rtol=0)


def test_embeddings_do_not_turn_with_the_particles(embedding: ClassEmbedding, generator: torch.Generator) -> None:
    shown = torch.randn(COUNT, 11, 11, generator=generator)
    rotations, turns = random_rotations(COUNT, generator), quarter_turns(COUNT, generator)
    turned = torch.cat([transform_images(shown[i : i + 1], turns[i, :2, :2].round()) for i in range(COUNT)])
    found, again = embedding.embed(shown, rotations), embedding.embed(turned, turns @ rotations)
    torch.testing.assert_close(again @ again.T, found @ found.T, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(COUNT))


def test_a_particle_and_its_mirror_image_differ(embedding: ClassEmbedding, generator: torch.Generator) -> None:
    """Opposite views are mirror images: an embedding that joined them would join what is far apart."""
    half = torch.randn(COUNT, 11, 11, generator=generator)
    shown = torch.cat([half, half.flip(2)])
    found = embedding.embed(shown, random_rotations(2 * COUNT, generator))
    assert float((found[:COUNT] * found[COUNT:]).sum(1).mean()) < 0.9


def test_single_particles_are_embedded(embedding: ClassEmbedding, generator: torch.Generator) -> None:
    alone = embedding.embed(torch.randn(1, 11, 11, generator=generator), random_rotations(1, generator))
    assert alone.isfinite().all()
