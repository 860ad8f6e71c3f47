"""Particles with poses and the maps that they are screened against; synthetic outliers made of the particles."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Progress
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.particle_features import (
    LabelledFeatures,
    ParticleFeatures,
    ReferenceProjections,
    measure_particle_features,
)
from cryoeq.evaluation.particle_scorers import ParticleScorer, roc_auc
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps
from cryoeq.simulation.junk import KINDS, choose_outliers, overlap_pairs, scramble_phases

_BATCH = 512
_NOISE_SAMPLE = 512
_OUTLIER_FRACTION, _MAX_EXAMPLES, _EXAMPLE_SETS = 0.4, 2000, 3
_UNLABELLED = 0.3  # fraction with the highest errors, no examples of good particles: a stack may hold that much junk


@dataclass(frozen=True)
class ScreenedParticles:
    """Particles with poses, and the projections that they are compared with.

    Args:
        dataset: images of the particles.
        poses: poses of all particles.
        map_index: index of the reference for each particle: the map of the half set that it is not in.
        references: projections of the maps, on the compute device; all else is on the CPU.
    """

    dataset: ParticleDataset
    poses: Poses
    map_index: Int[Tensor, " particles"]
    references: ReferenceProjections

    @classmethod
    def from_maps(
        cls,
        dataset: ParticleDataset,
        poses: Poses,
        half_set: Int[Tensor, " particles"] | None,
        maps: HalfMaps | Volume,
        device: torch.device | None = None,
    ) -> "ScreenedParticles":
        """Particles of one half set against the map of the other, up to where the half maps' FSC falls to 0.5.

        Args:
            dataset: images of the particles.
            poses: poses of all particles.
            half_set: 1 or 2 for each particle; None where there is one map.
            maps: both half maps; or one map of all particles, compared up to a quarter of the box in Angstrom.
            device: compute device, the CPU by default.
        """
        side = dataset.box_size_px * dataset.pixel_size_angstrom
        device = device or torch.device("cpu")
        sample = dataset.batch(torch.arange(min(_NOISE_SAMPLE, len(dataset)))).images.to(device)
        if isinstance(maps, Volume) or half_set is None:
            chosen: tuple[Volume, ...] = (maps,) if isinstance(maps, Volume) else (maps.first,)
            map_index, limit = torch.zeros(len(poses), dtype=torch.long), side / 4
        else:
            chosen, map_index = (maps.second, maps.first), half_set.cpu() - 1
            resolution = compare_maps(maps.first, maps.second).resolutions_angstrom(TRUTH_THRESHOLD)["unmasked"]
            limit = side if resolution is None else resolution
        there = tuple(volume.to(device) for volume in chosen)
        return cls(dataset, poses, map_index, ReferenceProjections.from_maps(there, sample, side, limit))

    def measure_features(self) -> Generator[Event, None, ParticleFeatures]:
        """Features of all particles, batch by batch."""
        batches = []
        for batch in self.dataset.batches(_BATCH):
            batches.append(self._measure(batch, self.poses[batch.indices], self.map_index[batch.indices]))
            yield Progress("particle features", int(batch.indices[-1]) + 1, len(self.dataset))
        return ParticleFeatures(
            torch.cat([features.rows for features in batches]),
            torch.cat([features.errors for features in batches]),
            torch.cat([features.features for features in batches]),
            torch.cat([features.directions for features in batches]),
        )

    def _measure(self, batch: ParticleBatch, poses: Poses, map_index: Int[Tensor, " batch"]) -> ParticleFeatures:
        """Features of some particles, at poses of their own."""
        device = self.references.precision.device
        there, poses = batch.to(device), poses.to(device)
        transforms = self.references.transform(there, poses)
        found = measure_particle_features(self.references, transforms, poses, there.indices, map_index.to(device))
        return ParticleFeatures(batch.indices, found.errors.cpu(), found.features.cpu(), found.directions.cpu())

    def training_examples(self, features: ParticleFeatures, generator: torch.Generator) -> list[LabelledFeatures]:
        """Three sets of examples to train a scorer on, each with synthetic outliers of its own.

        Args:
            features: features of all particles; those with the highest errors are no examples of good particles.
            generator: random number generator.
        """
        is_unlabelled = features.errors > features.errors.quantile(1 - _UNLABELLED)
        return [self.with_synthetic_outliers(is_unlabelled, generator) for _ in range(_EXAMPLE_SETS)]

    def with_synthetic_outliers(
        self, is_unlabelled: Bool[Tensor, " particles"], generator: torch.Generator
    ) -> LabelledFeatures:
        """Features of up to 2,000 particles, two in five of them corrupted in one of three ways.

        Corrupted images get the pose with the highest correlation, as a search would give them.

        Args:
            is_unlabelled: particles that are no examples of good ones where they are not corrupted.
            generator: random number generator.
        """
        rows = torch.randperm(len(self.dataset), generator=generator)[:_MAX_EXAMPLES].sort().values
        batch, assigned, map_index = self.dataset.batch(rows), self.poses[rows], self.map_index[rows]
        kinds = choose_outliers(len(rows), _OUTLIER_FRACTION, generator)
        noise, overlap, wrong_pose = ((kinds == number).nonzero().squeeze(1) for number in range(len(KINDS)))
        partners = torch.randperm(len(rows), generator=generator)
        images = batch.images.index_put((noise,), scramble_phases(batch.images[noise], generator))
        pairs = overlap_pairs(batch.images[overlap], batch.images[partners[overlap]], generator)
        images = images.index_put((overlap,), pairs)
        rotations = assigned.rotations.index_put((wrong_pose,), assigned.rotations[partners[wrong_pose]])
        changed = torch.cat([noise, overlap])
        corrupted = replace(
            batch, indices=rows[changed], images=images[changed], ctf=None if batch.ctf is None else batch.ctf[changed]
        )
        device = self.references.precision.device
        transforms = self.references.transform(corrupted.to(device), assigned[changed].to(device))
        best = self.references.best_rotations(transforms, map_index[changed].to(device)).to(rotations)
        poses = Poses(rotations.index_put((changed,), best), assigned.shifts_angstrom)
        features = self._measure(replace(batch, images=images), poses, map_index)
        is_outlier = kinds >= 0
        return LabelledFeatures(features, is_outlier.to(features.errors), is_outlier | ~is_unlabelled[rows])

    def cross_validate(self, scorer: ParticleScorer, generator: torch.Generator) -> float:
        """ROC AUC of a scorer for synthetic outliers that it was not trained on.

        Args:
            scorer: trained on examples of these particles, or on none.
            generator: random number generator.
        """
        example = self.with_synthetic_outliers(torch.zeros(len(self.dataset), dtype=torch.bool), generator)
        return roc_auc(scorer.score(example.features), example.is_outlier > 0)
