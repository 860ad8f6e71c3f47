"""Laws of every particle scorer; a new one is one entry of the list."""

import pytest
import torch

from cryoeq.evaluation.particle_features import LabelledFeatures, ParticleFeatures
from cryoeq.evaluation.particle_scorers import (
    ErrorScorer,
    KnnScorer,
    ParticleScorer,
    area_under_curve,
    standard_scale,
    z_scores,
)
from cryoeq.geometry.so3 import random_rotations
from cryoeq.screening.sheaf_training import train_sheaf_scorer

COUNT, FIGURES = 60, 4
NAMES = ["error", "knn", "graph", "sheaf"]


def labelled(seed: int) -> LabelledFeatures:
    """Particles a third of which are junk: their errors are higher, and their other figures lower."""
    generator = torch.Generator().manual_seed(seed)
    is_junk = (torch.arange(COUNT) % 3 == 0).float()
    features = torch.randn(COUNT, FIGURES, generator=generator) - 2 * is_junk[:, None]
    errors = torch.rand(COUNT, generator=generator) + is_junk
    rows = torch.arange(COUNT) + COUNT * seed
    evidence = ParticleFeatures(rows, errors, features, random_rotations(COUNT, generator)[:, 2])
    return LabelledFeatures(evidence, is_junk, torch.ones(COUNT, dtype=torch.bool))


@pytest.fixture(scope="module")
def scorers() -> dict[str, ParticleScorer]:
    examples = [labelled(1), labelled(2)]
    scale = standard_scale(torch.cat([example.evidence.features for example in examples]))
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
    evidence = labelled(3).evidence
    order = torch.randperm(COUNT, generator=generator)
    scores = scorers[name].score(evidence)
    assert scores.std() > 0
    torch.testing.assert_close(scorers[name].score(evidence[order]), scores[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_for_one_particle_and_for_one_like_no_other(
    name: str, scorers: dict[str, ParticleScorer]
) -> None:
    evidence = labelled(4).evidence
    alone = scorers[name].score(evidence[torch.tensor([5])])
    assert alone.shape == (1,)
    assert alone.isfinite().all()
    features = evidence.features.index_put((torch.tensor([7]),), torch.full((FIGURES,), 1e6))
    strange = ParticleFeatures(evidence.rows, evidence.errors, features, evidence.directions)
    assert scorers[name].score(strange).isfinite().all()
    same = ParticleFeatures(evidence.rows, evidence.errors, evidence.features, evidence.directions[:1].expand(COUNT, 3))
    assert scorers[name].score(same).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_junk_that_differs_scores_higher(name: str, scorers: dict[str, ParticleScorer]) -> None:
    example = labelled(5)
    assert area_under_curve(scorers[name].score(example.evidence), example.is_junk > 0) > 0.85


def test_a_remembered_particle_does_not_count_for_itself() -> None:
    example = labelled(1)
    scorer = KnnScorer.fit([example], 1)
    changed = KnnScorer(scorer.features, 1 - scorer.is_junk, scorer.rows, scorer.location, scorer.spread, 1)
    own = scorer.score(example.evidence) - 1e-3 * example.evidence.errors
    assert not torch.equal(own.round(), example.is_junk)
    torch.testing.assert_close(changed.score(example.evidence) + scorer.score(example.evidence),
                               1 + 2e-3 * example.evidence.errors)  # fmt: skip


def test_z_scores_keep_the_order_and_nothing_else(generator: torch.Generator) -> None:
    scores = torch.randn(101, generator=generator)
    z = z_scores(scores)
    assert torch.equal(z.argsort(), scores.argsort())
    assert float(z.median()) == 0
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(z_scores(scores.exp()), z)
    assert (z_scores(torch.ones(5)) == 0).all()


def test_the_area_under_the_curve_counts_pairs_and_halves_ties() -> None:
    is_junk = torch.tensor([True, False, True, False])
    assert area_under_curve(torch.tensor([2.0, 1.0, 4.0, 3.0]), is_junk) == 0.75
    assert area_under_curve(torch.tensor([2.0, 2.0, 2.0, 2.0]), is_junk) == 0.5
