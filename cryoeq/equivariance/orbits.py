"""Filters of a layer from those of the identity's component, rotated and mirrored by the other elements."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from cryoeq.equivariance.groups import PlaneGroup, permute_pixels


def filters_of_orbit(
    group: PlaneGroup, filters: Shaped[Tensor, "fields in size size"], in_dim: int
) -> Shaped[Tensor, "channels in size size"]:
    """All filters to hidden fields from those of the first component, by K(gx) = rho(g) K(x) rho(g)^-1.

    Numbers are permuted and never changed, so that integers give a convolution that commutes with the group exactly.

    Args:
        group: a group that maps the pixel grid to itself.
        filters: filters of the identity's component; their input is ordered (component, field).
        in_dim: components of an input field: 1 for scalars and depthwise filters, the group's order for hidden ones.
    """
    elements = group.regular_representation().elements.round()
    rotated = []
    for h in elements:
        moved = permute_pixels(filters, h)
        if in_dim > 1:
            to = group.action("hidden", h).argmax(0)  # rho(h) moves component b to this one
            by_component = moved.unflatten(1, (in_dim, -1))
            moved = torch.empty_like(by_component).index_copy(1, to, by_component).flatten(1, 2)
        rotated.append(moved)
    return torch.cat(rotated)
