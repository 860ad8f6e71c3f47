"""Poses of all particles: the seam's law f(g.I) = rho(g) f(I), and what is said about the fit."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from group_actions import act_on_shifts
from torch import Tensor

from cryoeq.domain.events import Progress, result_of
from cryoeq.equivariance import plane_group
from cryoeq.equivariance.actions import act_on_rotations, transform_images
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.pose_head import PoseProposals
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.pose_assignment import InferredPoses, infer_poses
from pipeline_events import events_and_result

pytestmark = pytest.mark.usefixtures("one_thread")

N, ANGPIX, COUNT = 16, 5.0, 24
OFF_DEG, OFF_PX = 0.05, 2e-3
"""Rounding of single precision; an encoder that is not equivariant is off by tens of degrees and tenths of a pixel."""


def inferred(begin: Any, dataset: Any, *, is_symmetric: bool = False) -> InferredPoses:
    steps = infer_poses(begin.state, dataset, begin.plane, batch_size=10, is_symmetric=is_symmetric, centred=False)
    events, found = events_and_result(steps)
    assert events == [Progress("encoder inference", done, COUNT) for done in (10, 20, COUNT)]
    return found


def images_on_the_odd_grid(dataset: Any) -> Tensor:
    """Row and column 0 of an even box have no mates: without them an element of the group loses nothing."""
    images = dataset.cache.clone()
    images[:, 0], images[:, :, 0] = 0.0, 0.0
    return images


def largest_errors(
    begin: Any, make_dataset: Callable, elements: Tensor, *, is_symmetric: bool
) -> tuple[float, float, float]:
    """Over all elements and particles: of rotations in degrees, of shifts in px, of confidences."""
    images = images_on_the_odd_grid(begin.dataset)
    reference = inferred(begin, make_dataset(images), is_symmetric=is_symmetric)
    errors = []
    for g in elements.float():
        turned = inferred(begin, make_dataset(transform_images(images, g)), is_symmetric=is_symmetric)
        angle = rotation_angle_rad(turned.poses.rotations, act_on_rotations(g, reference.poses.rotations))
        shift = turned.poses.shifts_angstrom - act_on_shifts(g, reference.poses.shifts_angstrom)
        confidence = turned.confidence - reference.confidence
        errors.append(torch.stack([angle.max(), shift.abs().max(), confidence.abs().max()]))
    angle_rad, shift_angstrom, confidence_error = torch.stack(errors).amax(0).tolist()
    return math.degrees(angle_rad), shift_angstrom / ANGPIX, confidence_error


@pytest.mark.parametrize(
    ("group", "trunk", "is_symmetric"),
    [
        ("c4", "dense", False),
        ("d1", "dense", True),
        ("d4", "dense", False),
        ("d4", "conv", True),
        ("c4", "conv", True),
    ],
)
def test_poses_turn_with_the_images(
    make_known: Callable,
    make_dataset: Callable,
    start: Callable,
    group: str,
    trunk: str,
    is_symmetric: bool,
) -> None:
    """Also after a few steps, and with the decoder choosing among the heads."""
    settings = {"encoder.group": group, "encoder.heads": 4, "encoder.design.trunk": trunk}
    begin = start(make_known(COUNT, with_ctf=False, sigma=0.5).dataset, settings)
    for _ in fit(begin.state, begin.dataset, begin.plane, begin.settings):
        pass
    elements = plane_group(group).elements()
    assert len(elements) > 1
    angle_deg, shift_px, confidence = largest_errors(begin, make_dataset, elements, is_symmetric=is_symmetric)
    assert angle_deg < OFF_DEG
    assert shift_px < OFF_PX
    assert confidence < 1e-3


def test_an_ordinary_encoder_does_not_obey(make_known: Callable, make_dataset: Callable, start: Callable) -> None:
    begin = start(make_known(COUNT, with_ctf=False, sigma=0.5).dataset, {"encoder.group": "c1", "encoder.heads": 4})
    elements = plane_group("d4").elements()
    angle_deg, shift_px, _ = largest_errors(begin, make_dataset, elements, is_symmetric=False)
    assert angle_deg > 100 * OFF_DEG
    assert shift_px > 10 * OFF_PX


def test_the_decoder_chooses_the_head(make_known: Callable, start: Callable) -> None:
    """Whatever the logits say: the hypothesis whose projection is nearest to the image."""
    known = make_known(COUNT)
    begin = start(known.dataset, {"encoder.heads": 3})
    state = begin.state
    state.decoder.densities.data = known.volume.values * state.data_scale
    state.decoder.mask.fill_(1.0)
    wrong = state.encoder

    class Half(torch.nn.Module):
        """Knows every other particle's pose, in a head that changes, and gives it the lowest logit."""

        done = 0

        def forward(self, images: Tensor, _condition: Tensor | None = None) -> Any:
            proposals = wrong(images)
            for image in range(len(images)):
                row = Half.done + image
                if row % 2:
                    proposals.rotations[image, row % 3] = known.poses.rotations[row]
                    proposals.shifts_px[image, row % 3] = known.shifts_px[row]
                    proposals.logits[image] = 5.0
                    proposals.logits[image, row % 3] = -5.0
            Half.done += len(images)
            return proposals

    state.encoder = Half()
    found = inferred(begin, known.dataset)
    errors = torch.rad2deg(rotation_angle_rad(found.poses.rotations, known.poses.rotations))
    assert float(errors[1::2].max()) < 1e-3
    assert float(errors[::2].median()) > 20
    torch.testing.assert_close(found.poses.shifts_angstrom[1::2], known.poses.shifts_angstrom[1::2])
    assert float(found.confidence[1::2].min()) > 0.999


def test_what_is_explained(make_known: Callable, start: Callable) -> None:
    known = make_known(COUNT)
    begin = start(known.dataset)
    state = begin.state
    assert inferred(begin, known.dataset).explained == pytest.approx(0.0, abs=0.02)  # an empty map
    state.decoder.densities.data = known.volume.values * state.data_scale
    state.decoder.mask.fill_(1.0)

    class Oracle(torch.nn.Module):
        done = 0

        def forward(self, images: Tensor, _condition: Tensor | None = None) -> Any:
            rows = slice(Oracle.done, Oracle.done + len(images))
            Oracle.done += len(images)
            heads = torch.zeros(len(images), 1)
            return PoseProposals(known.poses.rotations[rows, None], known.shifts_px[rows, None], heads)

    state.encoder = Oracle()
    found = inferred(begin, known.dataset)
    assert found.explained == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(found.confidence, torch.ones(COUNT))


def test_a_short_training_learns(make_known: Callable, start: Callable) -> None:
    """Overfits noise-free, centred projections of few views; the map becomes that of the images."""
    known = make_known(48, shift_sigma_angstrom=0.0, with_ctf=False)
    settings = {
        "encoder.group": "d4", "encoder.heads": 4, "training.epochs": 40,
        "training.batch_size": 24, "training.synthetic_batch_size": 24, "input.shift_sigma_angstrom": 0.0,
        "training.image_loss_start": 0.3,
    }  # fmt: skip
    begin = start(known.dataset, settings)
    losses = [event.metrics["loss"] for event in fit(begin.state, known.dataset, begin.plane, begin.settings)]
    assert losses[0] > 0.9
    assert sum(losses[-10:]) / 10 < 0.4
    assert inferred_centred(begin, known.dataset).explained > 0.6


def inferred_centred(begin: Any, dataset: Any) -> InferredPoses:
    found = result_of(infer_poses(begin.state, dataset, begin.plane, batch_size=10, is_symmetric=False, centred=True))
    assert torch.equal(found.poses.shifts_angstrom, torch.zeros(len(dataset), 2))
    return found
