"""Layers on the stalks of a sheaf: diffusion by its Laplacian, and attention along its restrictions.

Both commute with a change of orthonormal basis in every stalk, so also with the signs of bars: channels are mixed,
coordinates never, and the nonlinearity is a gate by the length of each channel in a stalk. A reconstruction in the
spirit of Cesa and Behboodi 2023, arXiv 2311.10156, and of sheaf diffusion as in Bodnar et al. 2022, arXiv 2202.04579.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.screening.local_homology_sheaf import CellularSheaf

_SMALL = 1e-12


class StalkGate(nn.Module):
    """Each channel of a stalk times a sigmoid of its length.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "vertices dim channels"]) -> Float[Tensor, "vertices dim channels"]:
        """The gated features."""
        length = stalk_lengths(x)[:, None]
        return x * torch.sigmoid(self.scale * length + self.offset)


class SheafConvolution(nn.Module):
    """One step of diffusion: x' = gate((1 - a D^-1/2 L D^-1/2) x W), D the number of edges of each vertex.

    Args:
        in_channels: features per coordinate of a stalk.
        out_channels: after the layer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mixing = nn.Linear(in_channels, out_channels, bias=False)
        self.step = nn.Parameter(torch.tensor(0.5))
        self.gate = StalkGate(out_channels)

    def forward(
        self, sheaf: CellularSheaf, x: Float[Tensor, "vertices dim inputs"]
    ) -> Float[Tensor, "vertices dim outputs"]:
        """The features after one step.

        Args:
            sheaf: its stalks hold the features.
            x: features, zero beyond each stalk's dimension.
        """
        scale = sheaf.degrees.clamp(min=1).rsqrt()[:, None, None].to(x)
        diffused = x - self.step * scale * sheaf.laplacian(scale * x)
        gated: Tensor = self.gate(self.mixing(diffused))
        return gated


class SheafAttention(nn.Module):
    """Each stalk gathers what its neighbours send along their common edge, weighted by how well it answers a query.

    Through the edge e = (v, u) a vector of u arrives at v as F_{v,e}^T F_{u,e} x_u. Its weight is the softmax over the
    neighbours of v of its inner product with v's query.

    Args:
        in_channels: features per coordinate of a stalk.
        out_channels: after the layer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.own = (
            nn.Linear(in_channels, out_channels, bias=False) for _ in range(4)
        )
        self.gate = StalkGate(out_channels)

    def forward(
        self, sheaf: CellularSheaf, x: Float[Tensor, "vertices dim inputs"]
    ) -> Float[Tensor, "vertices dim outputs"]:
        """The features after the layer; a vertex without edges keeps its own part only.

        Args:
            sheaf: its stalks hold the features.
            x: features, zero beyond each stalk's dimension.
        """
        to, source = torch.cat([sheaf.edges, sheaf.edges.flip(1)]).unbind(1)
        first, second = sheaf.restrictions.to(x).unbind(1)
        transport = torch.cat([first.mT @ second, second.mT @ first])
        queries, keys, values = (layer(x) for layer in (self.query, self.key, self.value))
        agreement = (queries[to] * (transport @ keys[source])).sum((1, 2)) / keys.shape[-1] ** 0.5
        highest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        highest = highest.scatter_reduce(0, to, agreement.detach(), "amax")
        raised = (agreement - highest[to]).exp()
        share = raised / torch.zeros_like(highest).index_add(0, to, raised)[to]
        sent = share[:, None, None] * (transport @ values[source])
        gathered = self.own(x).index_add(0, to, sent)
        gated: Tensor = self.gate(gathered)
        return gated


def stalk_lengths(x: Float[Tensor, "vertices dim channels"]) -> Float[Tensor, "vertices channels"]:
    """Length of each channel in each stalk, smooth at zero; the same in every orthonormal basis."""
    return (x.square().sum(1) + _SMALL).sqrt() - _SMALL**0.5
