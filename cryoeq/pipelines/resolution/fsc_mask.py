"""The mask of ``cryoeq fsc``: found, drawn or read, and doubted."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import FscConfig
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.masks import (
    ParticleRegion,
    find_particle,
    largest_at_the_box_edge,
    spherical_mask,
    steepest_step,
)
from cryoeq.evaluation.resolution import FscCurves
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.mrc import read_map

_LOW_PASS_ANGSTROM = 15.0
_LEAST_EXTENSION_ANGSTROM, _LEAST_EDGE_ANGSTROM, _LEAST_EDGE_PX = 6.0, 8.0, 4
_EDGE_IN_RESOLUTIONS = 1.5
# As in `cryodrgn_utils fsc`, which draws the same set.
_LOOSE_EXTENSION_ANGSTROM, _LOOSE_EDGE_ANGSTROM = 25.0, 15.0
_AT_BOX_EDGE, _HARD_STEP = 0.1, 0.5


def average(first: Volume, second: Volume) -> Volume:
    """The mean of two half maps."""
    return Volume(torch.lerp(first.values, second.values, 0.5), first.pixel_size_angstrom)


def find_region(config: FscConfig, full: Volume, curves: FscCurves) -> ParticleRegion:
    """Where the particle is, by the settings of the automatic mask.

    Args:
        config: the settings.
        full: the average of the half maps.
        curves: the unmasked one tells to which resolution there is signal.

    Raises:
        MapFileError: nothing is as dense as the threshold.
    """
    low_pass = config.automask.low_pass_angstrom or max(_LOW_PASS_ANGSTROM, _resolution(curves))
    return find_particle(full, low_pass, config.automask.threshold)


def make_mask(
    config: FscConfig, kind: str, frame: Volume, curves: FscCurves, region: ParticleRegion | None
) -> Volume | None:
    """The mask that was asked for, on the device of the maps.

    Args:
        config: the settings.
        kind: ``auto``, ``sphere``, ``none`` or a path.
        frame: one of the maps.
        curves: the unmasked one.
        region: where the particle is, for ``auto``.

    Raises:
        MapFileError: a mask that is damaged.
    """
    settings, pixel_size = config.automask, frame.pixel_size_angstrom
    extension, edge = (
        default if given is None else given
        for given, default in zip((settings.extension_angstrom, settings.edge_angstrom), _soft(curves), strict=True)
    )
    if kind == "none":
        return None
    if kind == "auto" and region is not None:
        return region.mask(extension, edge)
    if kind == "sphere":
        mask = spherical_mask(frame.box_size_px, pixel_size, edge, settings.diameter_angstrom)
    else:
        mask = read_map(Path(kind), angpix=pixel_size)
    return Volume(mask.values.to(frame.values.device), pixel_size)


def curves_by_mask(first: Volume, second: Volume, region: ParticleRegion) -> dict[str, Float[Tensor, " shells"]]:
    """The correlation in a sphere and under a loose mask, which cryoSPARC shows beside that under the mask in use.

    Args:
        first: a half map.
        second: the other.
        region: where the particle is.
    """
    n, pixel_size = first.box_size_px, first.pixel_size_angstrom
    least_edge = _LEAST_EDGE_PX * pixel_size
    sphere = spherical_mask(n, pixel_size, max(_LEAST_EDGE_ANGSTROM, least_edge)).values.to(first.values.device)
    found = {"spherical": fourier_shell_correlation(first.values, second.values, sphere)}
    del sphere  # at 512 pixels each mask is half a gigabyte
    loose = region.mask(_LOOSE_EXTENSION_ANGSTROM, max(_LOOSE_EDGE_ANGSTROM, least_edge)).values
    return {**found, "loose": fourier_shell_correlation(first.values, second.values, loose)}


def mask_doubts(mask: Volume) -> Iterator[Note]:
    """Signs that a mask cuts something off, or adds a correlation of its own."""
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


def _soft(curves: FscCurves) -> tuple[float, float]:
    """Extension and edge in Angstrom: a mask may not be sharper than the map, nor than the voxels allow."""
    resolution = _resolution(curves)
    edge = max(_LEAST_EDGE_ANGSTROM, _LEAST_EDGE_PX * curves.pixel_size_angstrom, _EDGE_IN_RESOLUTIONS * resolution)
    return max(_LEAST_EXTENSION_ANGSTROM, resolution), edge


def _resolution(curves: FscCurves) -> float:
    """Unmasked, and no worse than a quarter of the box: beyond, there is nothing to find a particle by."""
    resolution = curves.resolutions_angstrom(0.143)["unmasked"] or math.inf
    return min(resolution, curves.box_size_px * curves.pixel_size_angstrom / 4)
