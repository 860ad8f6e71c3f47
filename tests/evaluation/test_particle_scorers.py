"""Ranks and what is made of them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, rankdata

from cryoeq.evaluation.particle_scorers import roc_auc, z_scores

SCORES = st.lists(st.sampled_from([-2.5, -1.0, 0.0, 0.125, 1.0, 3.0, 1e6]), min_size=2, max_size=40)


@given(SCORES)
def test_scores_become_normal_quantiles_of_their_ranks(scores: list[float]) -> None:
    expected = norm.ppf((rankdata(scores) - 0.5) / len(scores))
    np.testing.assert_allclose(z_scores(torch.tensor(scores, dtype=torch.float64)).numpy(), expected, atol=1e-12)


@given(SCORES, st.data())
def test_the_area_is_that_of_the_rank_sum_test(scores: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores) - 1))
    marked = torch.arange(len(scores)) < n
    expected = mannwhitneyu(scores[:n], scores[n:]).statistic / (n * (len(scores) - n))
    np.testing.assert_allclose(roc_auc(torch.tensor(scores), marked), expected, atol=1e-6)
