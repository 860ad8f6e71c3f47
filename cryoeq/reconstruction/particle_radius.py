"""Radius of a round particle, from the radial profile of a first map at low resolution."""

import torch
from jaxtyping import Float
from torch import Tensor

_EDGE = 0.3  # of the largest density of the profile: the edge, blurred by the resolution, crosses it near its middle
MARGIN = 1.15  # of the radius: errors of it, and the edge of the mask


def outer_radius(volume: Float[Tensor, "n n n"]) -> float:
    """Radius beyond which the spherical average stays below its edge, as a fraction of the box; half of it at most.

    Rings of density beyond the particle are left out as far as the average has fallen below 0 in between: they are
    neighbours, or fringes of the CTF.

    Args:
        volume: a map of a particle that is about as wide in all directions, hollow or not, centred.
    """
    n = volume.shape[-1]
    k = torch.arange(n, device=volume.device) - n // 2
    radii = (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt().round().long().clamp(max=n // 2)
    sums = volume.new_zeros(n // 2 + 1).index_add(0, radii.flatten(), volume.flatten())
    profile = (sums / radii.flatten().bincount(minlength=n // 2 + 1))[: n // 2]
    largest = int(profile.argmax())
    below = (profile[largest:] < _EDGE * profile[largest]).nonzero()
    if not len(below):
        return 0.5
    last = largest + int(below[0]) - 1
    inner, outer = float(profile[last]), float(profile[last + 1])
    return (last + (inner - _EDGE * float(profile[largest])) / (inner - outer)) / n
