"""Beyond the radius of exhaustive search: poses refined continuously, and maps from them, half set by half set."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.processes import share_of
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.training.growth import GrowthSettings, GrowthState, Steps, map_precision, refine_locally, with_maps
from cryoeq.training.observed_images import ObservedImages

_CHUNK_POINTS = 2**20


def polish(state: GrowthState, images: ObservedImages, settings: GrowthSettings, *, iterations: int) -> Steps:
    """Refine the poses of each half locally and make its map from them, further out each time.

    Args:
        state: after the search.
        images: all of them.
        settings: as for the search.
        iterations: how many.
    """
    for done in range(iterations):
        radius = state.radius
        refined = refine_locally(images, state.maps, state, radius, settings.shift_sigma_px)
        state = replace(state, rotations=refined.rotations, shifts_px=refined.shifts_px)
        first, second = (_sum_half(state, images, settings, radius, half) for half in (1, 2))
        state = with_maps(state, (first, second), settings, radius, is_joint=False)
        figures = {"radius": float(state.radius), "reliable shell": float(state.reliable_shell)}
        yield Progress("refining locally", done + 1, iterations, figures), state
    return state


def _sum_half(
    state: GrowthState, images: ObservedImages, settings: GrowthSettings, radius: int, half: int
) -> WienerBackprojection:
    n = images.plane.box_size_px
    part = images.within(radius, n)
    precision = map_precision(images, state.maps[half - 1], part)
    sums = WienerBackprojection.empty(n, device=precision.device)
    chosen: Int[Tensor, " rows"] = (state.half_set == half).nonzero().squeeze(1)
    for rows in torch.split(share_of(chosen), max(1, _CHUNK_POINTS // len(part.plane))):
        some = part.rows(rows)
        matched, power = some.centred(state.shifts_px[rows]) * precision, some.power * precision
        for element in settings.symmetry.to(precision):
            rotations: Float[Tensor, "rows 3 3"] = state.rotations[rows] @ element
            sums = sums.add(matched, power, rotations, part.plane)
    return sums.of_all_processes()
