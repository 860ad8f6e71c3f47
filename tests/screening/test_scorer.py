"""Laws of every particle scorer; a new one is one entry in the list."""

import pytest
import torch
from torch import Tensor

from cryoeq.evaluation.particle_features import LabelledFeatures, ParticleFeatures
from cryoeq.evaluation.particle_scorers import (
    ErrorScorer,
    KnnScorer,
    ParticleScorer,
    robust_scale,
    roc_auc,
    z_scores,
)
from cryoeq.geometry.so3 import random_rotations
from cryoeq.screening.sheaf_training import train_sheaf_scorer

COUNT, FEATURES = 60, 4
NAMES = ["error", "knn", "graph", "sheaf"]


def labelled(seed: int) -> LabelledFeatures:
    """Particles a third of which are outliers: their errors are higher, and their other features lower."""
    generator = torch.Generator().manual_seed(seed)
    is_outlier = (torch.arange(COUNT) % 3 == 0).float()
    features = torch.randn(COUNT, FEATURES, generator=generator) - 2 * is_outlier[:, None]
    errors = torch.rand(COUNT, generator=generator) + is_outlier
    rows = torch.arange(COUNT) + COUNT * seed
    measured = ParticleFeatures(rows, errors, features, random_rotations(COUNT, generator)[:, 2])
    return LabelledFeatures(measured, is_outlier, torch.ones(COUNT, dtype=torch.bool))


def rows_of(features: ParticleFeatures, rows: Tensor) -> ParticleFeatures:
    return ParticleFeatures(
        features.rows[rows], features.errors[rows], features.features[rows], features.directions[rows]
    )


@pytest.fixture(scope="module")
def scorers() -> dict[str, ParticleScorer]:
    examples = [labelled(1), labelled(2)]
    scale = robust_scale(torch.cat([example.features.features for example in examples]))
    return {
        "error": ErrorScorer(),
        "knn": KnnScorer.fit(examples, 10),
        "graph": train_sheaf_scorer(examples, *scale, epochs=15, seed=0, has_sheaf=False),
        "sheaf": train_sheaf_scorer(examples, *scale, epochs=15, seed=0),
    }


@pytest.mark.parametrize("name", NAMES)
def test_scores_follow_the_order_of_the_particles(
    name: str, scorers: dict[str, ParticleScorer], generator: torch.Generator
) -> None:
    features = labelled(3).features
    order = torch.randperm(COUNT, generator=generator)
    scores = scorers[name].score(features)
    assert scores.std() > 0
    torch.testing.assert_close(scorers[name].score(rows_of(features, order)), scores[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_for_one_particle_and_for_one_like_no_other(
    name: str, scorers: dict[str, ParticleScorer]
) -> None:
    features = labelled(4).features
    alone = scorers[name].score(rows_of(features, torch.tensor([5])))
    assert alone.shape == (1,)
    assert alone.isfinite().all()
    changed = features.features.index_put((torch.tensor([7]),), torch.full((FEATURES,), 1e6))
    strange = ParticleFeatures(features.rows, features.errors, changed, features.directions)
    assert scorers[name].score(strange).isfinite().all()
    same = ParticleFeatures(features.rows, features.errors, features.features, features.directions[:1].expand(COUNT, 3))
    assert scorers[name].score(same).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_outliers_that_differ_score_higher(name: str, scorers: dict[str, ParticleScorer]) -> None:
    example = labelled(5)
    assert roc_auc(scorers[name].score(example.features), example.is_outlier > 0) > 0.85


def test_a_particle_is_not_its_own_neighbour() -> None:
    example = labelled(1)
    scorer = KnnScorer.fit([example], 1)
    changed = KnnScorer(scorer.features, 1 - scorer.is_outlier, scorer.rows, scorer.location, scorer.scale, 1)
    own = scorer.score(example.features) - 1e-3 * example.features.errors
    assert not torch.equal(own.round(), example.is_outlier)
    torch.testing.assert_close(changed.score(example.features) + scorer.score(example.features),
                               1 + 2e-3 * example.features.errors)  # fmt: skip


def test_z_scores_keep_the_order_and_nothing_else(generator: torch.Generator) -> None:
    scores = torch.randn(101, generator=generator)
    z = z_scores(scores)
    assert torch.equal(z.argsort(), scores.argsort())
    assert float(z.median()) == 0
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(z_scores(scores.exp()), z)
    assert (z_scores(torch.ones(5)) == 0).all()


def test_the_area_under_the_curve_counts_pairs_and_halves_ties() -> None:
    is_outlier = torch.tensor([True, False, True, False])
    assert roc_auc(torch.tensor([2.0, 1.0, 4.0, 3.0]), is_outlier) == 0.75
    assert roc_auc(torch.tensor([2.0, 2.0, 2.0, 2.0]), is_outlier) == 0.5
