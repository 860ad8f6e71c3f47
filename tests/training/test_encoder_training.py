"""Training on synthetic projections: they look like the particles, and an encoder learns poses from them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.equivariance import plane_group
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
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
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, TrainingStage, train_encoder
from cryoeq.training.synthetic.pose_estimator import PoseEstimator
from cryoeq.training.synthetic.projections import ProjectionSimulator, SyntheticProjections, choose_offsets
from cryoeq.training.synthetic.training_record import TrainingRecord

pytestmark = pytest.mark.usefixtures("one_thread")
RADIUS, SIGMA_PX = 6, 1.2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def known(make_known: Callable, observe: Callable) -> tuple[ParticleTransforms, Tensor]:
    """Particles and their map."""
    made = make_known(256, sigma=1.0)
    return observe(made.dataset), made.volume.values


def test_projections_have_the_power_of_the_particles(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX)
    simulator = ProjectionSimulator.from_map(particles, volume, encoder_input, SIGMA_PX)
    projections = simulator.simulate(512, torch.Generator().manual_seed(0))
    shells = encoder_input.plane.shells
    ours, theirs = (
        torch.zeros(RADIUS + 1).index_add(0, shells, values[:, : len(shells)].abs().square().mean(0))
        for values in (projections.ctf_multiplied, particles.ctf_multiplied)
    )
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.25, atol=0)


def test_projections_are_a_table_of_particles(known: tuple[ParticleTransforms, Tensor]) -> None:
    """Image, pose and CTF of a row belong together; without a CTF there is no conditioning vector to take rows of."""
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX)
    simulator = ProjectionSimulator.from_map(particles, volume, encoder_input, SIGMA_PX)
    projections = simulator.simulate(8, torch.Generator().manual_seed(0))
    assert isinstance(projections, ParticleRows)
    assert projections.ctf_features is not None
    rows = torch.tensor([5, 2])
    some = projections.rows(rows)
    for ours, theirs in zip(some.tensors(), projections.tensors(), strict=True):
        assert torch.equal(ours, theirs[rows])
    assert SyntheticProjections.cat([some, some]).shifts_px.shape == (4, 2)
    without = replace(simulator, ctf_features=None).simulate(8, torch.Generator().manual_seed(0))
    assert without.rows(rows).ctf_features is None
    assert torch.equal(without.rotations, projections.rotations)


def test_clean_slices_are_centred_projections_without_noise(known: tuple[ParticleTransforms, Tensor]) -> None:
    """With the mean CTF: the same poses, where all particles have one CTF."""
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, 0.0)
    simulator = ProjectionSimulator.from_map(particles, volume, encoder_input, 0.0)
    mean = simulator.ctf_squared.mean(0, keepdim=True)
    slices = simulator.clean_slices(5, torch.Generator().manual_seed(0))
    simulator = replace(simulator, ctf_squared=mean.expand_as(simulator.ctf_squared))
    projections = simulator.simulate(5, torch.Generator().manual_seed(0), noise_scale=0.0)
    torch.testing.assert_close(slices, encoder_input.images(projections.ctf_multiplied), atol=1e-4, rtol=1e-4)


def test_the_encoders_input_has_unit_variance_and_keeps_shifts(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX)
    images = encoder_input.images(particles.ctf_multiplied[:, : len(encoder_input.plane)])
    assert float(encoder_input.plane.transform(images).abs().square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert encoder_input.shift_scale * encoder_box_px(RADIUS) == particles.plane.box_size_px


def test_rotated_particles_get_rotated_poses(known: tuple[ParticleTransforms, Tensor]) -> None:
    """The CTF rotates with the particle, and so does the encoder's input."""
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, trunk="dense").eval()
    upright = particles.ctf_multiplied[:8, : len(encoder_input.plane)]
    rotated = upright.conj()  # by half a turn about the beam
    before, after = (propose_poses(encoder, values, encoder_input) for values in (upright, rotated))
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    torch.testing.assert_close(after.rotations, half_turn @ before.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.shifts_px, -before.shifts_px, atol=1e-3, rtol=0)


def test_offsets_are_a_lattice_that_the_group_maps_to_itself(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    offsets = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX).offsets_px.double()
    assert len(offsets) > 1
    assert float(offsets.norm(dim=1).max()) <= 2.5 * SIGMA_PX + 1e-5
    for g in plane_group("d4").elements():
        assert float(torch.cdist(offsets @ g.T, offsets).amin(1).max()) < 1e-6
    centred = EncoderInput.from_map(particles, volume, RADIUS, 0.0)
    assert centred.is_centred
    assert centred.offsets_px.tolist() == [[0.0, 0.0]]


def test_a_particle_moved_by_an_offset_looks_the_same_at_that_offset(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, SIGMA_PX)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, trunk="dense", low_passes=False).eval()
    unmoved, offsets = particles.ctf_multiplied[:4, : len(encoder_input.plane)], encoder_input.offsets_px
    origin = int(offsets.norm(dim=1).argmin())
    far = int((offsets - offsets.abs().max(0).values * torch.tensor([1.0, 0.0])).norm(dim=1).argmin())
    phases = shift_phases(offsets[far].expand(4, 2), encoder_input.plane.coords, particles.plane.box_size_px)
    before, after = (
        propose_at_offsets(encoder, values, encoder_input, torch.full((4, 1), offset))
        for values, offset in ((unmoved, origin), (unmoved * phases, far))
    )
    torch.testing.assert_close(after.rotations, before.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(after.shifts_px, before.shifts_px + offsets[far], atol=1e-3, rtol=0)


def test_an_encoder_learns(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    encoder_input = EncoderInput.from_map(particles, 4 * volume, RADIUS, 0.0)  # little noise: training takes a second
    simulator = ProjectionSimulator.from_map(particles, 4 * volume, encoder_input, 0.0)
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 4, (128,), trunk="dense")
    settings = EncoderTrainingSettings(
        steps=60, batch_size=48, learning_rate=1e-2, concentration=2.0, initial_noise_scale=0.2
    )
    events = list(train_encoder(encoder, simulator, settings, seed=0))
    assert [event.done for event in events] == list(range(1, 61))
    assert {event.stage for event in events} == {"encoder training"}
    assert not encoder.training
    projections = simulator.simulate(128, torch.Generator().manual_seed(1))
    with torch.no_grad():
        rotations, shifts = best_hypotheses(propose_poses(encoder, projections.ctf_multiplied, encoder_input))
    assert float(rotation_angle_rad(rotations, projections.rotations).median().rad2deg()) < 60  # 126 by chance
    assert not shifts.any()


def test_the_mixture_prefers_the_right_hypothesis() -> None:
    costs = torch.tensor([[0.0, 8.0]])
    right, wrong = (mixture_loss(torch.tensor([logits]), costs, 2.0) for logits in ([3.0, 0.0], [0.0, 3.0]))
    assert float(right) < float(wrong)
    assert float(mixture_loss(torch.zeros(1, 1), torch.tensor([[0.5]]), 2.0)) == pytest.approx(1.0)


def stage_of(
    make_known: Callable, known: tuple[ParticleTransforms, Tensor]
) -> tuple[TrainingRecord, ProjectionSimulator, PoseEstimator]:
    """The record of a training stage, the simulator of its projections, and an encoder."""
    particles, volume = known
    dataset, searched = make_known(256, sigma=1.0).dataset, torch.arange(255, 55, -1)
    encoder_input = EncoderInput.from_map(particles.rows(searched), volume, RADIUS, SIGMA_PX)
    simulator = ProjectionSimulator.from_map(particles.rows(searched), volume, encoder_input, SIGMA_PX)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), 2, (64,), trunk="dense", low_passes=False).eval()
    estimator = PoseEstimator(
        encoder, encoder_input, RADIUS, particles.plane.box_size_px, dataset.pixel_size_angstrom, has_ctf=True
    )
    record = TrainingRecord(
        volume, simulator.sigma, searched, SIGMA_PX, seed=3, stage=TrainingStage.FINETUNING, steps=2, batch_size=8
    )
    return record, simulator, estimator


def test_a_training_stage_can_be_simulated_again(
    make_known: Callable, known: tuple[ParticleTransforms, Tensor], tmp_path: Path
) -> None:
    """From what a checkpoint keeps and the CTFs of the star file; held-out projections are others."""
    record, simulator, estimator = stage_of(make_known, known)
    ctf = make_known(256, sigma=1.0).dataset.table.ctf
    save_checkpoint(tmp_path / "encoder.pt", {"training": record.to_state()})
    again = TrainingRecord.from_checkpoint(load_checkpoint(tmp_path / "encoder.pt", CPU), CPU)
    assert again is not None
    simulated = again.simulator(estimator, ctf)
    generator = stream_generator(3, Stream.SYNTHETIC_PROJECTIONS, TrainingStage.FINETUNING)
    batches = list(again.training_projections(simulated))
    assert again.count == sum(len(batch.rotations) for batch in batches) == 16
    for batch in batches:
        expected = simulator.simulate(8, generator)
        choose_offsets(estimator.encoder_input, expected.shifts_px, generator)
        assert torch.equal(batch.rotations, expected.rotations)
        torch.testing.assert_close(batch.ctf_multiplied, expected.ctf_multiplied, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch.shifts_px, expected.shifts_px)
        assert batch.ctf_features is not None
    held_out = list(again.held_out_projections(simulated, 200))
    assert [len(batch.rotations) for batch in held_out] == [8] * 25
    assert not torch.equal(held_out[0].rotations, batches[0].rotations)


def test_the_record_of_a_training_of_version_0_1_is_read(
    make_known: Callable, known: tuple[ParticleTransforms, Tensor], tmp_path: Path
) -> None:
    record, *_ = stage_of(make_known, known)
    older = record.to_state()
    older["course"] = older.pop("stage")
    save_checkpoint(tmp_path / "encoder.pt", {"course": older})
    again = TrainingRecord.from_checkpoint(load_checkpoint(tmp_path / "encoder.pt", CPU), CPU)
    assert again is not None
    for name, value in record.to_state().items():
        found = getattr(again, name)
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, name
    assert TrainingRecord.from_checkpoint({"encoder": {}}, CPU) is None
