"""Resolution of a reconstruction: FSC of its half maps, unmasked and within a mask, and the map filtered by it.

Mask, correction and filter are those of ``cryoeq fsc`` without options; a B-factor of which that command would warn
is left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import MaskConfig, SharpenConfig
from cryoeq.domain.events import Note
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.fsc_dips import CtfDip, find_ctf_dips, mean_ctf_power
from cryoeq.evaluation.hand import Hand, measure_hand
from cryoeq.evaluation.independence import find_dependence
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves, add_mask, compare_maps
from cryoeq.evaluation.sharpening import sharpen
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.resolution.fsc_mask import average, find_region, make_mask, masked_curve_warnings
from cryoeq.pipelines.resolution.postprocess import is_reliable, sharpening_of

_SEED = 0  # of the randomised phases, as in ``cryoeq fsc``


@dataclass(frozen=True)
class HalfMapResolution:
    """Agreement of two half maps.

    Args:
        curves: their FSC, within a mask too where there is one.
        mask: the mask; None where the halves agree nowhere, or are not independent.
        postprocessed: average of the halves, weighted by the final curve and sharpened where a B-factor can be fitted
            reliably; None where it was not made.
        bfactor_angstrom2: the B-factor that sharpened it, 0 for none; None where it was not made.
        dependence: sign that the halves are not independent, a clause; None without.
        dips: of the unmasked curve, at zeros of the CTF.
        ctf_power: mean |CTF|^2 of the particles per shell; None without a CTF.
        diameter_angstrom: of the region that the automatic mask surrounds; None without one.
        hand: of the average of the halves; None where it was not measured, or they agree to no better than 8 Angstrom.
    """

    curves: FscCurves
    mask: Volume | None = None
    postprocessed: Volume | None = None
    bfactor_angstrom2: float | None = None
    dependence: str | None = None
    dips: tuple[CtfDip, ...] = ()
    ctf_power: Float[Tensor, " shells"] | None = None
    diameter_angstrom: float | None = None
    hand: Hand | None = None

    def resolution_angstrom(self, name: str) -> float | None:
        """Resolution at 0.143 of the ``unmasked``, ``masked`` or ``corrected`` curve; None where there is none."""
        resolution = self.curves.resolutions_angstrom(HALF_MAP_THRESHOLD)[name]
        return resolution if resolution and math.isfinite(resolution) else None

    @property
    def beyond_zeros_angstrom(self) -> float | None:
        """Resolution at 0.143 of the unmasked curve where its dips at zeros of the CTF do not count; None without."""
        return self._angstrom(self.dips[-1].last_after) if self.dips else None

    def into(self, metrics: ReconstructionMetrics) -> ReconstructionMetrics:
        """The metrics with those of the half maps."""
        return replace(
            metrics,
            half_map_resolution_angstrom=self.resolution_angstrom("unmasked"),
            masked_resolution_angstrom=self.resolution_angstrom("masked"),
            corrected_resolution_angstrom=self.resolution_angstrom("corrected"),
            resolution_beyond_ctf_zeros_angstrom=self.beyond_zeros_angstrom,
            bfactor_angstrom2=self.bfactor_angstrom2,
            map_diameter_angstrom=self.diameter_angstrom,
            hand_t=self.hand.t if self.hand else None,
            hand_probability=self.hand.probability_right if self.hand else None,
            dependent_halves=metrics.dependent_halves or self.dependence,
        )

    def notes(self) -> Iterator[Note]:
        """What a reader of the curves should know: signs of an unsuitable mask, dips at zeros of the CTF."""
        if self.mask is not None:
            yield from masked_curve_warnings(self.curves)
        for dip in self.dips:
            yield Note(
                f"The unmasked FSC falls below {HALF_MAP_THRESHOLD:g} at {self._angstrom(dip.last_before):.1f} Å, "
                "where the CTFs of all particles are near zero; it comes back at "
                f"{self._angstrom(dip.first_after):.1f} Å and stays above to {self._angstrom(dip.last_after):.1f} Å. "
                "Particles of other defocus would fill the gap."
            )

    def _angstrom(self, shell: int) -> float:
        return self.curves.box_size_px * self.curves.pixel_size_angstrom / shell


def resolve_half_maps(halves: HalfMaps, mask: Volume | None, ctf: CtfParameters | None) -> HalfMapResolution:
    """Compare half maps, within a mask too, and filter their average.

    Args:
        halves: unfiltered half maps.
        mask: mask that was given; None for the automatic one.
        ctf: of the particles; None without.
    """
    found = compare_half_maps(halves, None, ctf)
    if mask is None:
        found, mask = _with_automatic_mask(found, halves, MaskConfig())
    if found.dependence is None:
        mean = average(halves.first, halves.second)
        found = replace(found, hand=measure_hand(mean, found.curves.final_resolution_angstrom))
    if mask is None:
        return found
    found = _within(found, halves, mask)
    postprocessed, bfactor_angstrom2 = _postprocess(halves, found.curves)
    return replace(found, postprocessed=postprocessed, bfactor_angstrom2=bfactor_angstrom2)


def compare_half_maps(halves: HalfMaps, mask: Volume | None, ctf: CtfParameters | None) -> HalfMapResolution:
    """Compare half maps, and nothing else.

    Args:
        halves: unfiltered half maps.
        mask: mask; None for none.
        ctf: of the particles; None without.
    """
    curves = compare_maps(halves.first, halves.second)
    ctf_power, dips = None, list[CtfDip]()
    if ctf is not None:
        ctf_power = mean_ctf_power(ctf, len(curves.unmasked), curves.box_size_px * curves.pixel_size_angstrom)
        dips = find_ctf_dips(curves.unmasked, ctf_power)
    dependence = find_dependence(curves)
    found = HalfMapResolution(
        curves, dependence=dependence.found if dependence else None, dips=tuple(dips), ctf_power=ctf_power
    )
    return found if mask is None else _within(found, halves, mask)


def curves_in_automatic_mask(halves: HalfMaps, settings: MaskConfig) -> HalfMapResolution:
    """Compare half maps within the automatic mask, where one can be made.

    Args:
        halves: unfiltered half maps.
        settings: settings of the mask.
    """
    found, mask = _with_automatic_mask(compare_half_maps(halves, None, None), halves, settings)
    return found if mask is None else _within(found, halves, mask)


def _postprocess(halves: HalfMaps, curves: FscCurves) -> tuple[Volume, float]:
    """The average of the halves, weighted by the final curve, and sharpened by a B-factor if its fit is reliable."""
    mean, settings = average(halves.first, halves.second), sharpening_of(SharpenConfig(), curves)
    sharpened, guinier = sharpen(mean, curves.final, settings)
    if guinier.fit is None or is_reliable(guinier, settings, curves.final_resolution_angstrom):
        return sharpened, guinier.bfactor_angstrom2
    return sharpen(mean, curves.final, replace(settings, bfactor_angstrom2=0.0))[0], 0.0


def _within(found: HalfMapResolution, halves: HalfMaps, mask: Volume) -> HalfMapResolution:
    """With the curves within a mask."""
    phases = torch.Generator().manual_seed(_SEED)
    return replace(found, curves=add_mask(found.curves, halves.first, halves.second, mask, phases), mask=mask)


def _with_automatic_mask(
    found: HalfMapResolution, halves: HalfMaps, settings: MaskConfig
) -> tuple[HalfMapResolution, Volume | None]:
    """The diameter of the map, and the mask of ``cryoeq fsc``: none for halves that agree nowhere or are dependent."""
    if found.dependence is not None or found.resolution_angstrom("unmasked") is None:
        return found, None
    region = find_region(settings, average(halves.first, halves.second), found.curves)
    mask = make_mask(settings, "auto", halves.first, found.curves, region)
    return replace(found, diameter_angstrom=region.diameter_angstrom), mask
