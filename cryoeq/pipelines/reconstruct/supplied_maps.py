"""Maps that the user gives beside the particles: a mask for the half maps, a reference to compare with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.volume import Volume, require_same_frame
from cryoeq.evaluation.resolution import compare_maps, require_mask
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import align_map

_TRUTH_THRESHOLD = 0.5


@dataclass(frozen=True)
class SuppliedMaps:
    """Mask and reference that the user supplies.

    Args:
        mask: values between 0 and 1 in the frame of the maps; None without.
        reference: map in any frame; None without.
        notes: notes on files that are not used, and the reason.
    """

    mask: Volume | None = None
    reference: Volume | None = None
    notes: tuple[Note, ...] = ()


def read_supplied_maps(config: ReconstructConfig, table: ParticleTable) -> SuppliedMaps:
    """Mask and reference, read before the run begins, so that a wrong one costs no time.

    Args:
        config: settings of the run: paths of both maps, and the source of the poses.
        table: particles, whose box and pixel size both maps must have.

    Raises:
        MapFileError: one cannot be read, or has another box or pixel size than the images.
    """
    box = table.box_size_px
    empty = Volume(torch.zeros(box, box, box), table.pixel_size_angstrom)
    mask, reference = _read(config.input.mask), _read(config.input.reference)
    if reference is not None:
        require_same_frame(reference, empty)
    if mask is None:
        return SuppliedMaps(None, reference)
    if config.pose_inference != "known":
        note = "The mask is not used: a map found without poses lies in a frame of its own. Use cryoeq fsc --mask."
        return SuppliedMaps(None, reference, (Note(note, "warning"),))
    require_mask(mask, empty)
    return SuppliedMaps(mask, reference)


def compare_with_reference(found: Volume, reference: Volume) -> float | None:
    """Resolution in Angstrom to which a map agrees with a reference after alignment, hand included; None if nowhere."""
    moved = align_map(found, reference, with_hand=True).apply(found)
    return compare_maps(moved, reference).resolutions_angstrom(_TRUTH_THRESHOLD)["unmasked"]


def _read(path: Path | None) -> Volume | None:
    return None if path is None else read_map(path)
