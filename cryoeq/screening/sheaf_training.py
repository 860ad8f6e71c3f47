"""Training of the sheaf network on particles some of which were spoilt on purpose."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cryoeq.evaluation.particle_features import LabelledFeatures
from cryoeq.screening.sheaf_network import SheafNetwork, SheafScorer

_LEARNING_RATE, _WEIGHT_DECAY = 0.01, 1e-3


def train_sheaf_scorer(
    examples: Sequence[LabelledFeatures],
    location: Float[Tensor, " figures"],
    spread: Float[Tensor, " figures"],
    *,
    epochs: int,
    seed: int,
    has_sheaf: bool = True,
) -> SheafScorer:
    """Fit a network to labelled graphs, one step for each in every epoch.

    Args:
        examples: each a whole set of particles with labels.
        location: by which figures are standardised.
        spread: see there.
        epochs: passes over the examples.
        seed: of the first weights.
        has_sheaf: False trains the twin without a sheaf.
    """
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        network = SheafNetwork(len(location))
    scorer = SheafScorer(network, location, spread, has_sheaf)
    graphs = [scorer.graph(example.evidence) for example in examples]
    optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(epochs):
        for graph, example in zip(graphs, examples, strict=True):
            optimizer.zero_grad()
            kept = example.is_labelled
            loss = binary_cross_entropy_with_logits(network(graph)[kept], example.is_junk[kept])
            loss.backward()
            optimizer.step()
    return scorer
