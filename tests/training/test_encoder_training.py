"""ProjectionSimulator: renderings look like the particles, and an encoder learns poses from them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.equivariance import plane_group
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.losses import mixture_loss
from cryoeq.training.synthetic.encoder_input import (
    EncoderInput,
    best_hypotheses,
    encoder_box_px,
    propose_at_offsets,
    propose_poses,
)
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, train_encoder
from cryoeq.training.synthetic.pose_estimator import PoseEstimator
from cryoeq.training.synthetic.projections import ProjectionSimulator, choose_offsets
from cryoeq.training.synthetic.training_record import TrainingRecord

pytestmark = pytest.mark.usefixtures("one_thread")
RADIUS, SIGMA_PX = 6, 1.2


@pytest.fixture(scope="module")
def seen(make_known: Callable, observe: Callable) -> tuple[ParticleTransforms, Tensor]:
    known = make_known(256, sigma=1.0)
    return observe(known.dataset), known.volume.values


def test_renderings_have_the_power_of_the_particles(seen: tuple[ParticleTransforms, Tensor]) -> None:
    images, volume = seen
    view = EncoderInput.of_map(images, volume, RADIUS, SIGMA_PX)
    matched, *_ = ProjectionSimulator.of_map(images, volume, view, SIGMA_PX).render(
        512, torch.Generator().manual_seed(0)
    )
    shells = view.plane.shells
    ours, theirs = (
        torch.zeros(RADIUS + 1).index_add(0, shells, values[:, : len(shells)].abs().square().mean(0))
        for values in (matched, images.ctf_multiplied)
    )
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.25, atol=0)


def test_the_view_has_unit_variance_and_keeps_shifts(seen: tuple[ParticleTransforms, Tensor]) -> None:
    images, volume = seen
    view = EncoderInput.of_map(images, volume, RADIUS, SIGMA_PX)
    shown = view.plane.transform(view.images(images.ctf_multiplied[:, : len(view.plane)]))
    assert float(shown.abs().square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert view.shift_scale * encoder_box_px(RADIUS) == images.plane.box_size_px


def test_turned_particles_get_turned_poses(seen: tuple[ParticleTransforms, Tensor]) -> None:
    """The CTF turns with the particle, so what the encoder sees does."""
    images, volume = seen
    view = EncoderInput.of_map(images, volume, RADIUS, SIGMA_PX)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, trunk="dense").eval()
    matched = images.ctf_multiplied[:8, : len(view.plane)]
    turned = matched.conj()  # by half a turn about the beam
    before, after = (propose_poses(encoder, values, view) for values in (matched, turned))
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    torch.testing.assert_close(after.rotations, half_turn @ before.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.shifts_px, -before.shifts_px, atol=1e-3, rtol=0)


def test_trial_shifts_are_a_lattice_that_the_group_maps_to_itself(seen: tuple[ParticleTransforms, Tensor]) -> None:
    images, volume = seen
    trials = EncoderInput.of_map(images, volume, RADIUS, SIGMA_PX).trials_px.double()
    assert len(trials) > 1
    assert float(trials.norm(dim=1).max()) <= 2.5 * SIGMA_PX + 1e-5
    for g in plane_group("d4").elements():
        assert float(torch.cdist(trials @ g.T, trials).amin(1).max()) < 1e-6
    centred = EncoderInput.of_map(images, volume, RADIUS, 0.0)
    assert centred.is_centred
    assert centred.trials_px.tolist() == [[0.0, 0.0]]


def test_a_particle_moved_by_a_trial_looks_the_same_at_that_trial(seen: tuple[ParticleTransforms, Tensor]) -> None:
    images, volume = seen
    view = EncoderInput.of_map(images, volume, RADIUS, SIGMA_PX)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, trunk="dense", low_passes=False).eval()
    matched = images.ctf_multiplied[:4, : len(view.plane)]
    origin = int(view.trials_px.norm(dim=1).argmin())
    place = int((view.trials_px - view.trials_px.abs().max(0).values * torch.tensor([1.0, 0.0])).norm(dim=1).argmin())
    moved = matched * shift_phases(view.trials_px[place].expand(4, 2), view.plane.coords, images.plane.box_size_px)
    before, after = (
        propose_at_offsets(encoder, values, view, torch.full((4, 1), trial))
        for values, trial in ((matched, origin), (moved, place))
    )
    torch.testing.assert_close(after.rotations, before.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.shifts_px, before.shifts_px + view.trials_px[place], atol=1e-3, rtol=0)


def test_an_encoder_learns(seen: tuple[ParticleTransforms, Tensor]) -> None:
    images, volume = seen
    view = EncoderInput.of_map(images, 4 * volume, RADIUS, 0.0)  # clear renderings: it has a second
    lessons = ProjectionSimulator.of_map(images, 4 * volume, view, 0.0)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 4, (128,), trunk="dense")
    settings = EncoderTrainingSettings(steps=60, batch_size=48, rate=1e-2, concentration=2.0, initial_noise_scale=0.2)
    events = list(train_encoder(encoder, lessons, settings, seed=0))
    assert [event.done for event in events] == list(range(1, 61))
    assert not encoder.training
    matched, rotations, *_ = lessons.render(128, torch.Generator().manual_seed(1))
    with torch.no_grad():
        rotation, shifts = best_hypotheses(propose_poses(encoder, matched, view))
    assert float(rotation_angle_rad(rotation, rotations).median().rad2deg()) < 60  # 126 by chance
    assert not shifts.any()


def test_the_mixture_prefers_the_right_head() -> None:
    costs = torch.tensor([[0.0, 8.0]])
    right, wrong = (mixture_loss(torch.tensor([logits]), costs, 2.0) for logits in ([3.0, 0.0], [0.0, 3.0]))
    assert float(right) < float(wrong)
    assert float(mixture_loss(torch.zeros(1, 1), torch.tensor([[0.5]]), 2.0)) == pytest.approx(1.0)


def test_a_course_can_be_rendered_again(make_known: Callable, seen: tuple[ParticleTransforms, Tensor]) -> None:
    """From what a checkpoint keeps and the CTFs of the star file; other renderings differ, and have the same power."""
    images, volume = seen
    dataset = make_known(256, sigma=1.0).dataset
    ctf = dataset.table.ctf
    searched = torch.arange(255, 55, -1)
    view = EncoderInput.of_map(images.rows(searched), volume, RADIUS, SIGMA_PX)
    lessons = ProjectionSimulator.of_map(images.rows(searched), volume, view, SIGMA_PX)
    box, angstrom = images.plane.box_size_px, dataset.pixel_size_angstrom
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, (64,), trunk="dense", low_passes=False).eval()
    taught = PoseEstimator(encoder, view, RADIUS, box, angstrom, has_ctf=ctf is not None)
    record = TrainingRecord(volume, lessons.sigma, searched, SIGMA_PX, seed=3, course=1, steps=2, batch_size=8)
    again = TrainingRecord.from_state(record.to_state(), torch.device("cpu"))
    rendered = again.lessons(taught, ctf)
    generator = stream_generator(3, Stream.SYNTHETIC_PROJECTIONS, 1)
    batches = list(again.renderings(rendered))
    assert again.count == sum(len(shown.rotations) for shown in batches) == 16
    for matched, rotations, shifts, condition in batches:
        expected = lessons.render(8, generator)
        choose_offsets(view, expected[2], generator)
        assert torch.equal(rotations, expected[1])
        torch.testing.assert_close(matched, expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(shifts, expected[2])
        assert (condition is None) == (ctf is None)
    others = list(again.other_renderings(rendered, 200))
    assert [len(shown.rotations) for shown in others] == [8] * 25
    assert not torch.equal(others[0][1], batches[0][1])
