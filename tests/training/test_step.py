"""Losses of a step: autoencoding of observed images, and poses of projections as physics makes them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import ifft_image
from cryoeq.models.pose_head import PoseProposals
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import (
    autoencoding_loss,
    observe,
    predict,
    propose,
    select_head,
    simulate_projections,
    synthetic_pose_loss,
)
from cryoeq.training.losses import data_term

pytestmark = pytest.mark.usefixtures("one_thread")


class Oracle(torch.nn.Module):
    """An encoder that knows the answers: the given poses behind two wrong hypotheses, whatever it sees."""

    def __init__(self, rotations: Tensor, shifts_px: Tensor) -> None:
        super().__init__()
        flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        self.rotations = torch.stack([flip @ rotations, rotations @ flip, rotations], 1)
        self.shifts_px = torch.stack([-shifts_px, shifts_px, shifts_px], 1)

    def forward(self, images: Tensor, _ctf_features: Tensor | None = None) -> PoseProposals:
        return PoseProposals(self.rotations, self.shifts_px, images.new_zeros(len(images), 3))


def put_truth(state: TrainingState, volume: Volume) -> None:
    """The decoder's map becomes the truth."""
    assert isinstance(state.decoder, VoxelDecoder)
    state.decoder.densities.data = volume.values.clone()
    state.decoder.mask.fill_(1.0)


def test_the_true_map_and_poses_explain_the_images(make_known: Callable, start: Callable) -> None:
    known = make_known(20)
    begin = start(known.dataset)
    put_truth(begin.state, known.volume)
    begin.state.encoder = Oracle(known.poses.rotations, known.shifts_px)
    batch = observe(known.dataset, torch.arange(20), begin.plane, 1.0)
    torch.testing.assert_close(ifft_image(begin.plane.scatter(batch.coefficients)), known.dataset.cache)
    result = autoencoding_loss(
        begin.state,
        batch,
        begin.plane,
        begin.plane,
        wta_epsilon=0.0,
        is_symmetric=False,
        centred=False,
        trains_encoder=False,
    )
    assert result.error < 1e-10
    assert float(result.residual_power.max()) < 1e-8
    assert torch.equal(result.rotations, known.poses.rotations)
    begin.state.encoder = Oracle(known.poses.rotations, known.shifts_px + 1.0)
    off = autoencoding_loss(
        begin.state,
        batch,
        begin.plane,
        begin.plane,
        wta_epsilon=0.0,
        is_symmetric=False,
        centred=False,
        trains_encoder=False,
    )
    assert off.error > 0.1


@pytest.mark.parametrize("trains_encoder", [False, True])
def test_which_networks_the_images_train(make_known: Callable, start: Callable, trains_encoder: bool) -> None:
    known = make_known(8)
    begin = start(known.dataset)
    batch = observe(known.dataset, torch.arange(8), begin.plane, begin.state.data_scale)
    result = autoencoding_loss(
        begin.state, batch, begin.plane, begin.plane.within(4.0), wta_epsilon=0.0, is_symmetric=False, centred=False,
        trains_encoder=trains_encoder,
    )  # fmt: skip
    result.loss.backward()
    assert any(parameter.grad is not None for parameter in begin.state.encoder.parameters()) == trains_encoder
    assert all(parameter.grad is not None for parameter in begin.state.decoder.parameters())
    assert float(result.loss.detach()) == pytest.approx(float(result.error), rel=1e-5)
    # Beyond the active radius nothing is predicted: the residual is the image.
    beyond = slice(len(begin.plane.within(4.0)), None)
    torch.testing.assert_close(
        result.residual_power[beyond], batch.coefficients[:, beyond].abs().square().mean(0), rtol=1e-5, atol=1e-7
    )


def test_projections_are_what_physics_makes_of_the_map(make_known: Callable, start: Callable) -> None:
    known = make_known(10)
    begin = start(known.dataset)
    put_truth(begin.state, known.volume)
    begin.state.residual_power = torch.zeros_like(begin.state.residual_power)
    rows = torch.tensor([3])  # all projections get the CTF of this particle
    batch = observe(known.dataset, rows, begin.plane, 1.0)
    projections, rotations, shifts_px = simulate_projections(
        begin.state, batch, begin.plane, begin.plane, count=50, shift_sigma_px=1.5
    )
    images = projections.coefficients
    assert batch.transfer is not None
    assert batch.ctf_features is not None
    assert projections.ctf_features is not None
    torch.testing.assert_close(projections.ctf_features, batch.ctf_features.expand(50, -1), atol=0, rtol=0)
    expected = form_images(
        prepare_slices(known.volume.values), rotations, shifts_px, batch.transfer.expand(50, -1), begin.plane
    )
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    assert float(shifts_px.std()) == pytest.approx(1.5, rel=0.2)
    again, *_ = simulate_projections(begin.state, batch, begin.plane, begin.plane, count=50, shift_sigma_px=1.5)
    assert torch.equal(again.coefficients, images)
    begin.state.step += 1
    other, *_ = simulate_projections(begin.state, batch, begin.plane, begin.plane, count=50, shift_sigma_px=1.5)
    assert not torch.allclose(other.coefficients, images)


def test_projections_carry_the_noise_of_the_residual(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(4).dataset)
    state, plane = begin.state, begin.plane
    put_truth(state, Volume(torch.zeros(16, 16, 16), 5.0))
    state.residual_power = torch.linspace(0.5, 4.0, len(state.residual_power))
    batch = observe(begin.dataset, torch.arange(4), plane, 1.0)
    projections, *_ = simulate_projections(state, batch, plane, plane, count=4000, shift_sigma_px=0.0)
    power = projections.coefficients.abs().square().mean(0)
    torch.testing.assert_close(power, state.residual_power[plane.shells], rtol=0.1, atol=0.0)


def test_true_poses_of_projections_cost_nothing(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(4).dataset)
    state, plane = begin.state, begin.plane
    batch = observe(begin.dataset, torch.arange(4), plane, 1.0)
    _, rotations, shifts_px = simulate_projections(state, batch, plane, plane, count=12, shift_sigma_px=1.0)
    state.encoder = Oracle(rotations, shifts_px)
    loss, error_rad = synthetic_pose_loss(state, batch, plane, plane, count=12, shift_sigma_px=1.0, wta_epsilon=0.0)
    assert float(error_rad) == pytest.approx(0.0, abs=2e-5)
    assert float(loss) == pytest.approx(0.1 * torch.log(torch.tensor(3.0)).item(), abs=1e-5)  # the choice is open


def test_the_residual_tracks_the_noise(make_known: Callable, start: Callable) -> None:
    """With the true map and poses what is left is the noise, shell by shell, at the scale of the training."""
    sigma = 2.0
    known = make_known(64, sigma=sigma)
    settings = {
        "training.encoder_learning_rate": 1e-12, "training.decoder_learning_rate": 1e-12, "training.epochs": 60,
        "training.first_shell": 7.0, "loss.synthetic_weight": 0.0, "training.image_loss_start": 0.0,
    }  # fmt: skip
    begin = start(known.dataset, settings)
    state = begin.state
    put_truth(state, Volume(known.volume.values * state.data_scale, 5.0))

    class PerBatch(torch.nn.Module):
        """The oracle of the particles of the step that is being made."""

        def forward(self, images: Tensor, _ctf_features: Tensor | None = None) -> PoseProposals:
            per_epoch = 64 // begin.settings.batch_size
            epoch, position = divmod(state.step, per_epoch)
            rows = state.epoch_order(epoch, 64)[position * 16 : (position + 1) * 16]
            return Oracle(known.poses.rotations[rows], known.shifts_px[rows])(images)

    state.encoder = PerBatch()
    state.residual_power = torch.zeros_like(state.residual_power)
    for _ in fit(state, known.dataset, begin.plane, begin.settings):
        pass
    expected = (sigma * state.data_scale) ** 2
    torch.testing.assert_close(state.residual_power[1:], torch.full((7,), expected), rtol=0.15, atol=0.0)
    assert 0.5 < expected < 1.0  # of images whose variance is 1: it is really noise that is measured


def test_a_head_is_selected_for_each_image(generator: torch.Generator) -> None:
    proposals = PoseProposals(
        torch.randn(4, 3, 3, 3, generator=generator),
        torch.randn(4, 3, 2, generator=generator),
        torch.arange(12.0).view(4, 3),
    )
    chosen = select_head(proposals, torch.tensor([2, 0, 1, 2]))
    assert chosen.logits.tolist() == [[2.0], [3.0], [7.0], [11.0]]
    assert torch.equal(chosen.rotations[1, 0], proposals.rotations[1, 0])
    assert torch.equal(chosen.shifts_px[3, 0], proposals.shifts_px[3, 2])


def test_centred_particles_get_no_shift(make_known: Callable, start: Callable) -> None:
    begin = start(make_known(4).dataset)
    batch = observe(begin.dataset, torch.arange(4), begin.plane, 1.0)
    free = propose(begin.state.encoder, batch.coefficients, begin.plane)
    centred = propose(begin.state.encoder, batch.coefficients, begin.plane, centred=True, is_symmetric=True)
    assert float(free.shifts_px.detach().abs().max()) > 0
    assert torch.equal(centred.shifts_px, torch.zeros_like(centred.shifts_px))


def test_the_scale_makes_the_variance_one(make_known: Callable, start: Callable) -> None:
    known = make_known(32, sigma=3.0)
    begin = start(known.dataset)
    batch = observe(known.dataset, torch.arange(32), begin.plane, begin.state.data_scale)
    nothing = torch.zeros_like(batch.coefficients)[:, None]
    power = data_term(nothing, batch.coefficients, begin.plane.weights).mean()
    assert float(power) == pytest.approx(1.0, rel=1e-4)
    by_shell = batch.coefficients.abs().square().mean(0)
    for shell in range(8):
        expected = by_shell[begin.plane.shells == shell].mean()
        torch.testing.assert_close(begin.state.residual_power[shell], expected, rtol=1e-4, atol=1e-6)


def test_predictions_follow_heads_and_images(make_known: Callable, start: Callable) -> None:
    """Each image's own CTF goes with each of its hypotheses."""
    known = make_known(3)
    begin = start(known.dataset)
    put_truth(begin.state, known.volume)
    batch = observe(known.dataset, torch.arange(3), begin.plane, 1.0)
    proposals = Oracle(known.poses.rotations, known.shifts_px)(torch.zeros(3, 16, 16))
    assert batch.transfer is not None
    together = predict(begin.state.decoder, proposals, batch.transfer, begin.plane)
    for image in range(3):
        for head in range(3):
            alone = form_images(
                prepare_slices(known.volume.values), proposals.rotations[image, head][None],
                proposals.shifts_px[image, head][None], batch.transfer[image][None], begin.plane,
            )  # fmt: skip
            torch.testing.assert_close(together[image, head], alone[0], rtol=1e-4, atol=1e-5)
