"""Training of view networks: projections look like the particles, and a network learns views from them."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import Event, Progress, result_of
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.equivariance import plane_group
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.models.pose_encoder import EncoderDesign
from cryoeq.models.view_head import nearness
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.view_likelihood import log_offset_prior, square_offsets
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.network_input import NetworkInput, network_box_px
from cryoeq.training.views.network_projections import Projections, ProjectionSource
from cryoeq.training.views.network_training import NetworkSettings, train_network, untrained_network
from cryoeq.training.views.network_views import NetworkViews

pytestmark = pytest.mark.usefixtures("one_thread")
N, RADIUS, SIGMA_PX = 16, 6, 1.2
CPU = torch.device("cpu")
C1 = torch.eye(3)[None]
SHORT = NetworkSettings(channels=(64,), max_shell=RADIUS, steps=3, batch_size=16)


@pytest.fixture(scope="module")
def known(make_known: Callable, observe: Callable) -> tuple[ParticleTransforms, Tensor]:
    """Particles and their map."""
    made = make_known(256, sigma=1.0)
    return observe(made.dataset), made.volume.values


def given(known: tuple[ParticleTransforms, Tensor], sigma_px: float = SIGMA_PX) -> NetworkInput:
    particles, volume = known
    offsets = square_offsets(3 * sigma_px, 1.0)
    return NetworkInput.from_map(particles, volume, RADIUS, offsets, log_offset_prior(offsets, sigma_px))


def source_of(known: tuple[ParticleTransforms, Tensor], sigma_px: float = SIGMA_PX) -> ProjectionSource:
    particles, volume = known
    return ProjectionSource.from_map(
        particles, volume, RADIUS, sigma_px, seed=3, number=1, steps=2, batch_size=8
    )  # fmt: skip


def encoder_of(
    known: tuple[ParticleTransforms, Tensor], sigma: float = SIGMA_PX / N, scale: float = 1.0
) -> ViewEncoder:
    particles, volume = known
    return ViewEncoder.build(scale * volume, particles, ViewSettings(sigma, 0.42, C1))


def test_projections_have_the_power_of_the_particles(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, _ = known
    projections = source_of(known).simulate(512, torch.Generator().manual_seed(0))
    shells = given(known).plane.shells
    ours, theirs = (
        torch.zeros(RADIUS + 1).index_add(0, shells, values[:, : len(shells)].abs().square().mean(0))
        for values in (projections.ctf_multiplied, particles.ctf_multiplied)
    )
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.25, atol=0)


def test_projections_are_a_table_of_particles(known: tuple[ParticleTransforms, Tensor]) -> None:
    """Image, view and CTF of a row belong together; without a CTF there is no conditioning vector to take rows of."""
    source = source_of(known)
    projections = source.simulate(8, torch.Generator().manual_seed(0))
    assert isinstance(projections, ParticleRows)
    assert projections.ctf_features is not None
    rows = torch.tensor([5, 2])
    some = projections.rows(rows)
    for ours, theirs in zip(some.tensors(), projections.tensors(), strict=True):
        assert torch.equal(ours, theirs[rows])
    assert Projections.cat([some, some]).shifts_px.shape == (4, 2)
    without = replace(source, ctf_features=None).simulate(8, torch.Generator().manual_seed(0))
    assert without.rows(rows).ctf_features is None
    assert torch.equal(without.directions, projections.directions)


def test_the_input_has_unit_variance_and_rotates_with_the_particle(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, _ = known
    network_input = given(known)
    coefficients = particles.ctf_multiplied[:, : len(network_input.plane)]
    images = network_input.images(coefficients)
    assert float(network_input.plane.transform(images).abs().square().mean()) == pytest.approx(1.0, rel=1e-3)
    half_turned = network_input.images(coefficients.conj())  # about pixel n//2: an even box loses row and column 0
    expected = images[:, 1:, 1:].flip(1, 2)
    torch.testing.assert_close(half_turned[:, 1:, 1:], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("group", ["c4", "d4"])
def test_logits_of_offsets_turn_with_particle_and_offset(known: tuple[ParticleTransforms, Tensor], group: str) -> None:
    """Turned by half: the same views, at the opposite offsets."""
    particles, _ = known
    views = untrained_network(encoder_of(known), particles, replace(SHORT, group=group), seed=0, number=1)
    views.network.eval()
    some = particles.rows(torch.arange(6))
    turned = replace(some, ctf_multiplied=some.ctf_multiplied.conj())
    before, after = views.logits(some), views.logits(turned)
    offsets = views.network_input.offsets_px
    opposite = torch.cdist(-offsets, offsets).argmin(1)
    assert float(before.std()) > 0.1
    torch.testing.assert_close(after[:, :, opposite], before, atol=1e-3, rtol=0)


def test_offsets_are_a_lattice_that_the_group_maps_to_itself(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, _ = known
    views = untrained_network(encoder_of(known), particles, SHORT, seed=0, number=1)
    offsets = views.network_input.offsets_px.double()
    assert len(offsets) > 1
    for g in plane_group("d4").elements():
        assert float(torch.cdist(offsets @ g.T, offsets).amin(1).max()) < 1e-6
    centred = untrained_network(encoder_of(known, 0.0), particles, SHORT, seed=0, number=1)
    assert centred.network_input.offsets_px.tolist() == [[0.0, 0.0]]
    assert centred.network_input.offsets_per_projection == 1


def test_a_particle_moved_by_an_offset_looks_the_same_at_that_offset(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, _ = known
    network_input = given(known)
    unmoved, offsets = particles.ctf_multiplied[:4, : len(network_input.plane)], network_input.offsets_px
    origin, far = int(offsets.norm(dim=1).argmin()), int(offsets[:, 0].argmax())
    # Offsets are in pixels of the particles' box, of which the network's is a crop in Fourier space.
    phases = shift_phases(
        offsets[far].expand(4, 2) * (network_box_px(RADIUS) / N), network_input.plane.coords, network_box_px(RADIUS)
    )
    before, after = (
        network_input.shifted_images(values, torch.full((4, 1), offset))
        for values, offset in ((unmoved, origin), (unmoved * phases, far))
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_first_filters_are_slices_of_the_map(known: tuple[ParticleTransforms, Tensor]) -> None:
    """With the mean CTF, centred, without noise: the same poses, where all particles have one CTF."""
    source, network_input = source_of(known, 0.0), given(known, 0.0)
    mean = source.ctf_squared.mean(0, keepdim=True)
    images = source.clean_images(network_input, 5)
    plain = replace(source, ctf_squared=mean.expand_as(source.ctf_squared))
    torch.testing.assert_close(plain.clean_images(network_input, 5), images, atol=1e-4, rtol=0)
    other = replace(source, seed=4).clean_images(network_input, 5)
    assert not torch.allclose(other, images, atol=1e-2)
    assert float(images.std()) > 0.1


def test_a_network_learns(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, volume = known
    loud = (particles, 4 * volume)  # little noise: training takes a second
    encoder = encoder_of(loud, 0.0)
    settings = replace(SHORT, channels=(128,), steps=80, batch_size=48)
    events, views = events_and_result(train_network(encoder, particles, settings, seed=0, number=1))
    assert all(isinstance(event, Progress) for event in events)
    assert [event.done for event in events if isinstance(event, Progress)] == list(range(1, 81))
    assert not views.network.training
    projections = views.source.simulate(200, torch.Generator().manual_seed(1))
    images = views.network_input.images(projections.ctf_multiplied)
    with torch.no_grad():
        best = views.network(images).topk(8).indices
    near = nearness(projections.directions, views.network.directions, C1)
    found = near.gather(1, best).amax(1) > torch.tensor(12.0).deg2rad().cos() ** 2
    assert float(found.float().mean()) > 0.6  # 8 of as many views are within 12 degrees in 0.17 of cases by chance


def events_and_result(steps: Generator[Event, None, NetworkViews]) -> tuple[list[Event], NetworkViews]:
    events = list[Event]()
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return events, stop.value


def test_what_a_file_keeps_gives_the_network_and_its_projections_back(
    known: tuple[ParticleTransforms, Tensor], tmp_path: Path
) -> None:
    particles, _ = known
    settings = replace(SHORT, design=EncoderDesign(), group="c4")
    views = result_of(train_network(encoder_of(known), particles, settings, seed=5, number=2))
    save_checkpoint(tmp_path / "encoder.pt", {"network": views.to_state()})
    state = load_checkpoint(tmp_path / "encoder.pt", CPU)["network"]
    again = NetworkViews.from_state(state, views.source.volume)
    some = particles.rows(torch.arange(5))
    assert torch.equal(again.logits(some), views.logits(some))
    trained = list(views.source.training_projections(views.network_input))
    for (before, offsets), (after, others) in zip(
        trained, again.source.training_projections(again.network_input), strict=True
    ):
        assert torch.equal(offsets, others)
        for ours, theirs in zip(before.tensors(), after.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    assert views.source.count == sum(len(batch.directions) for batch, _ in trained)
    held_out = list(again.source.held_out_projections(20))
    assert sum(len(batch.directions) for batch in held_out) == 20
    assert not torch.equal(held_out[0].directions, trained[0][0].directions)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_fewer_bits_give_nearly_the_same_views(known: tuple[ParticleTransforms, Tensor], precision: str) -> None:
    particles, _ = known
    views = result_of(train_network(encoder_of(known), particles, SHORT, seed=0, number=1))
    some = particles.rows(torch.arange(64))
    exact = views.logits(some)
    found = views.in_precision(precision, some).logits(some)  # type: ignore[arg-type]
    limit = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.3}[precision]
    assert float((found - exact).std()) < limit * float(exact.std())
    assert not torch.equal(found, exact)


def test_filters_of_the_ctf_cannot_be_exported(known: tuple[ParticleTransforms, Tensor]) -> None:
    particles, _ = known
    settings = replace(SHORT, design=EncoderDesign("implicit_ctf"))
    views = untrained_network(encoder_of(known), particles, settings, seed=0, number=1)
    with pytest.raises(ValueError, match="filters depend on the CTF"):
        views.in_precision("fp32", particles)
