"""View encoders: invariant logits, poses that turn with the image, half sets that learn nothing of each other."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import result_of
from cryoeq.domain.optics import Optics
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.models.view_head import nearness, smoothed_views
from cryoeq.physics.ctf import matched_filter
from cryoeq.physics.projection import extract_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, transforms_of_matched
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.view_likelihood import inplane_rotations, square_offsets
from cryoeq.simulation.particles import DefocusRange, draw_ctf
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.posing import Calibration, ViewPoser, errors_rad
from cryoeq.training.views.projections import simulate_particles
from cryoeq.training.views.stored_views import KIND, StoredClass, StoredViews, learn_half
from cryoeq.training.views.training import ViewTrainingSettings, train_views

pytestmark = pytest.mark.usefixtures("one_thread")
N, ANGPIX, SIGMA = 16, 5.0, 0.05
C1 = torch.eye(3)[None]
CPU = torch.device("cpu")
SETTINGS = ViewSettings(SIGMA, 0.42, C1)
SHORT = ViewTrainingSettings(projections=500, steps=60, batch_size=64)


@pytest.fixture(scope="module")
def scene(make_known: Callable, observe: Callable) -> tuple[ParticleTransforms, Tensor, PoseSet]:
    """Noisy particles with astigmatic CTFs, their map and their poses."""
    made = make_known(240, sigma=1.0, shift_sigma_angstrom=4.0)
    return observe(made.dataset), made.volume.values, made.pose_set


@pytest.fixture(scope="module")
def encoder(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> ViewEncoder:
    particles, volume, _ = scene
    return ViewEncoder.build(volume, particles, SETTINGS)


class Images:
    """Images with their CTFs, which turn with them."""

    def __init__(self, encoder: ViewEncoder, count: int, *, noise: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(5)
        self.plane = encoder.fine.harmonics.plane
        optics = Optics("one", ANGPIX, 300.0, 2.7, 0.1)
        self.ctf = draw_ctf(count, optics, DefocusRange(9000.0, 20000.0, 3000.0), generator)
        self.poses = simulate_particles(
            _plain(encoder, count), encoder.reference, count, encoder.settings.shift_sigma * N, generator
        )[1]  # fmt: skip
        self.padded = encoder.reference.padded
        self.noise = noise * torch.view_as_complex(torch.randn(count, len(self.plane), 2, generator=generator))

    def rotated(self, angle_rad: float, *, mirrored: bool = False) -> tuple[ParticleTransforms, PoseSet]:
        """All images mirrored at the x axis, then turned; with noise, by quarter turns only: on the pixels."""
        sign = -1.0 if mirrored else 1.0
        act = inplane_rotations(torch.tensor(angle_rad), torch.tensor(int(mirrored)))
        rotations = act @ self.poses.rotations
        shifts = self.poses.shifts_px @ act[:2, :2].T
        ctf = replace(self.ctf, defocus_angle_rad=angle_rad + sign * self.ctf.defocus_angle_rad)
        factor, squared = matched_filter(ctf, self.plane.frequencies_per_angstrom(ANGPIX))
        clean = extract_slices(self.padded, rotations, self.plane) * shift_phases(shifts, self.plane.coords, N)
        matched = clean * squared + factor * self._moved(self.noise, act[:2, :2])
        particles = transforms_of_matched(matched, squared, ctf, self.plane, ANGPIX)
        return particles, PoseSet(rotations, shifts, N)

    def _moved(self, values: Tensor, act: Tensor) -> Tensor:
        if not bool(values.abs().max() > 0):
            return values
        source = (self.plane.coords.float() @ act).round().long()  # g^-1 k
        index = {tuple(point): row for row, point in enumerate(self.plane.coords.tolist())}
        here = torch.tensor([index.get(tuple(point), -1) for point in source.tolist()])
        mate = torch.tensor([index.get((-x, -y), -1) for x, y in source.tolist()])
        return torch.where(here >= 0, values[:, here], values[:, mate].conj())


def _plain(encoder: ViewEncoder, count: int) -> ParticleTransforms:
    plane = encoder.fine.harmonics.plane
    ones = torch.ones(count, len(plane))
    return transforms_of_matched(ones.to(torch.complex64), ones, None, plane, ANGPIX)


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_logits_are_invariant_and_poses_turn_with_the_image(
    encoder: ViewEncoder, quarter: int, *, mirrored: bool
) -> None:
    """Under the group that maps pixels to pixels, with noise, shifts and astigmatic CTFs: to rounding."""
    images, angle = Images(encoder, 12), quarter * math.pi / 2
    (before, _), (after, _) = images.rotated(0.0), images.rotated(angle, mirrored=mirrored)
    first, second = encoder.posterior(before).logits, encoder.posterior(after).logits
    torch.testing.assert_close(second, first, atol=2e-3 * float(first.std()), rtol=0)
    act = inplane_rotations(torch.tensor(angle), torch.tensor(int(mirrored)))
    ours, theirs = encoder.pose(after).best(), encoder.pose(before).best()
    turned = act @ theirs.rotations
    is_same = rotation_angle_rad(ours.rotations, turned) < 0.02
    assert float(is_same.float().mean()) > 0.9  # two poses of almost one likelihood may change places by rounding
    torch.testing.assert_close(ours.shifts_px[is_same], (theirs.shifts_px @ act[:2, :2].T)[is_same], atol=0.05, rtol=0)


def test_logits_hardly_change_under_any_rotation(
    scene: tuple[ParticleTransforms, Tensor, PoseSet], encoder: ViewEncoder
) -> None:
    """Angles are a grid, fine enough; offsets are a wide square lattice: with them invariance is approximate."""
    particles, volume, _ = scene
    centred = ViewEncoder.build(volume, particles, replace(SETTINGS, shift_sigma=0.0))
    for here, least in ((centred, 0.995), (encoder, 0.9)):
        images = Images(here, 24, noise=0.0)
        first, second = (here.posterior(images.rotated(angle)[0]).logits for angle in (0.0, 0.4))
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert float(correlation) > least


def test_a_view_is_worth_the_mean_over_its_poses(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    particles, volume, _ = scene
    encoder = ViewEncoder.build(volume, particles, SETTINGS)
    coarse, few = encoder.coarse, torch.arange(3)
    subset = particles.within(coarse.likelihood.harmonics.plane.last_radius, N).rows(few)
    found = coarse(subset)
    offset = torch.tensor([len(coarse.offsets_px) // 3])
    terms = subset.at_offsets(coarse.offsets_px[offset].expand(3, 1, 2), coarse.likelihood.harmonics)
    poses = coarse.likelihood.log_likelihoods(terms).double()  # angles, hypotheses, rows
    mean = poses.view(len(poses), 2, -1, 3).exp().mean((0, 1)).log().T + coarse.log_prior[offset]
    torch.testing.assert_close(found[:, :, offset[0]].double(), mean, atol=1e-4, rtol=1e-4)


def test_products_are_those_of_the_search(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    """At chosen views and offsets they are the log-likelihoods that the search has of the same poses."""
    particles, volume, _ = scene
    encoder = ViewEncoder.build(volume, particles, SETTINGS)
    products, subset = encoder.fine, particles.rows(torch.arange(4))
    chosen, offsets = torch.tensor([[3, 50], [7, 7], [0, 9], [20, 1]]), torch.randn(4, 3, 2)
    found = products.log_likelihoods(subset, chosen, offsets)
    grid = PoseGrid(products.views, products.inplane_rad)
    whole = PoseLikelihood.build(encoder.reference, grid, products.harmonics)
    poses = whole.log_likelihoods(subset.at_offsets(offsets, products.harmonics))
    poses = poses.view(len(poses), 2, len(products.views), 4, 3)
    for row in range(4):
        for place, view in enumerate(chosen[row].tolist()):
            torch.testing.assert_close(found[:, row, place], poses[:, :, view, row], atol=2e-3, rtol=1e-4)


def test_offsets_are_a_lattice_that_quarter_turns_and_mirrors_keep() -> None:
    offsets = square_offsets(3.7, 1.1)
    for act in ([[0.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, -1.0]]):
        distances = torch.cdist(offsets @ torch.tensor(act).T, offsets)
        assert float(distances.amin(1).max()) < 1e-5
    assert square_offsets(0.0, 1.1).tolist() == [[0.0, 0.0]]


def test_training_learns_what_the_coarse_views_do_not_tell(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    """The true views of projections that it was not trained on get a higher probability."""
    particles, volume, poses = scene
    trained = ViewEncoder.build(volume, particles, SETTINGS)
    test, truth = simulate_particles(
        particles, trained.reference, 300, SIGMA * N, torch.Generator().manual_seed(9)
    )  # fmt: skip

    def loss() -> float:
        targets = smoothed_views(truth.rotations[:, 2], trained.directions, C1, math.radians(5))
        return float(-(targets * trained.posterior(test).logits.log_softmax(1)).sum(1).mean())

    before = loss()
    result_of(train_views(trained, particles, (particles, poses), SHORT, seed=3, number=1))
    assert loss() < before - 0.05


def test_poses_are_found(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    particles, volume, poses = scene
    stored, poser = result_of(learn_half(volume, particles, poses, SETTINGS, SHORT, seed=3, number=1))
    bare, refined = (poser.pose(particles, refines=refines) for refines in (False, True))
    errors = [errors_rad(each.poses, poses, C1).rad2deg() for each in (bare, refined)]
    assert float(errors[0].median()) < 12
    assert float(errors[1].median()) < float(errors[0].median())
    confidence = stored.refined.probability(refined)
    is_right = errors[1] < 10
    assert float(confidence[is_right].mean()) > float(confidence[~is_right].mean()) + 0.05
    assert float(confidence.mean()) == pytest.approx(float(is_right.float().mean()), abs=0.12)
    noise = replace(
        particles, ctf_multiplied=particles.ctf_multiplied[torch.randperm(len(particles))].conj().roll(5, 1)
    )
    mean, deviation = stored.usual_fit
    strange = poser.pose(noise, refines=True)
    assert float((strange.fit < mean - 2 * deviation).float().mean()) > 0.5
    assert float((refined.fit < mean - 2 * deviation).float().mean()) < 0.15


def test_a_search_replaces_poses_by_more_likely_ones_only(
    scene: tuple[ParticleTransforms, Tensor, PoseSet], encoder: ViewEncoder
) -> None:
    particles, volume, _ = scene
    poser = ViewPoser(encoder, Reference.prepare(volume, particles))
    some = particles.rows(torch.arange(30))
    before = poser.pose(some, refines=True)
    after = poser.search(some, before)
    assert bool((after.log_likelihood >= before.log_likelihood).all())
    assert torch.equal(after.poses.rotations[~after.is_searched], before.poses.rotations[~after.is_searched])
    wrong = replace(before, log_likelihood=before.log_likelihood - 1e3)
    assert bool(poser.search(some, wrong).is_searched.all())


def test_a_particle_is_posed_the_same_in_any_batch(
    scene: tuple[ParticleTransforms, Tensor, PoseSet], encoder: ViewEncoder
) -> None:
    particles, volume, _ = scene
    poser = ViewPoser(encoder, Reference.prepare(volume, particles))
    whole = poser.pose(particles.rows(torch.arange(40)), refines=True)
    for size in (1, 7):
        parts = [poser.pose(particles.rows(rows), refines=True) for rows in torch.arange(40).split(size)]
        for name in ("margin", "fit", "log_likelihood"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
        assert torch.equal(torch.cat([part.poses.rotations for part in parts]), whole.poses.rotations)


def test_half_sets_learn_nothing_of_each_other_and_training_repeats(
    scene: tuple[ParticleTransforms, Tensor, PoseSet],
) -> None:
    """An encoder is a function of its own map and particles: the same again, bit by bit, whatever came before."""
    particles, volume, poses = scene
    first, second = torch.arange(120), torch.arange(120, 240)

    def learn(rows: Tensor, values: Tensor, number: int) -> Tensor:
        learning = learn_half(values, particles.rows(rows), poses.rows(rows), SETTINGS, SHORT, seed=3, number=number)
        return result_of(learning)[0].head["weight"]

    alone = learn(first, volume, 1)
    other = learn(second, volume.flip(0), 2)
    assert torch.equal(learn(first, volume, 1), alone)
    assert not torch.equal(other, alone)


def test_a_file_gives_the_encoders_back(tmp_path: Path, scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    particles, volume, poses = scene
    half, poser = result_of(learn_half(volume, particles, poses, SETTINGS, SHORT, seed=3, number=1))
    stored = StoredViews((StoredClass((half, half), SETTINGS),), N, ANGPIX, True, None)
    save_checkpoint(tmp_path / "encoder.pt", stored.to_state())
    state = load_checkpoint(tmp_path / "encoder.pt", CPU)
    assert state["kind"] == KIND
    read = StoredViews.from_state(state, CPU)
    again = read.classes[0].halves[1].poser(particles, read.classes[0].settings)
    for refines in (False, True):
        ours, theirs = (each.pose(particles, refines=refines) for each in (poser, again))
        assert torch.equal(ours.poses.rotations, theirs.poses.rotations)
    assert torch.equal(read.classes[0].halves[0].refined.weights, half.refined.weights)
    assert read.classes[0].halves[0].usual_fit == pytest.approx(half.usual_fit)
    assert read.classes[0].halves[0].usual_confidence == pytest.approx(half.usual_confidence)


def test_views_of_a_symmetric_map_are_those_of_its_asymmetric_unit(
    scene: tuple[ParticleTransforms, Tensor, PoseSet],
) -> None:
    from cryoeq.geometry.pointgroup import symmetry_rotations

    particles, volume, _ = scene
    group = symmetry_rotations("C4").float()
    some, all_views = (ViewEncoder.build(volume, particles, replace(SETTINGS, symmetry=each)) for each in (group, C1))
    assert len(some.directions) < len(all_views.directions) / 3
    near = nearness(all_views.directions, some.directions, group)
    assert (
        float(near.amax(1).min()) > math.cos(math.radians(10)) ** 2
    )  # every view, up to symmetry, is near one of them


def test_calibration_rises_with_margin_and_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    margin, fit = torch.rand(500, generator=generator) * 20, torch.randn(500, generator=generator)
    is_right = margin.log1p() + fit + 0.3 * torch.randn(500, generator=generator) > 1.5
    weights = Calibration.fitted(margin, fit, is_right).weights
    assert bool((weights[1:] > 0).all())


def test_centred_particles_stay_centred(scene: tuple[ParticleTransforms, Tensor, PoseSet]) -> None:
    particles, volume, _ = scene
    encoder = ViewEncoder.build(volume, particles, replace(SETTINGS, shift_sigma=0.0))
    assert len(encoder.coarse.offsets_px) == 1
    posed = encoder.pose(particles.rows(torch.arange(20)))
    assert not bool(posed.poses.shifts_px.any())


def test_views_between_the_coarse_ones_are_interpolated_before_training(encoder: ViewEncoder) -> None:
    """Each row of the untrained head is a weighted mean: equal log-likelihoods tell no view from another."""
    torch.testing.assert_close(encoder.head.weight.detach().sum(1), torch.ones(len(encoder.directions)))
    logits = encoder.head(torch.full((2, encoder.head.weight.shape[1]), 7.0)).detach()
    assert float(logits.abs().max()) < 1e-4
