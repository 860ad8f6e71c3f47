"""Junk in the classes of a search: particles that are probably junk, maps made without them, classes of nothing else.

Where many images are junk, one more class explains held-out images better by taking junk alone. It is no structure: so
where the number of classes was not asked for, a class counts only if enough of its particles are no junk.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryoeq.config.reconstruct import LEAST_PARTICLES_OF_CLASS, ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.junk_comparison import PosedRows
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.pipelines.reconstruct.class_parts import ClassPart, refine_locally, with_more_particles
from cryoeq.pipelines.reconstruct.junk import STAGE, judge_particles
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.global_realignment import with_realigned_worst
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.state import Checkpointer, RefinementState

_LEAST_JUNK = 0.05  # of a class, from which on its maps are made again without it


def probably_junk(
    config: ReconstructConfig, dataset: ParticleDataset, parts: Sequence[ClassPart], device: torch.device
) -> Generator[Event, None, Bool[Tensor, " particles"] | None]:
    """Whether each particle is probably junk, by the half maps so far; None where that cannot be told.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        parts: all classes.
        device: where to compute.
    """
    pixel, order = dataset.pixel_size_angstrom, torch.cat([part.rows for part in parts]).argsort().cpu()
    maps, halves = [], [part.halves for part in parts]
    for state in halves:
        if state.sums is None:
            raise ValueError("there are no sums before the first iteration")
        first, second = (Volume(sums.reconstruct().cpu(), pixel) for sums in state.sums)
        maps.append(HalfMaps(first, second))
    number = torch.cat([torch.full_like(part.rows, part.number - 1) for part in parts]).cpu()
    poses, half_set = PoseSet.cat([state.poses for state in halves]), torch.cat([state.half_set for state in halves])
    posed = PosedRows(poses.each(torch.Tensor.cpu), half_set.cpu(), number).rows(order)
    yield Progress(STAGE, 0, 1)
    found = judge_particles(config, dataset, maps, posed, device)
    yield Progress(STAGE, 1, 1)
    return None if isinstance(found, str) else found.probability.any_kind >= JUNK_CUT


def structures_among(
    parts: Sequence[ClassPart], is_junk: Bool[Tensor, " particles"] | None
) -> Generator[Event, None, list[int]]:
    """The classes that are structures, from 0: all but those that hardly any good particle is in; at least one.

    Particles whose class has half maps that agree at too few shells count as junk here: nothing shows a structure.

    Args:
        parts: all classes.
        is_junk: whether each particle is probably junk; None where that is not known.
    """
    if is_junk is None:
        return list(range(len(parts)))
    good = [int((~is_junk.to(part.rows.device)[part.rows]).sum()) for part in parts]
    kept = [number for number, count in enumerate(good) if count >= min(LEAST_PARTICLES_OF_CLASS, max(good))]
    for number in sorted(set(range(len(parts))) - set(kept)):
        yield Note(
            f"Class {parts[number].number}: {good[number]} of {len(parts[number].rows)} particles are probably no "
            f"junk, fewer than {LEAST_PARTICLES_OF_CLASS}. It is no structure, and its particles go to the others."
        )
    if len(kept) < len(parts):
        yield Note(f"--classes auto: {len(kept)} structure{' is' if len(kept) == 1 else 's are'} left.")
    return kept


def keep_classes(
    parts: Sequence[ClassPart], kept: Sequence[int], state: ClassesState, particles: ParticleTransforms
) -> list[ClassPart]:
    """Some of the classes, numbered anew, each with those particles of the others that it explains best.

    Args:
        parts: all classes.
        kept: numbers of those to keep, from 0.
        state: probability of each class for each particle.
        particles: CTF-multiplied transforms of all particles.
    """
    if len(kept) == len(parts):
        return list(parts)
    is_kept = torch.isin(state.class_of, torch.tensor(kept, device=state.class_of.device))
    nearest = state.of_classes(torch.tensor(kept, device=state.class_of.device)).class_of
    found = []
    for number, part in enumerate(parts[each] for each in kept):
        more = (~is_kept & (nearest == number)).nonzero().squeeze(1)
        whole = with_more_particles(part, more, state.maps[0].half_set[more], particles) if len(more) else part
        found.append(replace(whole, number=number + 1))
    return found


def refine_without_junk(
    part: ClassPart,
    particles: ParticleTransforms,
    is_junk: Bool[Tensor, " particles"] | None,
    checkpoint: Checkpointer,
) -> Generator[Event, None, ClassPart]:
    """The class with new half maps of those of its particles that are no junk, where some are.

    Args:
        part: the class.
        particles: CTF-multiplied transforms of all particles.
        is_junk: whether each particle is probably junk; None where that is not known.
        checkpoint: saves finished steps.
    """
    if is_junk is None:
        return part
    is_good = ~is_junk.to(part.rows.device)[part.rows]
    sizes = part.halves.half_set[is_good].bincount(minlength=3)[1:]
    if float(is_good.float().mean()) > 1 - _LEAST_JUNK or int(sizes.min()) < LEAST_PARTICLES_OF_CLASS:
        return part
    count = len(part.rows)
    yield Note(
        f"Class {part.number}: {count - int(is_good.sum())} of {count} particles are junk with a probability of "
        f"{JUNK_CUT:g} or more; its maps are made without them."
    )
    steps = _clean_halves(part, particles, is_good.nonzero().squeeze(1))
    halves = yield from checkpoint(f"class{part.number}_without_junk", steps)
    return replace(part, halves=halves, is_in_map=is_good)


def _clean_halves(
    part: ClassPart, particles: ParticleTransforms, good: Int[Tensor, " good"]
) -> Generator[Event, None, RefinementState]:
    """Half maps of some particles of a class, and poses of all of them against these maps, searched for again."""
    state = yield from refine_locally(part.halves, particles, part, good, 1)
    # Another frame of the grid of poses than that of the search before.
    state = replace(state, iteration=state.iteration + 1)
    refinement = part.settings.refinement
    return (yield from with_realigned_worst(state, particles.rows(part.rows), refinement, seed=part.settings.seed))
