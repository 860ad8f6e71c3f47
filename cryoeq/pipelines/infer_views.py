"""``cryoeq infer`` by view encoders: poses with a calibrated confidence, and what becomes of particles that lack it.

Each new particle is put into one of two half sets at random, and posed by the encoder and the half map of that half
set: maps that are made of both are as independent as those of the run. Images are read batch by batch and not kept; the
noise is that of a sample of the new particles. Particles of low confidence are searched over all poses; the junk of the
run's own kinds is told at the end, by the map of the other half set.

Confidence says how likely the pose of a particle is right, if it is a particle of the run's molecule. Whether the set
is one of these, the fit tells: another molecule and junk have a lower one, whatever their confidence.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.config.choices import InferencePrecision
from cryoeq.config.infer import InferConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.half_sets import split_half_sets
from cryoeq.data.prefetch import read_batches
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.cryosparc import CS_SUFFIX, write_cs
from cryoeq.io.labels import CLASS_NUMBER, JUNK_PROBABILITY, MAX_PROBABILITY
from cryoeq.io.particles import ParticleStack, write_particle_star
from cryoeq.io.text import write_json
from cryoeq.outputs.inferred_poses_plot import InferredSet, plot_inferred_poses
from cryoeq.physics.ctf import matched_filter
from cryoeq.pipelines.infer_junk import junk_of_new_particles
from cryoeq.pipelines.infer_precision import in_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, transforms_of_matched
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.views.encoder import shared_precision
from cryoeq.training.views.posing import InferredPoses, ViewPoser
from cryoeq.training.views.stored_views import StoredHalf, StoredViews

STAGE = "encoder inference"
_SAMPLE = 512  # particles from which the noise is estimated
_HALVES_SEED = 0
_LOW_FIT = 2.0  # standard deviations below the usual fit
_CHANCE, _STRANGE = 0.05, 0.25  # share of particles of so low a fit: by chance, and from which a set is another's
_UNSURE = 0.8  # of the run's mean confidence, below which a set is another's
_FEWEST_OF_MICROGRAPH = 5


@dataclass(frozen=True)
class NewPoses(ParticleRows):
    """Poses of new particles.

    Args:
        poses: in pixels of the box where they were inferred.
        confidence: probability that a pose is right.
        fit: log-likelihood, in standard deviations from that of a right pose.
        is_unusual: whether the fit is lower than that of the run's own particles.
        is_searched: whether the pose is one of the search.
        was_doubtful: whether the encoder's pose was of low confidence.
        class_index: class, from 0.
    """

    poses: PoseSet
    confidence: Float[Tensor, " particles"]
    fit: Float[Tensor, " particles"]
    is_unusual: Bool[Tensor, " particles"]
    is_searched: Bool[Tensor, " particles"]
    was_doubtful: Bool[Tensor, " particles"]
    class_index: Int[Tensor, " particles"]


@dataclass(frozen=True)
class ViewPosing:
    """Poses batches of new particles.

    Args:
        stored: encoders of the run.
        posers: of each class, by half set.
        refines: whether poses are refined.
        min_confidence: probability below which a particle is searched, where poses are refined.
    """

    stored: StoredViews
    posers: tuple[Mapping[int, ViewPoser], ...]
    refines: bool
    min_confidence: float

    @classmethod
    def like(
        cls,
        sample: ParticleTransforms,
        stored: StoredViews,
        *,
        refines: bool,
        min_confidence: float,
        precision: InferencePrecision = "fp32",
    ) -> "ViewPosing":
        """Posing of particles like those of a sample, from which the noise is estimated.

        Args:
            sample: some of the new particles.
            stored: encoders of the run.
            refines: whether poses are refined.
            min_confidence: probability below which a particle is searched.
            precision: of networks.

        Raises:
            ConfigError: there is no network, or it cannot run in that precision.
        """
        precisions = _precisions(sample, stored)
        posers = tuple(
            {
                half: in_precision(
                    each.halves[half - 1].poser(sample, each.settings, precisions[half]), precision, sample
                )
                for half in (1, 2)
            }
            for each in stored.classes
        )
        return cls(stored, posers, refines, min_confidence)

    def pose(self, particles: ParticleTransforms, half_set: Int[Tensor, " particles"]) -> NewPoses:
        """Poses of particles, each by the encoder of its half set, of the class that explains it best.

        Args:
            particles: the particles.
            half_set: 1 or 2 for each.
        """
        found, order = [], []
        for half in (1, 2):
            rows = (half_set == half).nonzero().squeeze(1)
            if not len(rows):
                continue
            found.append(self._pose_half(particles.rows(rows), half))
            order.append(rows)
        return NewPoses.cat(found).rows(torch.cat(order).argsort())

    def _pose_half(self, particles: ParticleTransforms, half: int) -> NewPoses:
        found, scores = [], []
        for number, of_class in enumerate(self.posers):
            stored = self.stored.classes[number].halves[half - 1]
            there, log_likelihood = self._pose_class(particles, of_class[half], stored, number)
            found.append(there)
            scores.append(log_likelihood)
        best, probability = found[0], torch.stack(scores).softmax(0)
        chosen = probability.argmax(0)
        for number, there in enumerate(found[1:], 1):
            rows = (chosen == number).nonzero().squeeze(1)
            best = best.with_rows(rows, there.rows(rows))
        # In the frame of another class the pose is wrong.
        return replace(best, confidence=best.confidence * probability.amax(0))

    def _pose_class(
        self, particles: ParticleTransforms, poser: ViewPoser, stored: StoredHalf, number: int
    ) -> tuple[NewPoses, Float[Tensor, " particles"]]:
        calibration = stored.refined if self.refines else stored.bare
        inferred = poser.pose(particles, refines=self.refines)
        doubtful = calibration.probability(inferred) < self.min_confidence
        if self.refines and bool(doubtful.any()):
            rows = doubtful.nonzero().squeeze(1)
            inferred = inferred.with_rows(rows, poser.search(particles.rows(rows), inferred.rows(rows)))
        poses = poser.refine_to_end(particles, inferred.poses) if self.refines else inferred.poses
        found = NewPoses(
            poses,
            calibration.probability(inferred),
            inferred.fit,
            self._is_unusual(inferred, stored),
            inferred.is_searched,
            doubtful,
            torch.full_like(doubtful, number, dtype=torch.long),
        )
        return found, inferred.log_likelihood

    def _is_unusual(self, inferred: InferredPoses, stored: StoredHalf) -> Bool[Tensor, " particles"]:
        mean, deviation = stored.usual_fit if self.refines else stored.usual_bare_fit
        return inferred.fit < mean - _LOW_FIT * deviation


def _precisions(sample: ParticleTransforms, stored: StoredViews) -> Mapping[int, Float[Tensor, " points"] | None]:
    """Noise precision that the classes share, by half set; None where there is one class."""
    if len(stored.classes) == 1:
        return {1: None, 2: None}
    settings = stored.classes[0].settings
    return {
        half: shared_precision([each.halves[half - 1].volume for each in stored.classes], sample, settings)
        for half in (1, 2)
    }


def transforms_of(batch: ParticleBatch, pixel_size_angstrom: float) -> ParticleTransforms:
    """Transforms of particles, all shells below Nyquist.

    Args:
        batch: the particles.
        pixel_size_angstrom: pixel size of their images.
    """
    box = batch.images.shape[-1]
    plane = HalfPlane.up_to(box, box / 2 - 1, batch.images.device)
    coefficients = plane.transform(batch.images)
    if batch.ctf is None:
        ones = torch.ones(coefficients.shape, device=coefficients.device)
        return transforms_of_matched(coefficients, ones, None, plane, pixel_size_angstrom)
    factor, squared = matched_filter(batch.ctf, plane.frequencies_per_angstrom(pixel_size_angstrom))
    return transforms_of_matched(coefficients * factor, squared, batch.ctf, plane, pixel_size_angstrom)


def infer_by_views(
    config: InferConfig, stack: ParticleStack, dataset: ParticleDataset, stored: StoredViews, device: torch.device
) -> Generator[Event, None, None]:
    """Pose all particles, write them, and report.

    Args:
        config: resolved settings of the command.
        stack: the new particles.
        dataset: the same at the box of the run.
        stored: encoders of the run.
        device: where to compute.

    Raises:
        ConfigError: the encoders cannot run in the precision.
        OutputError: a file cannot be written.
    """
    start_s = time.monotonic()
    rows = torch.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset)), dtype=torch.float64).round().long()
    sample = transforms_of(dataset.batch(rows).to(device), dataset.pixel_size_angstrom)
    posing = ViewPosing.like(
        sample, stored, refines=config.refine, min_confidence=config.min_confidence, precision=config.precision
    )
    half_set = split_half_sets(len(dataset), stream_generator(_HALVES_SEED, Stream.HALF_SETS))
    found = yield from _pose_batches(posing, dataset, half_set, config.batch_size, device)
    yield from (Note(text, "warning") for text in dataset.new_warnings())
    junk = None
    if config.refine:
        junk = yield from junk_of_new_particles(config.run, dataset, found.poses, half_set, found.class_index, device)
    seconds = time.monotonic() - start_s
    _write(config, stack, stored, found, half_set, junk)
    summary = _summary(found, junk, dataset, len(stored.classes)) | {
        "usual_confidence": usual_confidence(stored, refines=config.refine)
    }
    write_json(config.output.with_suffix(".json"), {**summary, "particles_per_second": len(dataset) / seconds})
    plot_inferred_poses(config.output.with_suffix(".png"), _inferred_set(found, dataset))
    yield from _warnings(summary, config)
    yield Report(f"{len(dataset)} particles posed", _rows(config, summary, len(dataset) / seconds))


def _pose_batches(
    posing: ViewPosing,
    dataset: ParticleDataset,
    half_set: Int[Tensor, " particles"],
    batch_size: int,
    device: torch.device,
) -> Generator[Event, None, NewPoses]:
    """Poses of all particles; only the table of them grows."""
    parts, done = list[NewPoses](), 0
    for batch in read_batches(dataset, batch_size, device):
        particles = transforms_of(batch, dataset.pixel_size_angstrom)
        parts.append(posing.pose(particles, half_set[batch.indices.cpu()].to(device)).each(torch.Tensor.cpu))
        done += len(batch)
        yield Progress(STAGE, done, len(dataset))
    return NewPoses.cat(parts)


def _write(
    config: InferConfig,
    stack: ParticleStack,
    stored: StoredViews,
    found: NewPoses,
    half_set: Int[Tensor, " particles"],
    junk: Float[Tensor, " particles"] | None,
) -> None:
    poses = found.poses.to_angstrom(stored.pixel_size_angstrom)
    several = len(stored.classes) > 1
    numbers = found.class_index + 1
    write_particle_star(
        config.output,
        stack.star,
        poses,
        half_set=half_set,
        confidence=found.confidence,
        junk_probability=junk,
        extra_columns={CLASS_NUMBER: numbers.numpy().astype(str)} if several else None,
        outdated=(JUNK_PROBABILITY, MAX_PROBABILITY),
    )
    if config.particles.suffix == CS_SUFFIX:
        write_cs(
            config.output.with_suffix(CS_SUFFIX),
            config.particles,
            poses,
            half_set=half_set,
            class_number=numbers if several else None,
        )


def _summary(
    found: NewPoses, junk: Float[Tensor, " particles"] | None, dataset: ParticleDataset, n_classes: int
) -> dict[str, Any]:
    """What the record of the call says of the set."""
    by_micrograph = _micrograph_fits(found, dataset)
    return {
        "particles": len(dataset),
        "median_confidence": float(found.confidence.median()),
        "expected_share_right": float(found.confidence.mean()),
        "share_searched_again": float(found.was_doubtful.float().mean()),
        "share_of_search_kept": float(found.is_searched.float().mean()),
        "median_fit": float(found.fit.median()),
        "share_unusual": float(found.is_unusual.float().mean()),
        "unusual_micrographs": None if by_micrograph is None else int((by_micrograph > _STRANGE).sum()),
        "micrographs": None if by_micrograph is None else len(by_micrograph),
        "junk_share": None if junk is None else float(junk.mean()),
        "class_sizes": found.class_index.bincount(minlength=n_classes).tolist(),
    }


def _micrograph_fits(found: NewPoses, dataset: ParticleDataset) -> Float[Tensor, " micrographs"] | None:
    """Share of particles of an unusual fit in each micrograph that has a few; None where none are named."""
    index = dataset.table.micrograph_index
    if index is None:
        return None
    count = index.bincount()
    unusual = index.bincount(found.is_unusual.float())
    enough = count >= _FEWEST_OF_MICROGRAPH
    return (unusual[enough] / count[enough]).float() if bool(enough.any()) else None


def _inferred_set(found: NewPoses, dataset: ParticleDataset) -> InferredSet:
    return InferredSet(
        confidence=found.confidence,
        directions=found.poses.rotations[:, 2],
        fit=found.fit,
        is_unusual=found.is_unusual,
        was_doubtful=found.was_doubtful,
        micrograph_index=dataset.table.micrograph_index,
    )


def usual_confidence(stored: StoredViews, *, refines: bool) -> float:
    """Mean confidence of the particles of the run.

    Args:
        stored: encoders of the run.
        refines: whether poses are refined.
    """
    halves = [half.usual_confidence[int(refines)] for each in stored.classes for half in each.halves]
    return sum(halves) / len(halves)


def _warnings(summary: Mapping[str, Any], config: InferConfig) -> Generator[Event, None, None]:
    """What the user has to know of the set before using its poses."""
    unusual, strange = summary["share_unusual"], summary["unusual_micrographs"]
    if unusual > _STRANGE:
        yield Note(
            f"{unusual:.0%} of the particles fit the map of {config.run} worse than its own particles do "
            f"({_CHANCE:.0%} by chance): they are of another molecule or conformation, or junk, or their pixel size or "
            "contrast is wrong. Do not trust their poses; look at some images, or reconstruct them on their own.",
            "warning",
        )
    elif summary["expected_share_right"] < _UNSURE * summary["usual_confidence"]:
        yield Note(
            f"The encoder is sure of fewer of these particles (mean confidence {summary['expected_share_right']:.2f}) "
            f"than of those of {config.run} ({summary['usual_confidence']:.2f}): they are of another molecule or "
            "conformation, junk, or noisier. Do not trust their poses before you have looked at some images.",
            "warning",
        )
    elif strange:
        yield Note(
            f"On {strange} of {summary['micrographs']} micrographs more than {_STRANGE:.0%} of the particles fit the "
            "map worse than its own particles do: see the picture beside the poses.",
            "warning",
        )


def _rows(config: InferConfig, summary: Mapping[str, Any], rate: float) -> dict[str, str]:
    rows = {
        "poses": str(config.output),
        "refined": "yes" if config.refine else "no",
        "particles per second": f"{rate:.0f}",
        "median confidence": f"{summary['median_confidence']:.2f}",
        "poses that are right (expected)": f"{summary['expected_share_right']:.0%}",
        "of a lower fit than the run's": f"{summary['share_unusual']:.0%}",
    }
    if config.refine:
        rows["searched again"] = f"{summary['share_searched_again']:.0%}"
    if summary["junk_share"] is not None:
        rows["junk, expected share"] = f"{summary['junk_share']:.0%}"
    if len(summary["class_sizes"]) > 1:
        rows["particles of each class"] = ", ".join(map(str, summary["class_sizes"]))
    return rows
