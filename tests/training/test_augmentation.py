"""Data augmentation by D4, and what it changes in a training."""

from collections.abc import Callable

import pytest
import torch

from cryoeq.equivariance import plane_group
from cryoeq.equivariance.groups import permute_pixels
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.autoencoder.augmentation import augment, rotate_and_mirror
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.step import observe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_input_of_the_encoder_is_the_array_rotated(make_known: Callable, start: Callable) -> None:
    """An even box without row 0 and column 0, as the encoder crops it, lifted about its centre."""
    begin = start(make_known(8).dataset)
    batch = observe(begin.dataset, torch.arange(8), begin.plane, 1.0)
    elements = plane_group("d4").elements().float()
    rotated = begin.plane.images(rotate_and_mirror(batch, begin.plane, elements).coefficients)
    for g, before, after in zip(elements, begin.plane.images(batch.coefficients), rotated, strict=True):
        torch.testing.assert_close(after[1:, 1:], permute_pixels(before[1:, 1:], g), atol=1e-5, rtol=0)


def test_rotated_images_are_those_of_rotated_poses(make_known: Callable, start: Callable) -> None:
    """With shifts and astigmatic CTFs, as physics makes them."""
    known = make_known(64)
    plane = start(known.dataset).plane
    batch = observe(known.dataset, torch.arange(64), plane, 1.0)
    rotated, lifted = augment(batch, plane, torch.Generator().manual_seed(3))
    assert len(lifted.flatten(1).unique(dim=0)) == 8
    shifts_px = (lifted[:, :2, :2] @ known.shifts_px[..., None])[..., 0]
    made = form_images(
        prepare_slices(known.volume.values), lifted @ known.poses.rotations, shifts_px, rotated.transfer, plane
    )
    torch.testing.assert_close(rotated.coefficients, made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", ["training.augment", "loss.symmetric"])
@pytest.mark.parametrize(("group", "is_indifferent"), [("d4", True), ("c1", False)])
def test_only_an_equivariant_encoder_is_indifferent(
    make_known: Callable, start: Callable, group: str, is_indifferent: bool, setting: str
) -> None:
    """Its poses, rotated back, are the same through two steps of training with augmentation as without.

    So they are with the symmetric loss: both of its branches propose the same poses.
    """
    known = make_known(16)
    ends = []
    for switched in (False, True):
        begin = start(known.dataset, {"encoder.group": group, setting: switched, "loss.synthetic_weight": 0.0})
        for _ in fit(begin.state, known.dataset, begin.plane, begin.settings):
            pass
        ends.append(begin.state.rotations)
    assert torch.allclose(*ends, atol=1e-2) == is_indifferent


def test_every_step_draws_other_elements(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(16).dataset)
    batch = observe(begin.dataset, torch.arange(16), begin.plane, 1.0)
    first, again, other = (
        augment(batch, begin.plane, stream_generator(0, Stream.AUGMENTATION, step))[1] for step in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
