"""Evidence on the particles of a run, junk made of its own particles, and the scorers that learn from it."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Progress
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.particle_features import (
    LabelledFeatures,
    ParticleFeatures,
    ReferenceProjections,
    measure_particle_features,
)
from cryoeq.evaluation.particle_scorers import ErrorScorer, KnnScorer, ParticleScorer, area_under_curve, standard_scale
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps
from cryoeq.screening.sheaf_training import train_sheaf_scorer
from cryoeq.simulation.junk import KINDS, draw_kinds, overlap_pairs, scramble_phases

ScorerKind = Literal["error", "knn", "graph", "sheaf"]
LARGEST_BOX_PX = 64
_BATCH = 512
_SAMPLE = 512
_COPIES, _SPOILT, _MOST_ROWS = 3, 0.4, 2000
_DOUBTED = 0.3  # of the particles, those of the highest error, are not taught as good: a stack may hold so much junk
_EPOCHS = 40


@dataclass(frozen=True)
class ScreenedParticles:
    """Particles with poses, and projections of maps to compare them with.

    Args:
        dataset: the images.
        poses: of all of them.
        which: of the references' maps each is compared with: that of the half that it is not in.
        references: the projections.
    """

    dataset: ParticleDataset
    poses: Poses
    which: Int[Tensor, " particles"]
    references: ReferenceProjections

    @classmethod
    def of(
        cls,
        dataset: ParticleDataset,
        poses: Poses,
        half_set: Int[Tensor, " particles"] | None,
        maps: HalfMaps | Volume,
    ) -> "ScreenedParticles":
        """Compare particles with the other half's map, up to where the half maps agree by 0.5.

        Args:
            dataset: the images.
            poses: of all of them.
            half_set: 1 or 2 each; None for one map.
            maps: of the two halves, or one map of all, of which a quarter of the box is the finest detail compared.
        """
        side = dataset.box_size_px * dataset.pixel_size_angstrom
        sample = dataset.batch(torch.arange(min(_SAMPLE, len(dataset)))).images
        if isinstance(maps, Volume) or half_set is None:
            chosen: tuple[Volume, ...] = (maps,) if isinstance(maps, Volume) else (maps.first,)
            which, limit = torch.zeros(len(poses), dtype=torch.long), side / 4
        else:
            chosen, which = (maps.second, maps.first), half_set.cpu() - 1
            agreed = compare_maps(maps.first, maps.second).resolutions_angstrom(TRUTH_THRESHOLD)["unmasked"]
            limit = side if agreed is None else agreed
        return cls(dataset, poses, which, ReferenceProjections.of(chosen, sample, side, limit))

    def weigh(self) -> Generator[Event, None, ParticleFeatures]:
        """Evidence on all particles, batch by batch."""
        parts = []
        for batch in self.dataset.batches(_BATCH):
            own, which = self.poses[batch.indices], self.which[batch.indices]
            images = self.references.match(batch, own)
            parts.append(measure_particle_features(self.references, images, own, batch.indices, which))
            yield Progress("comparing particles", int(batch.indices[-1]) + 1, len(self.dataset))
        return ParticleFeatures(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.errors for part in parts]),
            torch.cat([part.features for part in parts]),
            torch.cat([part.directions for part in parts]),
        )

    def with_made_junk(self, is_doubted: Bool[Tensor, " particles"], generator: torch.Generator) -> LabelledFeatures:
        """Evidence on the particles, or 2,000 of them, with two in five spoilt in one of three ways.

        As a search would, junk images are given the pose in which they agree best.

        Args:
            is_doubted: particles that are not taught as good ones where they are not spoilt.
            generator: source of chance.
        """
        rows = torch.randperm(len(self.dataset), generator=generator)[:_MOST_ROWS].sort().values
        batch, own, which = self.dataset.batch(rows), self.poses[rows], self.which[rows]
        kinds = draw_kinds(len(rows), _SPOILT, generator)
        noise, overlap, wrong = ((kinds == number).nonzero().squeeze(1) for number in range(len(KINDS)))
        others = torch.randperm(len(rows), generator=generator)
        images = batch.images.index_put((noise,), scramble_phases(batch.images[noise], generator))
        paired = overlap_pairs(batch.images[overlap], batch.images[others[overlap]], generator)
        images = images.index_put((overlap,), paired)
        rotations = own.rotations.index_put((wrong,), own.rotations[others[wrong]])
        found = torch.cat([noise, overlap])
        spoilt = replace(
            batch, indices=rows[found], images=images[found], ctf=None if batch.ctf is None else batch.ctf[found]
        )
        matched = self.references.match(spoilt, own[found])
        best = self.references.best_rotations(matched, which[found]).to(rotations)
        poses = Poses(rotations.index_put((found,), best), own.shifts_angstrom)
        batch = replace(batch, images=images)
        seen = self.references.match(batch, poses)
        evidence = measure_particle_features(self.references, seen, poses, rows, which)
        is_spoilt = kinds >= 0
        return LabelledFeatures(evidence, is_spoilt.to(evidence.errors), is_spoilt | ~is_doubted[rows])

    def try_scorer(self, scorer: ParticleScorer, generator: torch.Generator) -> float:
        """Area under the ROC curve for junk made of these particles, which the scorer has not seen.

        Args:
            scorer: the scorer.
            generator: draws the junk.
        """
        example = self.with_made_junk(torch.zeros(len(self.dataset), dtype=torch.bool), generator)
        return area_under_curve(scorer.score(example.evidence), example.is_junk > 0)

    def make_scorer(self, kind: ScorerKind, evidence: ParticleFeatures, generator: torch.Generator) -> ParticleScorer:
        """A scorer, taught by junk made of these particles where it learns.

        Args:
            kind: which.
            evidence: on all of these particles.
            generator: draws the junk, and the first weights.
        """
        if kind == "error":
            return ErrorScorer()
        is_doubted = evidence.errors > evidence.errors.quantile(1 - _DOUBTED)
        examples = [self.with_made_junk(is_doubted, generator) for _ in range(_COPIES)]
        if kind == "knn":
            return KnnScorer.fit(examples)
        location, spread = standard_scale(torch.cat([example.evidence.features for example in examples]))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return train_sheaf_scorer(examples, location, spread, epochs=_EPOCHS, seed=seed, has_sheaf=kind == "sheaf")
