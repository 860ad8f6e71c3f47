"""Loss functions against their definition: pixels, half-turned images, distances between poses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.geometry.fourier import HalfPlane, ifft_image
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.models.pose_head import PoseProposals
from cryoeq.training.autoencoder.step import observe, predict, propose
from cryoeq.training.losses import data_term, head_classification_loss, pose_cost, winner_takes_all

N = 16


def random_coefficients(generator: torch.Generator, *shape: int) -> Tensor:
    plane = HalfPlane.up_to(N, N / 2 - 1)
    values = torch.randn(*shape, len(plane), dtype=torch.complex64, generator=generator)
    return torch.where(plane.weights == 1, values.real + 0j, values)  # the mean of a real image is real


@pytest.mark.parametrize("radius", [1.0, 4.0, 7.0])
def test_the_data_term_is_the_mean_squared_residual_of_pixels(generator: torch.Generator, radius: float) -> None:
    """Parseval: over the pixels of images low-passed to the radius, per coefficient within it."""
    plane = HalfPlane.up_to(N, radius)
    observed = random_coefficients(generator, 5)[:, : len(plane)]
    predicted = random_coefficients(generator, 5, 3)[..., : len(plane)]
    residual = ifft_image(plane.scatter(predicted)) - ifft_image(plane.scatter(observed))[:, None]
    k = torch.arange(N) - N // 2
    within = int((k[:, None] ** 2 + k**2 <= radius**2).sum())
    expected = residual.square().sum((-2, -1)) / within
    torch.testing.assert_close(data_term(predicted, observed, plane.weights), expected)


def test_the_data_term_of_unit_noise_is_one(generator: torch.Generator) -> None:
    plane = HalfPlane.up_to(N, 7.0)
    noise = plane.transform(torch.randn(500, N, N, generator=generator))
    assert float(data_term(torch.zeros_like(noise)[:, None], noise, plane.weights).mean()) == pytest.approx(1, abs=0.02)


def half_turned(images: Tensor) -> Tensor:
    """About pixel n // 2, pixel by pixel; row and column 0, whose mates lie outside, wrap to themselves."""
    rotated = torch.empty_like(images)
    for y in range(N):
        for x in range(N):
            rotated[:, -y % N, -x % N] = images[:, y, x]
    return rotated


@pytest.mark.parametrize("group", ["c1", "d4"])
def test_the_symmetric_loss_is_what_its_definition_says(
    make_known: Callable, start: Callable, generator: torch.Generator, group: str
) -> None:
    """Minimum over image and half-turned image, each with its own poses and predictions, compared pixel by pixel."""
    known = make_known(6)
    begin = start(known.dataset, {"encoder.group": group})
    state, plane = begin.state, begin.plane
    state.encoder.eval()
    for parameter in state.decoder.parameters():
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator)
    batch = observe(known.dataset, torch.arange(6), plane, 1.0)
    both = propose(state.encoder, batch.coefficients, plane, is_symmetric=True)
    found = data_term(predict(state.decoder, both, batch.transfer, plane), batch.coefficients, plane.weights)
    assert found.shape == (6, 4)

    image = ifft_image(plane.scatter(batch.coefficients))
    by_hand = []
    for stack in (image, half_turned(image)):
        own = state.encoder(stack)
        predicted = ifft_image(plane.scatter(predict(state.decoder, own, batch.transfer, plane)))
        by_hand.append((predicted - stack[:, None]).square().sum((-2, -1)) / plane.weights.sum())
    torch.testing.assert_close(found, torch.cat(by_hand, 1), rtol=1e-4, atol=1e-5)
    # A group that holds the half-turn gains nothing: both images lead to the same pose.
    assert torch.allclose(by_hand[0], by_hand[1], rtol=1e-3) == (group == "d4")
    expected = torch.minimum(by_hand[0].min(1).values, by_hand[1].min(1).values).mean()
    torch.testing.assert_close(winner_takes_all(found, wta_epsilon=0.0), expected, rtol=1e-4, atol=1e-5)


def test_the_pose_cost(generator: torch.Generator) -> None:
    truth = Poses(random_rotations(20, generator), torch.randn(20, 2, generator=generator))
    angles = torch.linspace(0, math.pi, 20)
    axes = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    off = rotation_from_vector(axes * angles[:, None]) @ truth.rotations
    moved = truth.shifts_angstrom + torch.tensor([3.0, 4.0])
    proposals = PoseProposals(
        torch.stack([truth.rotations, off, truth.rotations], 1),
        torch.stack([truth.shifts_angstrom, truth.shifts_angstrom, moved], 1),
        torch.zeros(20, 3),
    )
    costs = pose_cost(proposals, truth.rotations, truth.shifts_angstrom, 2.0)
    assert torch.equal(costs[:, 0], torch.zeros(20))
    torch.testing.assert_close(costs[:, 1], 8 * torch.sin(angles / 2).square(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(costs[:, 2], torch.full((20,), 5.0**2 / 2.0**2), atol=1e-4, rtol=1e-4)
    assert torch.equal(
        pose_cost(proposals, truth.rotations, truth.shifts_angstrom, 0.0)[:, 2], torch.zeros(20)
    )  # centred particles: no shift is right or wrong


@pytest.mark.parametrize("wta_epsilon", [0.0, 0.1])
def test_the_winner_takes_all_but_epsilon(wta_epsilon: float) -> None:
    losses = torch.tensor([[3.0, 1.0], [2.0, 5.0]], requires_grad=True)
    winner_takes_all(losses, wta_epsilon).backward()
    assert losses.grad is not None
    others = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(losses.grad, (1 - others) / 2 + wta_epsilon / 4)


def test_logits_learn_which_head_is_best() -> None:
    costs = torch.tensor([[1.0, 0.2, 3.0], [0.1, 0.2, 0.3]], requires_grad=True)
    logits = torch.zeros(2, 3, requires_grad=True)
    start = head_classification_loss(logits, costs)
    torch.testing.assert_close(start, torch.tensor(math.log(3.0)))
    start.backward()
    assert costs.grad is None  # being preferred must not make a pose better
    assert logits.grad is not None
    assert (-logits.grad).argmax(1).tolist() == [1, 0]
