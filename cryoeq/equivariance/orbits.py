"""All filters of a layer from those whose output is the value at the identity: the others are the same, turned."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from cryoeq.equivariance.groups import PlaneGroup, permute_pixels


def filters_of_orbit(
    group: PlaneGroup, filters: Shaped[Tensor, "fields in size size"], in_dim: int
) -> Shaped[Tensor, "channels in size size"]:
    """The filters to hidden fields of which the first component's are given, K(gx) = rho(g) K(x) rho(g)^-1.

    Numbers are moved and never changed, so that integers give a convolution that commutes with the group in integers.

    Args:
        group: one that maps the pixel grid to itself.
        filters: for the value at the identity; their input is ordered (component, field).
        in_dim: components of an input field: 1 for scalars and depthwise filters, the group's order for hidden ones.
    """
    elements = group.regular_representation().elements.round()
    turned = []
    for h in elements:
        moved = permute_pixels(filters, h)
        if in_dim > 1:
            to = group.action("hidden", h).argmax(0)  # rho(h) moves component b to this one
            by_component = moved.unflatten(1, (in_dim, -1))
            moved = torch.empty_like(by_component).index_copy(1, to, by_component).flatten(1, 2)
        turned.append(moved)
    return torch.cat(turned)
