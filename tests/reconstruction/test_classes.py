"""Several maps at once: the posterior over class and pose, who decides on a class, and how partitions are compared."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import Note, result_of
from cryoeq.domain.volume import Volume
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations
from cryoeq.reconstruction import class_assignment, classification
from cryoeq.reconstruction.class_assignment import assign_classes, held_out_log_likelihood
from cryoeq.reconstruction.class_refinement import (
    ClassesState,
    begin_classes,
    log_likelihood_at_one_noise,
    refine_classes,
)
from cryoeq.reconstruction.classification import Classification, PartitionAgreement, classify, classify_by_evidence
from cryoeq.reconstruction.expectation import EStepResult, expectation_step
from cryoeq.reconstruction.initial_model import InitialModel, InitialModelSettings
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import ConsensusMap, RefinementSettings
from cryoeq.simulation.density import sample_atoms
from phantoms import random_phantom
from pipeline_events import events_and_result

Make = Callable[..., Any]
COUNT = 60  # particles of each of two molecules
ZERO_SHARES = torch.tensor([0.3, 0.4, 0.3])

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Mixture:
    """Particles of two molecules, one after the other, and their maps."""

    particles: ParticleTransforms
    volumes: torch.Tensor

    @property
    def true_class(self) -> torch.Tensor:
        return torch.arange(len(self.particles)) // COUNT

    @property
    def half_set(self) -> torch.Tensor:
        return torch.arange(len(self.particles)) % 2 + 1


@pytest.fixture
def make_mixture(make_known: Make, make_dataset: Make, observe: Make) -> Callable[..., Mixture]:
    def make(sigma: float = 1.0) -> Mixture:
        other = Volume(sample_atoms(random_phantom(5, 28.0, torch.Generator().manual_seed(3)), 16, 5.0).values, 5.0)
        known = [
            make_known(COUNT, sigma=sigma, with_ctf=False),
            make_known(COUNT, sigma=sigma, with_ctf=False, shown=other),
        ]
        images = torch.cat([each.dataset.cache for each in known])
        return Mixture(observe(make_dataset(images)), torch.stack([each.volume.values for each in known]))

    return make


def settings(**changes: Any) -> RefinementSettings:
    made = RefinementSettings(
        consensus_shells=(5, 6), max_extra_iterations=0, max_particles=2 * COUNT, iterations=1, max_exhaustive_shell=7,
        local_iterations=0, n_offsets=4, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
        box_side_angstrom=80.0,
    )  # fmt: skip
    return replace(made, **changes)


def beginning(mixture: Mixture, volumes: torch.Tensor) -> ClassesState:
    model = InitialModel(volumes, torch.zeros(len(mixture.particles), 2), 0.0)
    return begin_classes(model, mixture.particles, mixture.half_set, settings(), 5)


def expect(
    mixture: Mixture, volumes: torch.Tensor, shares: torch.Tensor | None = None, null_share: float = 0.0
) -> tuple[PoseLikelihood, EStepResult]:
    subset = mixture.particles.within(6.0, 16)
    grid = PoseGrid.build(0, 12, random_rotations(1, torch.Generator().manual_seed(4))[0])
    precision = torch.full((len(subset.plane),), 0.5)
    references = [Reference.build(volume, precision) for volume in volumes]
    likelihood = PoseLikelihood.of_classes(references, grid, disk_harmonics(16, 6.0, 7.5, torch.device("cpu")))
    offsets = torch.randn(len(subset), 3, 2, generator=torch.Generator().manual_seed(5))
    steps = expectation_step(
        subset, likelihood, offsets, shift_sigma_px=1.2, class_shares=shares, null_share=null_share
    )
    return likelihood, result_of(steps)


def test_the_posterior_over_classes_is_that_of_the_evidence_of_each(make_mixture: Callable[..., Mixture]) -> None:
    """By Bayes: p(c) ~ share times evidence; poses are those found under each map alone."""
    mixture, shares = make_mixture(), torch.tensor([0.3, 0.7])
    _, joint = expect(mixture, mixture.volumes, shares)
    alone = [expect(mixture, volume[None])[1].posterior for volume in mixture.volumes]
    evidence = torch.stack([each.log_evidence for each in alone], 1) + shares.log()
    torch.testing.assert_close(joint.posterior.class_probability, evidence.softmax(1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(joint.posterior.log_evidence, evidence.logsumexp(1), atol=1e-3, rtol=1e-5)
    for number, each in enumerate(alone):
        torch.testing.assert_close(joint.posterior.best.rotations[:, number], each.poses.rotations)
        torch.testing.assert_close(joint.posterior.best.shifts_px[:, number], each.poses.shifts_px)


def test_images_of_noise_alone_show_no_map(make_mixture: Callable[..., Mixture]) -> None:
    """By Bayes again: the likelihood of noise alone is 1, as that of a map that is 0."""
    mixture, share = make_mixture(sigma=2.0), 0.3
    _, zero = expect(mixture, torch.stack([*mixture.volumes, torch.zeros_like(mixture.volumes[0])]), ZERO_SHARES)
    _, null = expect(mixture, mixture.volumes, ZERO_SHARES[:2], null_share=share)
    torch.testing.assert_close(
        null.posterior.class_probability, zero.posterior.class_probability[:, :2], atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(null.posterior.log_evidence, zero.posterior.log_evidence, atol=1e-3, rtol=1e-5)
    noise = torch.randn(mixture.particles.ctf_multiplied.shape, generator=torch.Generator().manual_seed(2))
    scale = mixture.particles.ctf_multiplied.abs().square().mean().sqrt()
    images = replace(mixture.particles, ctf_multiplied=(noise * scale / 3).to(mixture.particles.ctf_multiplied))
    _, of_noise = expect(replace(mixture, particles=images), mixture.volumes, ZERO_SHARES[:2], null_share=share)
    assert 1 - of_noise.posterior.class_probability.sum(1).mean() > 0.9
    assert 1 - null.posterior.class_probability.sum(1).mean() < 0.1


def test_sums_of_a_class_are_those_under_its_map_alone_times_its_probability(
    make_mixture: Callable[..., Mixture],
) -> None:
    mixture = make_mixture()
    some = replace(mixture, particles=mixture.particles.rows(torch.tensor([0])))
    likelihood, joint = expect(some, mixture.volumes)
    for number, volume in enumerate(mixture.volumes):
        ours = likelihood.of_map(joint.sums, number)
        theirs = expect(some, volume[None])[1].sums
        probability = joint.posterior.class_probability[0, number]
        torch.testing.assert_close(ours.cross_term, theirs.cross_term * probability, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(ours.quadratic_term, theirs.quadratic_term * probability, atol=1e-3, rtol=1e-3)


def test_equal_maps_tell_nothing_of_the_class(make_mixture: Callable[..., Mixture]) -> None:
    mixture, shares = make_mixture(), torch.tensor([0.2, 0.8])
    _, twice = expect(mixture, mixture.volumes[[0, 0]], shares)
    _, once = expect(mixture, mixture.volumes[:1])
    torch.testing.assert_close(twice.posterior.class_probability, shares.expand(2 * COUNT, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(twice.posterior.log_evidence, once.posterior.log_evidence, atol=1e-3, rtol=1e-5)


def test_particles_find_their_class_again_from_blended_maps(make_mixture: Callable[..., Mixture]) -> None:
    mixture = make_mixture(sigma=0.7)
    blended = torch.stack(
        [0.7 * mixture.volumes[0] + 0.3 * mixture.volumes[1], 0.3 * mixture.volumes[0] + 0.7 * mixture.volumes[1]]
    )
    state = result_of(refine_classes(beginning(mixture, blended), mixture.particles, settings(), seed=0))
    assert state.shares.sum() == pytest.approx(1.0, abs=1e-5)
    found = result_of(assign_classes(state, mixture.particles, settings(), seed=0))
    assert (found.class_of == mixture.true_class).float().mean() > 0.95
    torch.testing.assert_close(found.probability.sum(1), torch.ones(2 * COUNT))


def test_two_molecules_explain_held_out_particles_better_than_one_and_one_no_worse_than_its_copies(
    make_mixture: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_assignment, "_MAX_ROUNDS", 1)
    mixture = make_mixture()

    def evidence(volumes: torch.Tensor, of_particles: Mixture) -> float:
        found = result_of(assign_classes(beginning(of_particles, volumes), of_particles.particles, settings(), seed=0))
        return float(held_out_log_likelihood(found, of_particles.particles, settings()).mean())

    assert evidence(mixture.volumes, mixture) > evidence(mixture.volumes[:1], mixture) + 0.5
    pure = replace(mixture, particles=mixture.particles.rows(torch.arange(COUNT)))
    noise = 0.3 * torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(1))
    halved = torch.stack([mixture.volumes[0] + noise, mixture.volumes[0] - noise])
    assert evidence(halved, pure) < evidence(mixture.volumes[:1], pure) + 0.1


@pytest.mark.parametrize("added", [-1e6, 1e6])
def test_poses_are_compared_at_the_present_maps_whatever_their_likelihood_was(
    make_mixture: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch, added: float
) -> None:
    monkeypatch.setattr(class_assignment, "_MAX_ROUNDS", 1)
    mixture = make_mixture()
    state = beginning(mixture, mixture.volumes)
    other = replace(state, best=replace(state.best, log_likelihood=state.best.log_likelihood + added))
    ours, theirs = (result_of(assign_classes(each, mixture.particles, settings(), seed=0)) for each in (state, other))
    assert torch.equal(ours.best.rotations, theirs.best.rotations)
    assert torch.equal(ours.class_of, theirs.class_of)


@pytest.mark.parametrize("half", [1, 2])
def test_no_particle_is_compared_with_a_map_that_it_helped_to_make(
    make_mixture: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch, half: int
) -> None:
    """The classes of a half set come from the maps of the other: whatever else is in it changes none of them."""
    monkeypatch.setattr(class_assignment, "_MAX_ROUNDS", 1)
    monkeypatch.setattr(class_assignment, "_ITERATIONS", 1)
    fsc = torch.linspace(1.0, 0.2, 9)
    monkeypatch.setattr("cryoeq.reconstruction.maximization.fourier_shell_correlation", lambda *_: fsc.clone())
    mixture = make_mixture()
    state = beginning(mixture, mixture.volumes)
    signs = 1 - 2.0 * torch.randint(2, mixture.particles.ctf_squared.shape, generator=torch.Generator().manual_seed(1))
    of_half = mixture.half_set == half
    is_watched = of_half & (torch.arange(2 * COUNT) < 20)
    changed = torch.where((of_half & ~is_watched)[:, None], signs, 1.0) * mixture.particles.ctf_multiplied
    scrambled = replace(mixture.particles, ctf_multiplied=changed)
    original, other = (
        result_of(assign_classes(state, images, settings(), seed=0)) for images in (mixture.particles, scrambled)
    )
    torch.testing.assert_close(other.best.log_likelihood[is_watched], original.best.log_likelihood[is_watched])
    unwatched = of_half & ~is_watched
    assert not torch.allclose(other.best.log_likelihood[unwatched], original.best.log_likelihood[unwatched])


def test_partitions_agree_whatever_their_classes_are_called() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, (3000,), generator=generator)
    renamed = PartitionAgreement.of(first, (first + 1) % 3, 3, 3)
    assert (renamed.share, renamed.beyond_chance) == (1.0, 1.0)
    assert torch.equal(renamed.moves, torch.diag(first.bincount()))
    assert renamed.of_class.tolist() == [1.0, 1.0, 1.0]
    by_chance = PartitionAgreement.of(first, torch.randint(3, (3000,), generator=generator), 3, 3)
    assert abs(by_chance.beyond_chance) < 0.1
    assert int(by_chance.moves.sum()) == 3000
    assert PartitionAgreement.of(first * 0, first * 0, 1, 1).beyond_chance == 1.0


def test_a_partition_into_more_classes_agrees_with_one_into_fewer_but_for_those_without_a_match() -> None:
    """Of 300, 200 and 100 particles, the last are in no class of their own in the other."""
    three = torch.arange(3).repeat_interleave(torch.tensor([300, 200, 100]))
    two = three.clamp(max=1)
    found, other = PartitionAgreement.of(three, two, 3, 2), PartitionAgreement.of(two, three, 2, 3)
    assert (found.share, other.share) == (pytest.approx(5 / 6), pytest.approx(5 / 6))
    assert found.beyond_chance == pytest.approx(other.beyond_chance)
    assert found.of_class.tolist() == pytest.approx([1.0, 2 / 3, 0.0])
    assert other.of_class.tolist() == pytest.approx([1.0, 2 / 3])
    assert other.moves.tolist() == [[300, 0, 0], [0, 200, 100]]
    assert PartitionAgreement.of(three * 0, three, 1, 3).beyond_chance == pytest.approx(0.0)


def test_an_agreement_of_some_classes_is_that_of_their_particles() -> None:
    """Class 1 is left out: those of it are gone, and what others have there has no match any more."""
    classes = torch.arange(3).repeat_interleave(torch.tensor([300, 200, 100]))
    other = classes.clone()
    other[:30] = 1
    kept = PartitionAgreement.of(classes, other, 3, 3).of_classes([0, 2])
    assert kept.moves.tolist() == [[270, 0, 30], [0, 100, 0]]
    assert kept.share == pytest.approx(370 / 400)
    assert kept.of_class.tolist() == pytest.approx([0.9, 1.0])


def test_an_agreement_by_size_alone_is_none_beyond_chance() -> None:
    """Nine tenths in one class of both partitions: 82 % agree by chance."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(20_000, generator=generator) < 0.1 for _ in range(2))
    found = PartitionAgreement.of(first.long(), second.long(), 2, 2)
    assert found.share > 0.8
    assert abs(found.beyond_chance) < 0.03


def test_classes_by_size_keep_each_particle_in_its_class(make_mixture: Callable[..., Mixture]) -> None:
    mixture = make_mixture()
    state = beginning(mixture, mixture.volumes)
    probability = torch.zeros(2 * COUNT, 2)
    probability[:50, 0], probability[50:, 1] = 1.0, 1.0
    sorted_state = replace(state, probability=probability).by_size()
    assert sorted_state.class_of.bincount().tolist() == [2 * COUNT - 50, 50]
    assert torch.equal(sorted_state.class_of[:50], torch.ones(50, dtype=torch.long))
    torch.testing.assert_close(sorted_state.maps[1].reference.mean, state.maps[0].reference.mean)


def test_a_class_has_the_map_that_explains_its_particles_best(make_mixture: Callable[..., Mixture]) -> None:
    """Of two ends with the same classes each has one wrong map; the classes are named in another order."""
    mixture = make_mixture()
    wrong = mixture.volumes.flip(1)
    first = beginning(mixture, torch.stack([mixture.volumes[0], wrong[1]]))
    second = beginning(mixture, torch.stack([mixture.volumes[1], wrong[0]]))
    certain = torch.nn.functional.one_hot(mixture.true_class, 2).float()
    first, second = replace(first, probability=certain), replace(second, probability=certain.flip(1))
    second = replace(second, best=replace(second.best, shifts_px=second.best.shifts_px + 3.0))
    gain = torch.where(mixture.true_class == 1, 1.0, -1.0) + 0.1 * torch.randn(len(certain))
    notes, found = events_and_result(classification._with_better_maps([first, second], gain))
    assert torch.equal(found.maps[0].reference.mean, first.maps[0].reference.mean)
    assert torch.equal(found.maps[1].reference.mean, second.maps[0].reference.mean)
    assert torch.equal(found.best.shifts_px[:, 1], second.best.shifts_px[:, 0])
    assert torch.equal(found.best.shifts_px[:, 0], first.best.shifts_px[:, 0])
    assert torch.equal(found.class_of, mixture.true_class)
    assert [f"{COUNT} particles has its map from another start" in note.text for note in notes] == [True]


def test_starts_are_ranked_by_their_maps_alone(make_mixture: Callable[..., Mixture]) -> None:
    """At one noise: whatever the likelihoods were that a start ended with, and whatever its classes are called."""
    mixture = make_mixture()
    first, second = mixture.volumes
    found = result_of(refine_classes(beginning(mixture, mixture.volumes), mixture.particles, settings(), seed=0))

    def evidence(*volumes: torch.Tensor, added: float = 0.0) -> float:
        maps = [replace(found.maps[0], reference=ConsensusMap(volume)) for volume in volumes]
        poses = replace(found.particles, log_evidence=found.particles.log_evidence + added)
        state = replace(found, maps=tuple(maps), particles=poses, probability=torch.full((2 * COUNT, 2), 0.4))
        return log_likelihood_at_one_noise(state, mixture.particles, settings(), seed=0)

    assert evidence(first, second) > evidence(first, first) > evidence(0 * first, 0 * second)
    assert evidence(first, second) > evidence(2 * first, 2 * second)
    assert evidence(first, second) == pytest.approx(evidence(second, first), rel=1e-5)
    assert evidence(first, second) == evidence(first, second, added=1e6)


@pytest.mark.parametrize(("sizes", "left"), [((50, 40, 30), 3), ((70, 41, 9), 2), ((112, 4, 4), 1), ((111, 9, 0), 1)])
def test_a_class_that_empties_is_left_out_and_the_others_go_on(
    make_mixture: Callable[..., Mixture], monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], left: int
) -> None:
    mixture = make_mixture()
    tried: list[int] = []

    def assigned(state: ClassesState, *_: object, **__: object) -> Generator[Note, None, ClassesState]:
        yield Note("an assignment")
        tried.append(len(state.maps))
        numbers = torch.arange(3).repeat_interleave(torch.tensor(sizes)).clamp(max=len(state.maps) - 1)
        return replace(state, probability=torch.eye(len(state.maps))[numbers])

    def started(*_: object) -> Generator[Note, None, ClassesState]:
        yield Note("a random start")
        return beginning(mixture, mixture.volumes[[0, 1, 0]])

    monkeypatch.setattr(classification, "assign_classes", assigned)
    monkeypatch.setattr(classification, "_start", started)
    ours = AbInitioSettings(1, 1, InitialModelSettings(2, 4, 3, 6, 1, 2.0, 0.42, n_classes=3), settings(), "C1", 5.0, 0)
    found = result_of(classify(mixture.particles, mixture.half_set, ours, least_particles=10)).state
    assert len(found.maps) == left
    assert int(found.class_of.bincount(minlength=left).min()) >= 10
    assert tried == ([3] if left == 3 else [3, left])


@pytest.mark.parametrize(
    ("starts_agree", "ends_agree", "starts", "assigned"),
    [(True, False, 2, 2), (False, True, 3, 2), (False, False, 6, 4)],
)
def test_starts_go_on_until_they_agree_or_their_ends_do(
    make_mixture: Callable[..., Mixture],
    monkeypatch: pytest.MonkeyPatch,
    starts_agree: bool,
    ends_agree: bool,
    starts: int,
    assigned: int,
) -> None:
    """Conformations agree only once each particle is assigned; none is assigned twice from one start."""
    mixture = make_mixture()
    first = beginning(mixture, mixture.volumes)
    made: list[int] = []
    begun: list[int] = []

    def parted(number: int, *, alike: bool) -> ClassesState:
        classes = torch.randint(2, (2 * COUNT,), generator=torch.Generator().manual_seed(0 if alike else number))
        particles = replace(first.particles, log_evidence=torch.ones(2 * COUNT))
        return replace(first, probability=torch.eye(2)[classes], particles=particles)

    def started(*given: object) -> Generator[Note, None, ClassesState]:
        yield Note("a random start")
        begun.append(len(begun))
        return parted(len(begun), alike=starts_agree)

    def assign(*_: object, **__: object) -> Generator[Note, None, ClassesState]:
        yield Note("an assignment")
        made.append(len(made))
        return parted(100 + len(made), alike=ends_agree)

    values = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(classification, "assign_classes", assign)
    monkeypatch.setattr(classification, "_start", started)
    monkeypatch.setattr(classification, "log_likelihood_at_one_noise", lambda *_, **__: next(values))
    initial = InitialModelSettings(2, 4, 3, 6, 1, 2.0, 0.42, n_classes=2)
    ours = AbInitioSettings(2, 4, initial, settings(), "C1", 5.0, 0)
    steps = classify(mixture.particles, mixture.half_set, ours, least_particles=10, max_starts=6)
    found = result_of(steps)
    assert len(begun) == starts
    assert 2 <= len(made) <= assigned
    assert found.agreement is not None
    assert (found.agreement.beyond_chance > 0.4) == ends_agree


@pytest.mark.parametrize(
    ("smallest", "gains", "taken"), [(0, (1, 1), 1), (9, (1, 1), 1), (10, (1, 1), 2), (60, (2, 0), 1)]
)
def test_no_class_is_added_that_hardly_any_particle_is_in_or_that_one_half_set_speaks_for(
    make_mixture: Callable[..., Mixture],
    monkeypatch: pytest.MonkeyPatch,
    smallest: int,
    gains: tuple[float, float],
    taken: int,
) -> None:
    """However much better its maps explain the particles, by a nat here."""
    mixture, count = make_mixture(), 2 * COUNT

    def classified(
        particles: object, half_set: object, given: AbInitioSettings, **_: object
    ) -> Generator[Note, None, Classification]:
        yield Note("a classification")
        n_classes = given.initial_model.n_classes
        state = beginning(mixture, mixture.volumes[[0, 1, 0][:n_classes]])
        is_last = torch.arange(count) < smallest
        classes = torch.where(is_last, n_classes - 1, 0) if n_classes < 3 else torch.zeros(count).long()
        return Classification(replace(state, probability=torch.eye(n_classes)[classes]), None)

    monkeypatch.setattr(classification, "classify", classified)
    chance = 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    of_half = torch.tensor(gains)[mixture.half_set - 1]
    monkeypatch.setattr(
        classification, "held_out_log_likelihood", lambda state, *_: (of_half + chance) * len(state.maps)
    )
    of_one = InitialModelSettings(2, 4, 3, 6, 1, 2.0, 0.42)
    ours = AbInitioSettings(2, 2, of_one, settings(), "C1", 5.0, 0)
    steps = classify_by_evidence(mixture.particles, mixture.half_set, ours, max_classes=3, least_particles=10)
    assert len(result_of(steps).state.maps) == taken
