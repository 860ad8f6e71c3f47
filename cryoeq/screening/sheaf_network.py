"""Outlier scores by a network on the persistent local homology sheaf of a graph of views.

The graph joins each particle to those seen from the most similar directions; its cliques are weighted by the angles
between them. In degree 1 the stalk of a particle has a bar for each additional group into which its neighbours fall.
Each feature enters a bar as the pairing of the bar's cycle with the differences of the feature along edges: how much
one group of neighbours differs from the other. Convolution and attention act on these. The score is a function of the
norms of the result, which do not depend on signs of bars, of the particle's own features and of their mean over its
neighbours. Own construction, on a reconstruction of Cesa and Behboodi 2023, arXiv 2311.10156.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

from cryoeq.evaluation.particle_features import ParticleFeatures
from cryoeq.screening.local_homology_sheaf import CellularSheaf
from cryoeq.screening.persistent_sheaf import PersistentSheaf, flag_weights
from cryoeq.screening.sheaf_layers import SheafAttention, SheafConvolution, stalk_norms
from cryoeq.screening.simplicial import clique_complex

_NEIGHBOURS = 6
_HORIZON_RAD = 1.01 * math.pi
_MAX_DEVIATIONS = 10  # standardised features are clipped here


@dataclass(frozen=True)
class ViewGraph:
    """Input of the network: features of particles on the graph of nearest views, and its sheaf.

    Args:
        features: standardised features of each particle.
        neighbour_means: mean of the features over the neighbours of each particle.
        bar_statistics: number of bars of each particle, and their mean length in radians.
        bar_features: pairing of each bar's cycle with the differences of the features along edges.
        sheaf: stalks and restrictions.
    """

    features: Float[Tensor, "particles features"]
    neighbour_means: Float[Tensor, "particles features"]
    bar_statistics: Float[Tensor, "particles 2"]
    bar_features: Float[Tensor, "particles max_bars features"]
    sheaf: CellularSheaf

    @classmethod
    def from_directions(
        cls,
        features: Float[Tensor, "particles features"],
        directions: Float[Tensor, "particles 3"],
        *,
        has_sheaf: bool,
    ) -> "ViewGraph":
        """The graph of the nearest views.

        Args:
            features: standardised features.
            directions: viewing directions, unit vectors.
            has_sheaf: False for the baseline, an ordinary graph whose stalks are all zero.
        """
        edges, angles_rad = nearest_directions(directions, _NEIGHBOURS)
        neighbour_means = _neighbour_means(features, edges)
        if not has_sheaf:
            no_sheaf = CellularSheaf(edges[:0], features.new_zeros(0, 2, 0, 0), edges.new_zeros(len(features)))
            no_bars, no_stalks = (
                features.new_zeros(len(features), 2),
                features.new_zeros(len(features), 0, features.shape[1]),
            )
            return cls(features, neighbour_means, no_bars, no_stalks, no_sheaf)
        complex_ = clique_complex(len(features), edges)
        persistent = PersistentSheaf.from_complex(complex_, 1, flag_weights(complex_, angles_rad), _HORIZON_RAD)
        bars, sheaf = persistent.vertices, persistent.sheaf
        tail, head = complex_.simplices[1].unbind(1)
        along_edges = features[head] - features[tail]
        members = bars.members.clamp(min=0)
        at_members = along_edges[members] if len(along_edges) else features.new_zeros(*members.shape, features.shape[1])
        bar_features = bars.cycles.to(features) @ at_members
        mask = bars.mask.to(features)
        n_bars = mask.sum(1)
        mean_length = (mask * bars.lengths.to(features)).sum(1) / n_bars.clamp(min=1)
        sheaf = CellularSheaf(sheaf.edges, sheaf.restrictions.to(features), sheaf.vertex_dims)
        return cls(features, neighbour_means, torch.stack([n_bars, mean_length], 1), bar_features, sheaf)


def _neighbour_means(
    features: Float[Tensor, "particles features"], edges: Int[Tensor, "edges 2"]
) -> Float[Tensor, "particles features"]:
    first, second = edges.unbind(1)
    counts = torch.bincount(edges.flatten(), minlength=len(features)).clamp(min=1)
    sums = torch.zeros_like(features).index_add(0, first, features[second]).index_add(0, second, features[first])
    return sums / counts[:, None]


def nearest_directions(
    directions: Float[Tensor, "particles 3"], neighbours: int
) -> tuple[Int[Tensor, "edges 2"], Float[Tensor, " edges"]]:
    """Graph of nearest neighbours: pairs in ascending order, and the angles between them in radians.

    Args:
        directions: unit vectors.
        neighbours: number of nearest neighbours of each; fewer where there are fewer particles.
    """
    views = torch.nn.functional.normalize(directions.double().cpu(), dim=1)
    count = min(neighbours, len(views) - 1)
    if count < 1:
        return torch.zeros(0, 2, dtype=torch.long), views.new_zeros(0)
    nearest = torch.from_numpy(cKDTree(views.numpy()).query(views.numpy(), count + 1)[1]).long()
    itself = torch.arange(len(views))[:, None].expand_as(nearest)
    pairs = torch.stack([itself, nearest], -1)[itself != nearest]
    edges = pairs.sort(1).values.unique(dim=0)
    chord = (views[edges[:, 0]] - views[edges[:, 1]]).norm(dim=1)
    return edges, 2 * torch.asin((chord / 2).clamp(max=1))


class SheafNetwork(nn.Module):
    """A logit of being an outlier for each particle of a graph.

    Args:
        n_features: number of features of a particle.
        channels: width of the sheaf layers.
        hidden: width of the hidden layer of the classifier.
    """

    def __init__(self, n_features: int, channels: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.convolution = SheafConvolution(n_features, channels)
        self.attention = SheafAttention(channels, channels)
        inputs = 2 * n_features + 2 + channels
        self.classifier = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, graph: ViewGraph) -> Float[Tensor, " particles"]:
        """The logits."""
        x = self.attention(graph.sheaf, self.convolution(graph.sheaf, graph.bar_features))
        inputs = torch.cat([graph.features, graph.neighbour_means, graph.bar_statistics, stalk_norms(x)], 1)
        logits: Tensor = self.classifier(inputs)
        return logits.squeeze(1)


@dataclass(frozen=True)
class SheafScorer:
    """A trained network as a scorer of particles.

    Args:
        network: the trained network.
        location: median of each feature, subtracted.
        scale: robust standard deviation of each feature, divided by.
        has_sheaf: False for the baseline, the same network on an ordinary graph.
    """

    network: SheafNetwork
    location: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    has_sheaf: bool = True

    def graph(self, features: ParticleFeatures) -> ViewGraph:
        """Input of the network; features are clipped at ten standard deviations."""
        standardised = (features.features - self.location) / self.scale
        standardised = standardised.clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return ViewGraph.from_directions(standardised, features.directions, has_sheaf=self.has_sheaf)

    @torch.no_grad()
    def score(self, features: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The logit of being an outlier."""
        logits: Tensor = self.network(self.graph(features))
        return logits
