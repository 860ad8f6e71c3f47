"""Lessons: renderings look like the particles, and an encoder learns poses from them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.encoder import PoseEncoder
from cryoeq.training.losses import mixture_loss
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.rendering_lessons import (
    EncoderView,
    Lessons,
    LessonSettings,
    best_hypotheses,
    encoder_box_px,
    learn,
    propose_poses,
)

pytestmark = pytest.mark.usefixtures("one_thread")
RADIUS, SIGMA_PX = 6, 1.2


@pytest.fixture(scope="module")
def seen(make_known: Callable, observe: Callable) -> tuple[ObservedImages, Tensor]:
    known = make_known(256, sigma=1.0)
    return observe(known.dataset), known.volume.values


def test_renderings_have_the_power_of_the_particles(seen: tuple[ObservedImages, Tensor]) -> None:
    images, volume = seen
    view = EncoderView.of_map(images, volume, RADIUS)
    matched, *_ = Lessons.of_map(images, volume, view, SIGMA_PX).render(512, torch.Generator().manual_seed(0))
    shells = view.plane.shells
    ours, theirs = (
        torch.zeros(RADIUS + 1).index_add(0, shells, values[:, : len(shells)].abs().square().mean(0))
        for values in (matched, images.matched)
    )
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.25, atol=0)


def test_the_view_has_unit_variance_and_keeps_shifts(seen: tuple[ObservedImages, Tensor]) -> None:
    images, volume = seen
    view = EncoderView.of_map(images, volume, RADIUS)
    shown = view.plane.transform(view.images(images.matched[:, : len(view.plane)]))
    assert float(shown.abs().square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert view.shift_scale * encoder_box_px(RADIUS) == images.plane.box_size_px


def test_turned_particles_get_turned_poses(seen: tuple[ObservedImages, Tensor]) -> None:
    """The CTF turns with the particle, so what the encoder sees does."""
    images, volume = seen
    view = EncoderView.of_map(images, volume, RADIUS)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, trunk="dense").eval()
    matched = images.matched[:8, : len(view.plane)]
    turned = matched.conj()  # by half a turn about the beam
    before, after = (propose_poses(encoder, values, view, centred=False) for values in (matched, turned))
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    torch.testing.assert_close(after.rotations, half_turn @ before.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.shifts_px, -before.shifts_px, atol=1e-3, rtol=0)


def test_an_encoder_learns(seen: tuple[ObservedImages, Tensor]) -> None:
    images, volume = seen
    view = EncoderView.of_map(images, 4 * volume, RADIUS)  # clear renderings: it has a second
    lessons = Lessons.of_map(images, 4 * volume, view, 0.0)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 4, (128,), trunk="dense")
    settings = LessonSettings(steps=60, batch_size=48, rate=1e-2, sharpness=2.0, first_noise=0.2)
    events = list(learn(encoder, lessons, settings, seed=0))
    assert [event.done for event in events] == list(range(1, 61))
    assert not encoder.training
    matched, rotations, *_ = lessons.render(128, torch.Generator().manual_seed(1))
    with torch.no_grad():
        rotation, shifts = best_hypotheses(propose_poses(encoder, matched, view, centred=True))
    assert float(rotation_angle_rad(rotation, rotations).median().rad2deg()) < 60  # 126 by chance
    assert not shifts.any()


def test_the_mixture_prefers_the_right_head() -> None:
    costs = torch.tensor([[0.0, 8.0]])
    right, wrong = (mixture_loss(torch.tensor([logits]), costs, 2.0) for logits in ([3.0, 0.0], [0.0, 3.0]))
    assert float(right) < float(wrong)
    assert float(mixture_loss(torch.zeros(1, 1), torch.tensor([[0.5]]), 2.0)) == pytest.approx(1.0)
