"""Maps that the user gives beside the particles: a mask for the half maps, a reference to compare with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.volume import MapFrame, Volume, frame_differences, require_same_frame
from cryoeq.evaluation.resolution import compare_maps, require_mask
from cryoeq.geometry.map_filter import low_pass
from cryoeq.io.density import read_density
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import header_notes, read_map, read_map_pixel_size
from cryoeq.maps.alignment import align_map

_TRUTH_THRESHOLD = 0.5
_CONTRAST_SHELL, _INVERTED = 8, -0.5  # skewness of the densities up to a shell: of proteins that are bright above 0


@dataclass(frozen=True)
class SuppliedMaps:
    """Mask, reference and starting map that the user supplies.

    Args:
        mask: values between 0 and 1 in the frame of the maps; None without.
        reference: map in any frame to compare with; None without.
        start: map to start from; None without.
        notes: doubts about the files, and the reason where one is not used.
    """

    mask: Volume | None = None
    reference: Volume | None = None
    start: Volume | None = None
    notes: tuple[Note, ...] = ()


def read_supplied_maps(config: ReconstructConfig, table: ParticleTable, *, has_started: bool = False) -> SuppliedMaps:
    """Mask and reference, read before the run begins, so that a wrong one costs no time.

    Args:
        config: settings of the run: paths of both maps, and the source of the poses.
        table: particles, whose box and pixel size both maps must have.
        has_started: whether a checkpoint holds what was made of the map to start from, which is not read again.

    Raises:
        MapFileError: one cannot be read or has another box than the images, or the reference another pixel size.
    """
    box, pixel = table.box_size_px, table.pixel_size_angstrom
    of_images = Volume(torch.zeros(box, box, box), pixel)
    reference, notes = _read(config.input.compare_to, pixel, read_density)
    start, of_start = _read(None if has_started else _start_of(config), pixel, read_density)
    mask, of_mask = _read(config.input.mask, pixel, read_map)
    for volume, name in ((reference, "the reference"), (start, "the map to start from")):
        if volume is not None:
            require_same_frame(volume, of_images, names=f"{name} and the images")
    notes = (*notes, *of_start, *_contrast_notes(config, start))
    if mask is None or config.input.mask is None:
        return SuppliedMaps(None, reference, start, notes)
    if config.pose_inference != "known":
        note = "The mask is not used: a map found without poses lies in a frame of its own. Use cryoeq fsc --mask."
        return SuppliedMaps(None, reference, start, (*notes, Note(note, "warning")))
    require_mask(mask, of_images, name=f"the mask {config.input.mask}")
    differences = frame_differences(MapFrame("the reconstruction", pixel), read_map_frame(config.input.mask))
    return SuppliedMaps(mask, reference, None, (*notes, *of_mask, *(Note(text, "warning") for text in differences)))


def compare_with_reference(found: Volume, reference: Volume) -> float | None:
    """Resolution in Angstrom to which a map agrees with a reference after alignment, hand included; None if nowhere."""
    moved = align_map(found, reference, with_hand=True).apply(found)
    agreed = compare_maps(moved, reference).resolutions_angstrom(_TRUTH_THRESHOLD)["unmasked"]
    return agreed if agreed and math.isfinite(agreed) else None


def _start_of(config: ReconstructConfig) -> Path | None:
    """The map that a refinement starts from; None where it starts from poses, and for all other runs."""
    is_from_map = config.pose_inference == "refine" and not config.refine.local
    return config.refine.reference if is_from_map else None


def _contrast_notes(config: ReconstructConfig, start: Volume | None) -> Iterator[Note]:
    """A warning where the map to start from is dark, and images will be bright."""
    if start is None or config.input.contrast != "auto":
        return
    smooth = low_pass(start.values, _CONTRAST_SHELL)
    skewness = float(((smooth - smooth.mean()) / smooth.std()).pow(3).mean())
    if skewness < _INVERTED:
        yield Note(
            f"The map to start from looks inverted: its densities reach further below their mean than above "
            f"(skewness {skewness:.1f}), where the particle is bright in the images as they are used. Invert it first.",
            "warning",
        )


def _read(
    path: Path | None, pixel_size_angstrom: float, read: Callable[..., Volume]
) -> tuple[Volume | None, tuple[Note, ...]]:
    """A map, with the pixel size of the images where its header has none, and notes on its header."""
    if path is None:
        return None, ()
    notes = [Note(text, "warning") for text in header_notes(path)]
    angpix = None
    if read_map_pixel_size(path) is None:
        angpix = pixel_size_angstrom
        text = f"{path.name}: its header has no pixel size of use; {angpix:.6g} Å is taken, as of the images."
        notes.append(Note(text, "warning"))
    return read(path, angpix=angpix), tuple(notes)
