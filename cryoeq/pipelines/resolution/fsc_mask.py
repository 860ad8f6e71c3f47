"""The mask of half maps: automatic, spherical or from a file, with warnings where it is unsuitable."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import FscConfig, MaskConfig
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume, frame_differences
from cryoeq.evaluation.masks import (
    ParticleRegion,
    find_particle,
    largest_at_the_box_edge,
    spherical_mask,
    steepest_step,
)
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves, require_mask
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import header_notes, read_map

_LOW_PASS_ANGSTROM = 15.0
_MIN_EXTENSION_ANGSTROM, _MIN_EDGE_ANGSTROM, _MIN_EDGE_PX = 6.0, 8.0, 4
_EDGE_IN_RESOLUTIONS = 1.5
# As in `cryodrgn_utils fsc`, which draws the same set.
_LOOSE_EXTENSION_ANGSTROM, _LOOSE_EDGE_ANGSTROM = 25.0, 15.0
_MADE_MASKS = {"auto", "sphere", "none"}
_AT_BOX_EDGE, _HARD_STEP = 0.1, 0.5
_HIGH_MASK_CORRELATION = 0.1
_FAR_BEYOND = 2.0


def average(first: Volume, second: Volume) -> Volume:
    """Mean of two half maps."""
    return Volume(torch.lerp(first.values, second.values, 0.5), first.pixel_size_angstrom)


def find_region(settings: MaskConfig, full: Volume, curves: FscCurves) -> ParticleRegion:
    """Region of the particle, by the settings of the automatic mask.

    Args:
        settings: of the mask.
        full: average of the half maps.
        curves: curves of the half maps; the unmasked one sets the low-pass filter.

    Raises:
        MapFileError: no voxel is as dense as the threshold.
    """
    low_pass = settings.low_pass_angstrom or max(_LOW_PASS_ANGSTROM, _resolution(curves))
    return find_particle(full, low_pass, settings.threshold)


def make_mask(
    settings: MaskConfig, kind: str, frame: Volume, curves: FscCurves, region: ParticleRegion | None
) -> Volume | None:
    """The requested mask, on the device of the maps; None without one.

    Args:
        settings: of the mask.
        kind: ``auto``, ``sphere``, ``none`` or a path.
        frame: one of the maps.
        curves: curves of the half maps; the unmasked one sets extension and edge.
        region: region of the particle, for ``auto``.

    Raises:
        MapFileError: the mask is damaged.
    """
    pixel_size = frame.pixel_size_angstrom
    extension, edge = (
        default if chosen is None else chosen
        for chosen, default in zip((settings.extension_angstrom, settings.edge_angstrom), _soft(curves), strict=True)
    )
    if kind == "none":
        return None
    if kind == "auto" and region is not None:
        return region.mask(extension, edge)
    if kind == "sphere":
        mask = spherical_mask(frame.box_size_px, pixel_size, edge, settings.diameter_angstrom)
    else:
        mask = read_map(Path(kind), angpix=pixel_size)
        require_mask(mask, frame, name=f"the mask {kind}")
    return Volume(mask.values.to(frame.values.device), pixel_size)


def curves_by_mask(first: Volume, second: Volume, region: ParticleRegion) -> dict[str, Float[Tensor, " shells"]]:
    """Correlation in a sphere and under a loose mask, which cryoSPARC shows beside that under the mask in use.

    Args:
        first: a half map.
        second: the other half map.
        region: region of the particle.
    """
    n, pixel_size = first.box_size_px, first.pixel_size_angstrom
    min_edge = _MIN_EDGE_PX * pixel_size
    sphere = spherical_mask(n, pixel_size, max(_MIN_EDGE_ANGSTROM, min_edge)).values.to(first.values.device)
    curves = {"spherical": fourier_shell_correlation(first.values, second.values, sphere)}
    del sphere  # at 512 pixels each mask is half a gigabyte
    loose = region.mask(_LOOSE_EXTENSION_ANGSTROM, max(_LOOSE_EDGE_ANGSTROM, min_edge)).values
    return {**curves, "loose": fourier_shell_correlation(first.values, second.values, loose)}


def given_mask_warnings(config: FscConfig, path: Path) -> Iterator[Note]:
    """Warnings of a mask from a file whose header does not fit that of the map; none for other masks.

    Args:
        config: settings of the command.
        path: map that the mask is laid over.
    """
    if config.mask is None or str(config.mask) in _MADE_MASKS:
        return
    of_map, of_mask = (read_map_frame(file, angpix=config.pixel_size_angstrom) for file in (path, config.mask))
    found = (*header_notes(config.mask), *frame_differences(of_map, of_mask))
    yield from (Note(text, "warning") for text in found)


def mask_warnings(mask: Volume) -> Iterator[Note]:
    """Warnings of a mask that is cut off by the box, or adds a correlation of its own."""
    if (largest := largest_at_the_box_edge(mask)) > _AT_BOX_EDGE:
        yield Note(
            f"The mask touches the edge of the box (it is {largest:.2f} there): part of it is cut off.", "warning"
        )
    if (step := steepest_step(mask)) > _HARD_STEP:
        yield Note(
            f"The mask is hard-edged: it changes by {step:.2f} from one voxel to the next. "
            "Give it a soft edge of 4 voxels or more.",
            "warning",
        )


def masked_curve_warnings(curves: FscCurves) -> Iterator[Note]:
    """Signs of an unsuitable mask: those of RELION, and a corrected resolution far beyond the unmasked one."""
    if curves.masked is None:
        return
    if curves.corrected is None or curves.randomised is None:
        yield Note("The unmasked FSC never falls below 0.8, so the masked one cannot be corrected.", "warning")
        return
    resolutions = curves.resolutions_angstrom(HALF_MAP_THRESHOLD)
    unmasked, corrected = resolutions["unmasked"] or math.inf, resolutions["corrected"] or math.inf
    if corrected > unmasked:
        yield Note(
            "The unmasked resolution is better than the corrected one: the mask does not fit, and the unmasked one is "
            "the final resolution.",
            "warning",
        )
    elif unmasked > _FAR_BEYOND * corrected:
        yield Note(
            f"The corrected resolution, {corrected:.2f} Å, is far beyond the unmasked one, {unmasked:.2f} Å: "
            "check the mask, and that the half maps were refined independently.",
            "warning",
        )
    side = curves.box_size_px * curves.pixel_size_angstrom
    at_resolution = float(curves.randomised[round(side / corrected)])
    if math.isfinite(corrected) and at_resolution > _HIGH_MASK_CORRELATION:
        yield Note(
            f"The mask alone correlates by {at_resolution:.2f} at the resolution: it is too tight or too hard-edged.",
            "warning",
        )


def _soft(curves: FscCurves) -> tuple[float, float]:
    """Extension and edge in Å: a mask must not be sharper than the map, nor than the voxels allow."""
    resolution = _resolution(curves)
    edge = max(_MIN_EDGE_ANGSTROM, _MIN_EDGE_PX * curves.pixel_size_angstrom, _EDGE_IN_RESOLUTIONS * resolution)
    return max(_MIN_EXTENSION_ANGSTROM, resolution), edge


def _resolution(curves: FscCurves) -> float:
    """Unmasked resolution, a quarter of the box at worst: coarser shells cannot show a particle."""
    resolution = curves.resolutions_angstrom(HALF_MAP_THRESHOLD)["unmasked"] or math.inf
    return min(resolution, curves.box_size_px * curves.pixel_size_angstrom / 4)
