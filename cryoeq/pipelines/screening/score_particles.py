"""Choice and training of the scorer that ``cryoeq screen`` was asked for."""

from typing import Literal

import torch

from cryoeq.evaluation.particle_features import ParticleFeatures
from cryoeq.evaluation.particle_scorers import ErrorScorer, KnnScorer, ParticleScorer, robust_scale
from cryoeq.evaluation.screened_particles import ScreenedParticles
from cryoeq.screening.sheaf_training import train_sheaf_scorer

ScorerKind = Literal["error", "knn", "graph", "sheaf"]
_EPOCHS = 40


def build_scorer(
    kind: ScorerKind, particles: ScreenedParticles, features: ParticleFeatures, generator: torch.Generator
) -> ParticleScorer:
    """A scorer; all but ``error`` are trained on synthetic outliers made of the particles.

    Args:
        kind: reconstruction error, nearest neighbours, or a network on the graph of views or on its sheaf.
        particles: the particles to score.
        features: features of all of them.
        generator: random number generator of the outliers and of the network's initial weights.
    """
    if kind == "error":
        return ErrorScorer()
    examples = particles.training_examples(features, generator)
    if kind == "knn":
        return KnnScorer.fit(examples)
    location, scale = robust_scale(torch.cat([example.features.features for example in examples]))
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return train_sheaf_scorer(examples, location, scale, epochs=_EPOCHS, seed=seed, has_sheaf=kind == "sheaf")
