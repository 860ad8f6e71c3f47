"""Layers on the stalks of a sheaf: diffusion by its Laplacian, and attention along its restrictions.

Both commute with a change of orthonormal basis in every stalk, so also with the signs of bars: channels are mixed,
coordinates never, and the nonlinearity is a gate by the norm of each channel in a stalk. A reconstruction in the
spirit of Cesa and Behboodi 2023, arXiv 2311.10156, and of sheaf diffusion as in Bodnar et al. 2022, arXiv 2202.04579.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.screening.local_homology_sheaf import CellularSheaf

_EPSILON = 1e-12  # keeps the gradient of a norm finite at zero


class StalkGate(nn.Module):
    """Gate nonlinearity: each channel of a stalk times a sigmoid of its norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "vertices dim channels"]) -> Float[Tensor, "vertices dim channels"]:
        """The gated features."""
        norms = stalk_norms(x)[:, None]
        return x * torch.sigmoid(self.scale * norms + self.offset)


class SheafConvolution(nn.Module):
    """One step of diffusion by the sheaf Laplacian L, with D the number of edges of each vertex.

    With a learnt step size a and weights W::

        x' = gate((1 - a D^-1/2 L D^-1/2) x W)

    Args:
        in_channels: features per coordinate of a stalk.
        out_channels: features per coordinate after the layer.
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
            sheaf: sheaf whose stalks hold the features.
            x: features, zero beyond each stalk's dimension.
        """
        scale = sheaf.degrees.clamp(min=1).rsqrt()[:, None, None].to(x)
        diffused = x - self.step * scale * sheaf.laplacian(scale * x)
        gated: Tensor = self.gate(self.mixing(diffused))
        return gated


class SheafAttention(nn.Module):
    """Attention over the neighbours of a vertex, whose stalks are transported along the common edges.

    Through the edge e = (v, u) a vector of u arrives at v as::

        F_{v,e}^T F_{u,e} x_u

    Its weight is the softmax, over the neighbours of v, of the inner product of its key with the query of v.

    Args:
        in_channels: features per coordinate of a stalk.
        out_channels: features per coordinate after the layer.
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
        """The features after the layer; a vertex without edges has its own term only.

        Args:
            sheaf: sheaf whose stalks hold the features.
            x: features, zero beyond each stalk's dimension.
        """
        to, source = torch.cat([sheaf.edges, sheaf.edges.flip(1)]).unbind(1)
        first, second = sheaf.restrictions.to(x).unbind(1)
        transport = torch.cat([first.mT @ second, second.mT @ first])
        queries, keys, values = (layer(x) for layer in (self.query, self.key, self.value))
        agreement = (queries[to] * (transport @ keys[source])).sum((1, 2)) / keys.shape[-1] ** 0.5
        highest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        highest = highest.scatter_reduce(0, to, agreement.detach(), "amax")
        exponentials = (agreement - highest[to]).exp()
        weights = exponentials / torch.zeros_like(highest).index_add(0, to, exponentials)[to]
        messages = weights[:, None, None] * (transport @ values[source])
        gated: Tensor = self.gate(self.own(x).index_add(0, to, messages))
        return gated


def stalk_norms(x: Float[Tensor, "vertices dim channels"]) -> Float[Tensor, "vertices channels"]:
    """Norm of each channel in each stalk, smooth at zero; the same in every orthonormal basis."""
    return (x.square().sum(1) + _EPSILON).sqrt() - _EPSILON**0.5
