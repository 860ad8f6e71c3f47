"""Classification: several maps at once from noise, random starts until the partition of the particles is reproduced.

Maps that start as different noise part by themselves as the temperature of the posterior falls (``initial_model``).
Joint EM refines them at low resolution (``class_refinement``); then each particle is assigned by the maps of the other
half set (``class_assignment``). Random starts end in different partitions where one map takes two structures: the one
of the highest likelihood is kept, and the next best is carried to the same end, to tell how much of each class it
reproduces.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cryoeq.domain.events import Event, Note
from cryoeq.reconstruction.class_assignment import assign_classes, held_out_log_likelihood
from cryoeq.reconstruction.class_refinement import (
    ClassesState,
    begin_classes,
    log_likelihood_at_one_noise,
    refine_classes,
)
from cryoeq.reconstruction.initial_model import estimate_initial_model
from cryoeq.reconstruction.multi_start import detail_agreement
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, State, Step, no_checkpoints
from cryoeq.runtime.device import torch_threads

# Agreement of two partitions beyond chance (Cohen's kappa) from which they are the same before the particles are
# assigned one by one: 0.96 and more for two molecules, 0.5 for two conformations, 0.1 for two different partitions.
_SAME = 0.4
MAX_STARTS = 8
# Starts after which two are assigned even where none agree: conformations agree only once each particle is assigned.
_TRIED = 3
_SURE = 3.0  # standard errors of the mean gain that are no chance, in each half set


@dataclass(frozen=True)
class PartitionAgreement:
    """Agreement of two partitions of the same particles into as many classes.

    Args:
        moves: number of particles of each class of the first (rows) in each matched class of the second (columns); the
            classes of the second without a match come last.
    """

    moves: Int[Tensor, "classes others"]

    @classmethod
    def of(
        cls, first: Int[Tensor, " particles"], second: Int[Tensor, " particles"], n_first: int, n_second: int
    ) -> "PartitionAgreement":
        """Match the classes such that as many particles as possible are in the same.

        Args:
            first: class of each particle, from 0.
            second: likewise.
            n_first: number of classes of the first.
            n_second: number of classes of the second.
        """
        width = max(n_first, n_second)
        counts = torch.bincount(first.cpu() * width + second.cpu(), minlength=width**2).view(width, width)
        _, matched = linear_sum_assignment(counts.numpy(), maximize=True)
        return cls(counts[:n_first, torch.from_numpy(matched)])

    @property
    def share(self) -> float:
        """Share of the particles in the same class."""
        return float(self.moves.diagonal().sum()) / max(1, int(self.moves.sum()))

    @property
    def beyond_chance(self) -> float:
        """Cohen's kappa: 0 where the classes have nothing to do with each other, 1 where they are the same."""
        total, count = max(1, int(self.moves.sum())), len(self.moves)
        chance = float((self.moves.sum(0)[:count].double() * self.moves.sum(1).double()).sum()) / total**2
        return (self.share - chance) / (1 - chance) if chance < 1 else 1.0

    @property
    def of_class(self) -> Float[Tensor, " classes"]:
        """Share of each class that is in the matched one, of all particles in either."""
        same = self.moves.diagonal()
        return same / (self.moves.sum(0)[: len(same)] + self.moves.sum(1) - same).clamp(min=1)

    def of_classes(self, numbers: Sequence[int]) -> "PartitionAgreement":
        """The same of some classes of the first partition, and their particles.

        Args:
            numbers: of the classes, from 0.
        """
        others = [column for column in range(self.moves.shape[1]) if column not in set(numbers)]
        return PartitionAgreement(self.moves[list(numbers)][:, [*numbers, *others]])


@dataclass(frozen=True)
class Classification:
    """Particles in classes.

    Args:
        state: maps at low resolution, largest class first, and class and pose of each particle.
        agreement: with the partition of another random start, carried to the same end; None without one.
        map_agreement: mean FSC of the map of each class with that of the class of the other start which shares most
            particles with it, in shells where wrong maps differ; None without another start.
    """

    state: ClassesState
    agreement: PartitionAgreement | None
    map_agreement: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Start:
    """One random start.

    Args:
        number: of the start, from 0.
        log_likelihood: mean per particle, at a noise that all starts share.
        state: maps at low resolution and the particles that took part.
    """

    number: int
    log_likelihood: float
    state: ClassesState


def classify(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    *,
    least_particles: int,
    max_starts: int = MAX_STARTS,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, Classification]:
    """Find classes from noise; fewer than asked for where one is left with hardly any particle.

    Args:
        particles: CTF-multiplied transforms of all particles, in the box of the consensus refinement.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the consensus refinement, from ``at_low_resolution``.
        least_particles: particles of a class at least.
        max_starts: random starts at most, unless the settings have one start only.
        checkpoint: saves finished steps.
    """
    starts: list[_Start] = []
    ends: dict[int, ClassesState] = {}
    most = max(settings.min_starts, max_starts) if settings.min_starts > 1 else 1
    for number in range(most):
        state = yield from checkpoint(f"class_start_{number}", _start(particles, half_set, settings, number))
        value = log_likelihood_at_one_noise(state, particles, settings.refinement, seed=settings.seed)
        starts.append(_Start(number, value, state))
        if len(starts) < settings.min_starts:
            continue
        pair, agreement = _best_and_most_alike(starts)
        if agreement <= _SAME and len(starts) not in {_TRIED, most}:
            continue
        for each in pair:
            if each.number not in ends:
                steps = _assign(each.state, particles, settings, least_particles)
                ends[each.number] = yield from checkpoint(f"classes_{each.number}", steps)
        found = [ends[each.number] for each in pair]
        if agreement > _SAME or _agreement(found[0], found[-1]).beyond_chance > _SAME:
            break
    yield from _start_notes(starts, agreement)
    if len(found) == 1:
        return Classification(found[0].by_size(), None)
    # At one noise, by the maps of the other half set: the noise that the maps of each end leave is its own.
    ranked = sorted(
        ((held_out_log_likelihood(end, particles, settings.refinement), end) for end in found),
        key=lambda each: -float(each[0].mean()),
    )
    (best, state), (second, other) = ranked
    state = yield from _with_better_maps([state, other], second - best)
    state = state.by_size()
    return Classification(state, _agreement(state, other), _map_agreement(state, other, settings))


def _start_notes(starts: Sequence[_Start], agreement: float) -> Iterator[Note]:
    if len(starts) > 1:
        told = ", ".join(f"{each.log_likelihood:.2f}" for each in starts)
        yield Note(
            f"{len(starts)} random starts of {len(starts[0].state.maps)} classes, log-likelihood per particle {told} "
            f"(higher is better); the best agrees with another by {agreement:.2f} beyond chance (Cohen's kappa)."
        )


def _best_and_most_alike(starts: Sequence[_Start]) -> tuple[list[_Start], float]:
    """The start of the highest likelihood and the one that it agrees with most, by Cohen's kappa."""
    best, *others = sorted(starts, key=lambda start: -start.log_likelihood)
    if not others:
        return [best], 1.0
    rows = best.state.particles.log_evidence.nonzero().squeeze(1)
    found = [_agreement(best.state, other.state, rows).beyond_chance for other in others]
    number = max(range(len(found)), key=found.__getitem__)
    return [best, others[number]], found[number]


def _agreement(
    first: ClassesState, second: ClassesState, rows: Int[Tensor, " rows"] | None = None
) -> PartitionAgreement:
    classes = [each.class_of if rows is None else each.class_of[rows] for each in (first, second)]
    return PartitionAgreement.of(classes[0], classes[1], len(first.maps), len(second.maps))


def _with_better_maps(
    ends: Sequence[ClassesState], gain: Float[Tensor, " particles"]
) -> Generator[Event, None, ClassesState]:
    """The first of two ends, with those maps of the second that explain the particles of a class better.

    Where a start has the classes right, one of its maps may still be in a wrong optimum.

    Args:
        ends: of two starts.
        gain: held-out log-likelihood of each particle under the second beyond that under the first.
    """
    state, other = ends
    for number in range(len(state.maps)):
        alike = _most_alike(state, number, other)
        rows = ((state.class_of == number) & (other.class_of == alike)).nonzero().squeeze(1)
        mean = float(gain[rows].mean())
        if len(rows) > 1 and mean > _SURE * float(gain[rows].std()) / len(rows) ** 0.5:
            yield Note(
                f"A class of {int((state.class_of == number).sum())} particles has its map from another start, which "
                f"explains them better by {mean:.2g} nats each."
            )
            state = state.with_class_of(number, other, alike)
    return state


def _map_agreement(state: ClassesState, other: ClassesState, settings: AbInitioSettings) -> tuple[float, ...]:
    """How far the map of each class is that of the class of another start that shares most particles with it."""
    alike = (other.maps[_most_alike(state, number, other)] for number in range(len(state.maps)))
    return tuple(
        detail_agreement(each.merged(), theirs.merged(), settings)
        for each, theirs in zip(state.maps, alike, strict=True)
    )


def _most_alike(state: ClassesState, number: int, other: ClassesState) -> int:
    """The class of another start that shares most particles with one of these."""
    return int(other.class_of[state.class_of == number].bincount(minlength=len(other.maps)).argmax())


def _assign(
    state: ClassesState, particles: ParticleTransforms, settings: AbInitioSettings, least_particles: int
) -> Generator[Event, None, ClassesState]:
    """Class of each particle, by the maps of those classes that are left with particles."""
    while True:
        state = yield from assign_classes(state, particles, settings.refinement, seed=settings.seed)
        sizes = state.class_of.bincount(minlength=len(state.maps))
        is_left = sizes >= min(least_particles, int(sizes.max()))
        if bool(is_left.all()):
            return state
        state = state.of_classes(is_left.nonzero().squeeze(1))


def classify_by_evidence(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    *,
    max_classes: int,
    least_particles: int,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, Classification]:
    """Find as many classes as held-out particles tell apart: one more, until it explains them no better.

    Nor is one more taken whose partition no other random start reproduces, or that leaves a class hardly any
    particle: its maps then are but other maps of the others, and may be better by chance.

    Args:
        particles: CTF-multiplied transforms of all particles, in the box of the consensus refinement.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the consensus refinement, from ``at_low_resolution``, for one class.
        max_classes: classes at most.
        least_particles: particles of a class at least.
        checkpoint: saves finished steps.
    """
    initial, found, before = settings.initial_model, None, None
    for n_classes in range(1, max_classes + 1):
        batch_size = min(n_classes * initial.batch_size, len(particles))
        of_number = replace(settings, initial_model=replace(initial, n_classes=n_classes, batch_size=batch_size))
        named = partial(_named, checkpoint, f"of{n_classes}_")
        another = yield from classify(
            particles,
            half_set,
            of_number,
            least_particles=least_particles,
            max_starts=_TRIED,
            checkpoint=named,
        )
        evidence = held_out_log_likelihood(another.state, particles, settings.refinement)
        if found is None or before is None:
            found, before = another, evidence
            continue
        gain = evidence - before
        mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        smallest = int(another.state.class_of.bincount(minlength=n_classes).min())
        again = "" if another.agreement is None else f" Two starts agree by {another.agreement.beyond_chance:.2f}."
        yield Note(
            f"{n_classes} classes explain a particle by maps of the other half set better by {mean:.3g} ± {error:.1g} "
            f"nats than {n_classes - 1}.{again} The smallest holds {smallest} particles."
        )
        is_reproduced = another.agreement is None or another.agreement.beyond_chance > _SAME
        # Maps that are better by chance are so for all particles of one half set: in both, that is unlikely.
        halves = [gain[rows] for _, rows, _ in another.state.maps[0].halves()]
        is_sure = all(float(half.mean()) >= _SURE * float(half.std()) / len(half) ** 0.5 for half in halves)
        if not is_sure or not is_reproduced or smallest < least_particles:
            break
        found, before = another, evidence
    if found is None:
        raise ValueError("at least one class is tried")
    count = len(found.state.maps)
    yield Note(f"--classes auto: {count} structure{'' if count == 1 else 's'}.")
    return found


def _named(checkpoint: Checkpointer, prefix: str, name: str, step: Step[State]) -> Step[State]:
    return checkpoint(prefix + name, step)


def _start(
    particles: ParticleTransforms, half_set: Int[Tensor, " particles"], settings: AbInitioSettings, start: int
) -> Generator[Event, None, ClassesState]:
    """One random start: initial models and their joint refinement."""
    with torch_threads(1):  # its tensors are so small that two threads would wait for each other
        model = yield from estimate_initial_model(particles, settings.initial_model, seed=settings.seed, start=start)
    state = begin_classes(model, particles, half_set, settings.refinement, settings.initial_model.last_shell)
    return (yield from refine_classes(state, particles, settings.refinement, seed=settings.seed))
