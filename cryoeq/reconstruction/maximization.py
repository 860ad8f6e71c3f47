"""M-step: maps from posterior-weighted sums, Wiener-filtered by the correlation of the half maps.

The half maps' Fourier shell correlation (FSC) gives the signal-to-noise ratio of one half map, twice that for both
together (Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721-745)::

    SNR(k) = FSC(k) / (1 - FSC(k))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.reconstruction.state import ConsensusMap, HalfSetMaps, RefinementSettings, RefinementState
from cryoeq.runtime.distributed import broadcast

_SHELLS_BEYOND = 2  # the FSC-0.143 shell, of the next iteration
_MAX_RADIUS_STEP = 4  # shells that the radius grows by at most
_EDGE_PX = 3.0


@dataclass(frozen=True)
class SolventMask:
    """A mask around the particle, and the correlation of half maps within it.

    Args:
        mask: 1 in the particle, 0 in the solvent, a soft edge between.
        fsc: correlation of the half maps within the mask, corrected for the mask.
    """

    mask: Float[Tensor, "n n n"]
    fsc: Float[Tensor, " shells"]


_Pair = tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
SolventFinder = Callable[[_Pair], SolventMask | None]
ReferenceFilter = Callable[[_Pair], _Pair | None]  # of unfiltered half maps; None where they are to be filtered by FSC


def maximization_step(
    state: RefinementState,
    sums: tuple[WienerBackprojection, WienerBackprojection],
    settings: RefinementSettings,
    radius: int,
    *,
    find_solvent: SolventFinder | None = None,
    filter_references: ReferenceFilter | None = None,
    keeps_sums: bool = True,
) -> RefinementState:
    """The state with new maps: one for both half sets where they share a reference, else one each and a new radius.

    Args:
        state: state before the step.
        sums: posterior-weighted sums over each half set.
        settings: settings of the refinement.
        radius: radius of the sums, in cycles per box.
        find_solvent: mask of unfiltered half maps, which flattens the solvent of the new maps; None for the sphere
            alone, and where it returns None.
        filter_references: filter of unfiltered half maps that takes the place of that by their correlation; None for
            none, and where it returns None.
        keeps_sums: whether the new state keeps the sums; else they are added to each other where both are needed, in
            place.
    """
    n = sums[0].box_size_px
    mask = particle_mask(n, settings, state.half_set.device)
    raw = [half.most_probable(1e-3 * half.shell_weights.clamp(min=1e-12)) * mask for half in sums]
    fsc = broadcast(fourier_shell_correlation(raw[0], raw[1]).to(mask))
    if find_solvent is not None and (solvent := find_solvent((raw[0], raw[1]))) is not None:
        mask, fsc = mask * broadcast(solvent.mask.to(mask)), broadcast(solvent.fsc.to(mask))
    fsc[radius + 1 :] = 0.0  # beyond, the correlation comes from the mask alone
    snr = signal_to_noise(fsc)[: n // 2]

    def filtered(weighted: WienerBackprojection, ratio: Tensor) -> Tensor:
        prior = (weighted.shell_weights / ratio).clamp(min=1e-12)
        return broadcast(low_pass(weighted.most_probable(prior) * mask, radius))

    if isinstance(state.reference, ConsensusMap):
        total, other = sums
        if keeps_sums:
            total = total + other
        else:
            total += other
        return replace(state, reference=ConsensusMap(filtered(total, 2 * snr)), sums=sums if keeps_sums else None)
    of_filter = None if filter_references is None else filter_references((raw[0] * mask, raw[1] * mask))
    if of_filter is None:
        reference = HalfSetMaps(filtered(sums[0], snr), filtered(sums[1], snr))
    else:
        reference = HalfSetMaps(*(broadcast(low_pass(half, radius)) for half in of_filter))
    state = replace(state, reference=reference, fsc=fsc, sums=sums if keeps_sums else None)
    next_radius = min(state.resolution_shell + _SHELLS_BEYOND, radius + _MAX_RADIUS_STEP, n // 2 - 1)
    return replace(state, radius=max(state.radius, next_radius))


def particle_mask(box_size_px: int, settings: RefinementSettings, device: torch.device) -> Float[Tensor, "n n n"]:
    """Soft spherical mask around the particle."""
    return soft_sphere(box_size_px, settings.mask_radius * box_size_px - 1, _EDGE_PX, device)
