"""Probability that each particle of a search is junk: decoys, posed as the particles were, and features of both."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.junk_amplitudes import measure_amplitudes
from cryoeq.evaluation.junk_comparison import Comparison, PosedRows, compare_with, is_comparable
from cryoeq.evaluation.junk_decoys import Decoys, draw_decoys
from cryoeq.evaluation.junk_features import fit_images, fit_particles
from cryoeq.evaluation.junk_probability import MAX_SHARE, MIN_AUC, DecoyFit, JunkEstimate, estimate_junk
from cryoeq.evaluation.unexplained import JunkProbabilities
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.known_poses import ReconstructedMaps
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, transforms_of_matched
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import RefinementSettings
from cryoeq.runtime.random_streams import Stream, stream_generator

STAGE = "looking for junk"
_MIN_PARTICLES = 200  # of fewer, shares and amplitudes are chance
_NOISE_SAMPLE = 512
_UNKNOWN = 0.5  # probability of what cannot be judged
_NUMBER = 1  # of the generator: screening draws from the same stream


def with_junk_probability(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    maps: ReconstructedMaps,
    posed: PosedParticles,
    device: torch.device,
) -> Generator[Event, None, PosedParticles]:
    """The particles of a search with their probability of being junk, where it can be told; every process takes part.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses were inferred.
        maps: maps made from the particles.
        posed: particles with assigned poses.
        device: where to pose decoys.
    """
    if posed.half_poses is None or posed.half_set is None or maps.halves is None:
        return posed
    n = dataset.box_size_px
    poses = PoseSet.from_angstrom(posed.half_poses, dataset.pixel_size_angstrom, n)
    rows = PosedRows(poses, posed.half_set, torch.zeros_like(posed.half_set))
    return (yield from with_junk_of_classes(config, dataset, [maps.halves], rows, posed, device))


def with_junk_of_classes(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    classes: Sequence[HalfMaps],
    rows: PosedRows,
    posed: PosedParticles,
    device: torch.device,
) -> Generator[Event, None, PosedParticles]:
    """The particles of several classes with their probability of being junk, where it can be told.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses were inferred.
        classes: unfiltered half maps of each class.
        rows: class and pose of each particle.
        posed: the particles.
        device: where to pose decoys.
    """
    yield Progress(STAGE, 0, 1)
    found = judge_particles(config, dataset, classes, rows, device)
    yield Progress(STAGE, 1, 1)
    if isinstance(found, str):
        yield Note(f"Junk: no probabilities, since {found}.")
        return posed
    unclear = [number for number, halves in enumerate(classes, 1) if not is_comparable(halves, dataset.box_size_px)]
    if unclear:
        yield Note(
            f"Junk: the half maps of class {', '.join(map(str, unclear))} agree at too few shells to judge its "
            f"particles: their probability is set to {_UNKNOWN:g}."
        )
    broken = float(found.probability.broken.mean())
    metrics = replace(posed.metrics, junk_share=found.share, broken_share=broken, junk_auc=found.decoy_auc)
    return replace(posed, junk=found.probability, metrics=metrics)


def judge_particles(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    classes: Sequence[HalfMaps],
    posed: PosedRows,
    device: torch.device,
) -> JunkEstimate | str:
    """Probability that each particle is junk, or the reason why it cannot be told, a clause.

    Particles of a class whose half maps agree at too few shells are as likely junk as not, and tell nothing of others.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses were inferred.
        classes: unfiltered half maps of each class, at the box of the dataset or a larger one.
        posed: class of each particle, and its pose against the map of its own half set.
        device: where to pose decoys.
    """
    is_clear = torch.tensor([is_comparable(halves, dataset.box_size_px) for halves in classes])
    if bool(is_clear.all()) or not bool(is_clear.any()):
        return _judge_comparable(config, dataset, classes, posed, device)
    rows, numbers = is_clear[posed.class_index].nonzero().squeeze(1), is_clear.cumsum(0) - 1
    clear = [halves for halves, is_one in zip(classes, is_clear.tolist(), strict=True) if is_one]
    there = posed.rows(rows)
    there = replace(there, class_index=numbers[there.class_index])
    found = _judge_comparable(config, dataset.rows(rows), clear, there, device)
    if isinstance(found, str):
        return found
    unknown, judged = torch.full((len(dataset),), _UNKNOWN), found.probability
    any_kind, broken = (unknown.index_copy(0, rows, values) for values in (judged.any_kind, judged.broken))
    return replace(found, probability=JunkProbabilities(any_kind, broken))


def _judge_comparable(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    classes: Sequence[HalfMaps],
    posed: PosedRows,
    device: torch.device,
) -> JunkEstimate | str:
    """The same, of particles whose classes can all be compared with."""
    if len(dataset) < _MIN_PARTICLES:
        return f"there are fewer than {_MIN_PARTICLES} particles"
    sample = torch.linspace(0, len(dataset) - 1, min(_NOISE_SAMPLE, len(dataset)), dtype=torch.float64).round().long()
    comparison = compare_with(dataset, classes, posed, sample)
    if comparison is None:
        return "the half maps agree at too few shells"
    fit = fit_particles(comparison, dataset, posed)
    amplitudes = measure_amplitudes(fit, posed.class_index, len(classes))
    generator = stream_generator(config.seed, Stream.JUNK, _NUMBER)
    decoys = draw_decoys(comparison, dataset.table.ctf, posed, amplitudes, generator)
    ctf = None if dataset.table.ctf is None else dataset.table.ctf[decoys.source]
    poses = _pose_decoys(comparison, decoys, ctf, _settings(config, dataset, comparison), generator, device)
    examples = DecoyFit(fit_images(comparison, decoys.images, poses), poses.class_index, decoys.kind)
    estimate = estimate_junk(fit, posed.class_index, examples, amplitudes)
    if estimate.decoy_auc < MIN_AUC:
        return f"noise hides it (area under the ROC curve of simulated junk {estimate.decoy_auc:.2f})"
    if estimate.share > MAX_SHARE:
        return f"{estimate.share:.0%} of the particles look like it, too many to compare them with the others"
    return estimate


def _settings(config: ReconstructConfig, dataset: ParticleDataset, comparison: Comparison) -> RefinementSettings:
    """Settings of the search, in the box of the comparison."""
    settings, box = build_ab_initio_settings(config, dataset).refinement, comparison.plane.box_size_px
    return replace(
        settings,
        shift_sigma_px=settings.shift_sigma_px * box / dataset.box_size_px,
        max_exhaustive_shell=min(settings.max_exhaustive_shell, comparison.last_shell),
    )


def _pose_decoys(
    comparison: Comparison,
    decoys: Decoys,
    ctf: CtfParameters | None,
    settings: RefinementSettings,
    generator: torch.Generator,
    device: torch.device,
) -> PosedRows:
    """Poses of decoys against the map of their half set and class, as a search finds them.

    A search gives each particle several grids of poses, one an iteration. Decoys get one, and every other of them the
    pose that it was made at as well: so about as many miss the best pose as with two grids.
    """
    plane, there = HalfPlane.up_to(comparison.plane.box_size_px, comparison.last_shell + 0.5, device), decoys.posed
    images = decoys.images.each(lambda values: values.to(device))
    particles = transforms_of_matched(
        images.ctf_multiplied,
        images.ctf_squared,
        None if ctf is None else ctf.to(device),
        plane,
        comparison.pixel_size_angstrom,
    )
    precision = comparison.noise.to(device).reciprocal()[plane.shells]
    found, order = [], []
    for number, reference in enumerate(comparison.references):
        for half, volume in enumerate(reference.volumes, 1):
            rows = ((there.class_index == number) & (there.half_set == half)).nonzero().squeeze(1)
            if not len(rows):
                continue
            prepared = Reference.build(volume.to(device), precision)
            here = there.poses.rows(rows).each(lambda values: values.float().to(device))
            found.append(_best_poses(particles, prepared, rows.to(device), here, settings, generator))
            order.append(rows)
    poses = PoseSet.cat(found).each(torch.Tensor.cpu).rows(torch.cat(order).argsort())
    return replace(there, poses=poses)


def _best_poses(
    particles: ParticleTransforms,
    reference: Reference,
    rows: Int[Tensor, " rows"],
    known: PoseSet,
    settings: RefinementSettings,
    generator: torch.Generator,
) -> PoseSet:
    """The poses that a search finds, or for particles of even number known ones where they are more likely; refined."""
    box, sigma_px = particles.plane.box_size_px, settings.shift_sigma_px
    coarse = particles.within(min(COARSE_SHELL, settings.max_exhaustive_shell), box)
    searched = search_poses_exhaustively(particles, rows, reference, settings, generator).poses
    nearby = refine_poses(coarse, reference, searched, shift_sigma_px=sigma_px, rows=rows).poses
    first, second = (
        refine_poses(particles, reference, poses, shift_sigma_px=sigma_px, rows=rows) for poses in (nearby, known)
    )
    better = ((second.log_likelihood > first.log_likelihood) & (rows % 2 == 0)).nonzero().squeeze(1)
    return first.with_rows(better, second.rows(better)).poses
