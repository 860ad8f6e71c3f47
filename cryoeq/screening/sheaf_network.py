"""A network on the persistent local homology sheaf of a graph of views, which tells particles from junk.

The graph joins each particle to those seen from the most similar directions, or to those whose class averages look most
alike to an encoder; its cliques are weighted by the angles
between them. Degree 1: the stalk of a particle has a bar for each further group into which its neighbours fall. What a
bar holds of a figure is the pairing of its cycle with the figure's differences along edges: how much one group differs
from the other. Convolution and attention pass this on; the lengths of the result, which know no sign, the particle's
own figures and their mean over the neighbours decide. An own construction on a reconstruction of Cesa and Behboodi
2023, arXiv 2311.10156.
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
from cryoeq.screening.sheaf_layers import SheafAttention, SheafConvolution, stalk_lengths
from cryoeq.screening.simplicial import clique_complex

NEIGHBOURS = 6
_HORIZON_RAD = 1.01 * math.pi


@dataclass(frozen=True)
class ViewGraph:
    """Particles with their neighbours by view, and what the network sees of them.

    Args:
        figures: standardised, of each particle.
        around: their mean over its neighbours.
        bars: number of bars of each particle, and their mean length in radians.
        differences: pairing of each bar's cycle with the differences of the figures.
        sheaf: stalks and restrictions.
    """

    figures: Float[Tensor, "particles figures"]
    around: Float[Tensor, "particles figures"]
    bars: Float[Tensor, "particles 2"]
    differences: Float[Tensor, "particles widest figures"]
    sheaf: CellularSheaf

    @classmethod
    def of(
        cls,
        figures: Float[Tensor, "particles figures"],
        directions: Float[Tensor, "particles coordinates"],
        *,
        has_sheaf: bool,
    ) -> "ViewGraph":
        """The graph of the nearest views.

        Args:
            figures: standardised.
            directions: of the particles, unit vectors.
            has_sheaf: without, all stalks are nothing, and an ordinary graph is left.
        """
        edges, angles_rad = nearest_directions(directions, NEIGHBOURS)
        around = _mean_around(figures, edges)
        if not has_sheaf:
            nothing = CellularSheaf(edges[:0], figures.new_zeros(0, 2, 0, 0), edges.new_zeros(len(figures)))
            no_bars, no_stalks = (
                figures.new_zeros(len(figures), 2),
                figures.new_zeros(len(figures), 0, figures.shape[1]),
            )
            return cls(figures, around, no_bars, no_stalks, nothing)
        complex_ = clique_complex(len(figures), edges)
        weights = flag_weights(complex_, angles_rad)
        found = PersistentSheaf.of(complex_, 1, weights, _HORIZON_RAD)
        tail, head = complex_.simplices[1].unbind(1)
        along = figures[head] - figures[tail]
        members = found.vertices.members.clamp(min=0)
        at_members = along[members] if len(along) else figures.new_zeros(*members.shape, figures.shape[1])
        differences = found.vertices.cycles.to(figures) @ at_members
        there = found.vertices.mask.to(figures)
        number = there.sum(1)
        mean_length = (there * found.vertices.lengths.to(figures)).sum(1) / number.clamp(min=1)
        sheaf = CellularSheaf(found.sheaf.edges, found.sheaf.restrictions.to(figures), found.sheaf.vertex_dims)
        return cls(figures, around, torch.stack([number, mean_length], 1), differences, sheaf)


def _mean_around(
    figures: Float[Tensor, "particles figures"], edges: Int[Tensor, "edges 2"]
) -> Float[Tensor, "particles figures"]:
    first, second = edges.unbind(1)
    counts = torch.bincount(edges.flatten(), minlength=len(figures)).clamp(min=1)
    sums = torch.zeros_like(figures).index_add(0, first, figures[second]).index_add(0, second, figures[first])
    return sums / counts[:, None]


def nearest_directions(
    directions: Float[Tensor, "particles coordinates"], neighbours: int
) -> tuple[Int[Tensor, "edges 2"], Float[Tensor, " edges"]]:
    """Pairs of particles one of which is among the nearest of the other, in ascending order, and the angles between.

    Args:
        directions: unit vectors.
        neighbours: how many of each; fewer where there are fewer particles.
    """
    views = torch.nn.functional.normalize(directions.double().cpu(), dim=1)
    wanted = min(neighbours, len(views) - 1)
    if wanted < 1:
        return torch.zeros(0, 2, dtype=torch.long), views.new_zeros(0)
    found = torch.from_numpy(cKDTree(views.numpy()).query(views.numpy(), wanted + 1)[1]).long()
    own = torch.arange(len(views))[:, None].expand_as(found)
    pairs = torch.stack([own, found], -1)[own != found]
    edges = pairs.sort(1).values.unique(dim=0)
    chord = (views[edges[:, 0]] - views[edges[:, 1]]).norm(dim=1)
    return edges, 2 * torch.asin((chord / 2).clamp(max=1))


class SheafNetwork(nn.Module):
    """A logit of being junk for each particle of a graph.

    Args:
        figures: of each particle.
        channels: width of the sheaf layers.
        hidden: width of the layer that decides.
    """

    def __init__(self, figures: int, channels: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.convolution = SheafConvolution(figures, channels)
        self.attention = SheafAttention(channels, channels)
        self.decision = nn.Sequential(nn.Linear(2 * figures + 2 + channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, graph: ViewGraph) -> Float[Tensor, " particles"]:
        """The logits."""
        x = self.attention(graph.sheaf, self.convolution(graph.sheaf, graph.differences))
        seen = torch.cat([graph.figures, graph.around, graph.bars, stalk_lengths(x)], 1)
        logits: Tensor = self.decision(seen)
        return logits.squeeze(1)


@dataclass(frozen=True)
class SheafScorer:
    """A trained network as a scorer of particles.

    Args:
        network: the network.
        location: by which figures are standardised.
        spread: see there.
        has_sheaf: whether it sees stalks; without, it is its own twin, a network on an ordinary graph.
    """

    network: SheafNetwork
    location: Float[Tensor, " figures"]
    spread: Float[Tensor, " figures"]
    has_sheaf: bool = True

    def graph(self, evidence: ParticleFeatures) -> ViewGraph:
        """What the network sees; figures beyond ten spreads count as ten."""
        figures = ((evidence.features - self.location) / self.spread).clamp(-10, 10)
        return ViewGraph.of(figures, evidence.directions, has_sheaf=self.has_sheaf)

    @torch.no_grad()
    def score(self, evidence: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The logit of being junk."""
        logits: Tensor = self.network(self.graph(evidence))
        return logits
