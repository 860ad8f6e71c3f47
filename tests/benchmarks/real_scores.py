"""Scores of maps of experimental particles against what else is known of the molecule.

A map is aligned to its reference over rotations, shifts and both hands; its shells are given the power of the
reference's; then both are compared within a soft mask of the reference, and the curve is corrected for what the mask
itself correlates (phase randomisation, as for half maps). Where the map was made with a point group, alignments that
start from the group's axes, in each of the ways in which the group fits onto itself, are tried too.

Resolutions at a threshold are given twice. ``shell_angstrom`` follows RELION: the last shell, ROUND(|k|), before the
curve first drops below it. ``crossing_angstrom`` interpolates between shells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import torch
from jaxtyping import Float
from scoring import with_power_of
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.masks import find_particle
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps, crossing_shells, resolution_angstrom
from cryoeq.geometry.fourier import fft_map, ifft_map, shell_index
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import MapAlignment, align_map, rotate_map
from cryoeq.maps.symmetry import find_symmetry
from cryoeq.simulation.density import resample_map, sample_atoms

MASK_EXTENSION_ANGSTROM, MASK_EDGE_PX = 6.0, 5.0
_MODEL_BFACTOR = 100.0  # of a residue that only its C-alpha stands for


@dataclass(frozen=True)
class Known:
    """What is known of a molecule, on the grid of its particles.

    Args:
        volume: its map, the axes of its point group where RELION has them.
        mask: soft mask of it.
        symmetry: its point group.
    """

    volume: Volume
    mask: Volume
    symmetry: str


def read_known(path: Path, symmetry: str, box_size_px: int, pixel_size_angstrom: float) -> Known:
    """The reference of a set: a map on any grid, or an atomic model, brought onto the grid of the particles.

    Args:
        path: the file.
        symmetry: point group that it has.
        box_size_px: side of the images.
        pixel_size_angstrom: their pixel size.
    """
    if path.suffix == ".mrc":
        volume = resample_map(read_map(path), box_size_px, pixel_size_angstrom)
    else:
        atoms = read_atoms(path).centred()
        atoms = replace(atoms, bfactors_angstrom2=torch.full_like(atoms.weights, _MODEL_BFACTOR))
        volume = sample_atoms(atoms, box_size_px, pixel_size_angstrom)
    fit = find_symmetry(volume, symmetry)
    if fit.correlation < 0.9:
        raise ValueError(f"{path}: no {symmetry} symmetry, correlation {fit.correlation:.2f}")
    values = rotate_map(volume.values, fit.rotation, fit.shift_angstrom / pixel_size_angstrom)
    volume = replace(volume, values=values)
    mask = find_particle(volume).mask(MASK_EXTENSION_ANGSTROM, MASK_EDGE_PX * pixel_size_angstrom)
    return Known(volume, mask, symmetry)


def ways_onto_itself(symmetry: str) -> list[Float[Tensor, "3 3"]]:
    """Rotations that map the axes of a group onto themselves, one for each way in which they do not agree with it.

    Args:
        symmetry: D2, whose three axes may be permuted, or O, which contains all such rotations; none of another.
    """
    if symmetry == "O":
        return [torch.eye(3)]
    if symmetry != "D2":
        return []
    matrices = [torch.eye(3)[list(order)] for order in permutations(range(3))]
    return [matrix * torch.linalg.det(matrix) for matrix in matrices]


def best_alignment(volume: Volume, known: Known, symmetry: str) -> MapAlignment:
    """Rotation, shift and hand of a map with the largest mean FSC with its reference.

    Args:
        volume: the map.
        known: its reference.
        symmetry: point group with which the map was made.
    """
    starts = [None, *ways_onto_itself(symmetry)]
    found = [align_map(volume, known.volume, with_hand=True, start=start) for start in starts]
    return max(found, key=lambda one: one.correlation)


def curve_figures(fsc: Float[Tensor, " shells"], threshold: float, side_angstrom: float) -> dict[str, float | None]:
    """Where a curve first drops below a threshold, twice (see above); None where shell 1 is below it.

    Args:
        fsc: correlation per shell.
        threshold: correlation.
        side_angstrom: side of the box.
    """
    n = 2 * (len(fsc) - 1)
    shell = resolution_angstrom(fsc, threshold, n, side_angstrom / n)
    crossing = float(crossing_shells(fsc[None], threshold)[0])
    return {
        "shell_angstrom": round(shell, 2) if shell < float("inf") else None,
        "crossing_angstrom": round(side_angstrom / crossing, 2) if crossing else None,
    }


def fsc_at(fsc: Sequence[float], side_angstrom: float, resolution: float) -> float:
    """A curve at a resolution, linear between shells.

    Args:
        fsc: correlation per shell.
        side_angstrom: side of the box.
        resolution: in Angstrom.
    """
    shell = side_angstrom / resolution
    low = min(int(shell), len(fsc) - 2)
    return float(fsc[low] + (shell - low) * (fsc[low + 1] - fsc[low]))


def score_against(
    volume: Volume, known: Known, symmetry: str, *, at_angstrom: float = 14.5
) -> tuple[dict[str, object], MapAlignment]:
    """Figures of a map against its reference, and its alignment.

    Args:
        volume: the map.
        known: its reference.
        symmetry: point group with which the map was made.
        at_angstrom: resolution at which the corrected curve is told.
    """
    side = volume.box_size_px * volume.pixel_size_angstrom
    alignment = best_alignment(volume, known, symmetry)
    moved = replace(volume, values=with_power_of(alignment.apply(volume).values, known.volume.values))
    curves = compare_maps(moved, known.volume, known.mask, generator=torch.Generator().manual_seed(0))
    named = {"unmasked": curves.unmasked, "masked": curves.masked, "corrected": curves.corrected}
    final = curves.corrected if curves.corrected is not None else curves.unmasked
    return {
        "is_mirrored": alignment.is_mirrored,
        "mean_fsc": round(alignment.correlation, 4),
        **{
            name: curve_figures(curve, TRUTH_THRESHOLD, side) | {"fsc": [round(value, 3) for value in curve.tolist()]}
            for name, curve in named.items()
            if curve is not None
        },
        f"fsc_at_{at_angstrom:g}": round(fsc_at(final.tolist(), side, at_angstrom), 3),
        "lowest_fsc_to_12.3": round(float(final[1 : int(side / 12.3) + 1].min()), 3),
    }, alignment


def low_passed(values: Float[Tensor, "n n n"], side_angstrom: float, resolution: float) -> Float[Tensor, "n n n"]:
    """A map without its mean and what is finer than a resolution in Angstrom.

    Args:
        values: densities.
        side_angstrom: side of the box.
        resolution: the finest that stays.
    """
    shells = shell_index(values.shape[-1], 3)
    return ifft_map(fft_map(values) * ((shells > 0) & (shells <= side_angstrom / resolution)))


def same_map(first: Volume, second: Volume, resolution: float = 30.0) -> dict[str, object]:
    """Correlation of two maps to a resolution in Angstrom after alignment, hand free.

    Args:
        first: stays in place.
        second: is aligned.
        resolution: the finest that counts.
    """
    side = first.box_size_px * first.pixel_size_angstrom
    alignment = align_map(second, first, with_hand=True)
    pair = [low_passed(one.values, side, resolution).flatten() for one in (first, alignment.apply(second))]
    return {
        "correlation": round(float(torch.corrcoef(torch.stack(pair))[0, 1]), 4),
        "is_mirrored": alignment.is_mirrored,
    }


def shared_fsc(first: Volume, second: Volume) -> list[float]:
    """Correlation per shell of two maps after alignment, hand free, within a soft mask of the first.

    Args:
        first: stays in place.
        second: is aligned.
    """
    moved = align_map(second, first, with_hand=True).apply(second)
    mask = find_particle(first).mask(MASK_EXTENSION_ANGSTROM, MASK_EDGE_PX * first.pixel_size_angstrom)
    curve = fourier_shell_correlation(first.values, moved.values, mask.values)
    return [round(value, 3) for value in curve.tolist()]
