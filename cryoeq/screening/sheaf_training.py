"""Training of the sheaf network on particles some of which were replaced by synthetic outliers."""

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
    location: Float[Tensor, " features"],
    scale: Float[Tensor, " features"],
    *,
    epochs: int,
    seed: int,
    has_sheaf: bool = True,
) -> SheafScorer:
    """Fit a network to labelled graphs, one optimizer step for each graph in every epoch.

    Args:
        examples: labelled sets of particles, a graph each.
        location: median of each feature, subtracted.
        scale: robust standard deviation of each feature, divided by.
        epochs: passes over the examples.
        seed: random seed of the initial weights.
        has_sheaf: False trains the baseline without a sheaf.
    """
    with torch.random.fork_rng(devices=[]):  # layers initialise their weights from the global generator
        torch.manual_seed(seed)
        network = SheafNetwork(len(location))
    scorer = SheafScorer(network, location, scale, has_sheaf)
    graphs = [scorer.graph(example.features) for example in examples]
    optimizer = torch.optim.Adam(network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(epochs):
        for graph, example in zip(graphs, examples, strict=True):
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(
                network(graph)[example.is_labelled], example.is_outlier[example.is_labelled]
            )
            loss.backward()
            optimizer.step()
    return scorer
