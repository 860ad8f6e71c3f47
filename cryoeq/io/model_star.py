"""``run_model.star``: the classes of a run in RELION's blocks (3.1), one row and one table of shells for each.

RELION takes the maps of it as references (``relion_refine --ref run_model.star``) and shows its classes. It does not
continue a run from it: that needs the spectra of noise and signal in RELION's own units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.io import labels
from cryoeq.io.small_tables import Number, write_small_tables

_NO_RESOLUTION = 999.0  # RELION's number for an infinite resolution, and for an accuracy that is not known
_LEAST_FSC, _MOST_FSC = 1e-3, 0.999  # RELION's bounds, before it makes an SSNR of it


@dataclass(frozen=True)
class ClassModel:
    """One class of a run.

    Args:
        reference: name of its map, as RELION has it: relative to the project folder.
        share: share of the particles, 0 to 1.
        fsc: Fourier shell correlation of its half maps, from shell 0.
        completeness: share of the coefficients of each shell whose own SSNR is at least 1: the sum of CTF^2 over noise
            variance there, times the power tau^2 of the map.
        rotation_accuracy_deg: expected error of a rotation; None where it is not known.
        offset_accuracy_angstrom: expected error of an offset; None where it is not known.
    """

    reference: str
    share: float
    fsc: Float[Tensor, " shells"]
    completeness: Float[Tensor, " shells"]
    rotation_accuracy_deg: float | None = None
    offset_accuracy_angstrom: float | None = None

    @property
    def ssnr(self) -> Float[Tensor, " shells"]:
        """Spectral signal-to-noise ratio as RELION derives it from half maps: C / (1 - C), C^2 = 2 FSC / (1 + FSC).

        It is 1 where the FSC is 1/7, the 0.143 of the gold standard.
        """
        fsc = self.fsc.double().clamp(min=_LEAST_FSC)
        with_truth = (2 * fsc / (1 + fsc)).sqrt().clamp(max=_MOST_FSC)
        return with_truth / (1 - with_truth)

    @property
    def last_shell(self) -> int:
        """The last shell before the SSNR first falls below 1, which is RELION's estimated resolution; 0 without."""
        below = (self.ssnr < 1).nonzero()
        return max(0, int(below[0]) - 1) if len(below) else len(self.fsc) - 1


def write_model_star(
    path: Path,
    classes: Sequence[ClassModel],
    *,
    box_size_px: int,
    pixel_size_angstrom: float,
    log_likelihood: float,
    mean_max_probability: float,
) -> None:
    """Write the blocks ``data_model_general``, ``data_model_classes`` and ``data_model_class_N``.

    Args:
        path: the file to create or replace.
        classes: at least one, in the order of their numbers; as many shells in each as the box has (n / 2 + 1).
        box_size_px: side n of the maps.
        pixel_size_angstrom: pixel size of the maps.
        log_likelihood: of all particles.
        mean_max_probability: mean over the particles of the probability of their best pose.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    side = box_size_px * pixel_size_angstrom
    best = max(classes, key=lambda each: each.last_shell).last_shell
    general: dict[str, Number | str] = {
        labels.REFERENCE_DIMENSIONALITY: 3,
        labels.DATA_DIMENSIONALITY: 2,
        labels.ORIGINAL_IMAGE_SIZE: box_size_px,
        labels.CURRENT_RESOLUTION: _resolution_angstrom(best, side),
        labels.CURRENT_IMAGE_SIZE: box_size_px,
        labels.PIXEL_SIZE: float(pixel_size_angstrom),
        labels.N_CLASSES: len(classes),
        labels.LOG_LIKELIHOOD: float(log_likelihood),
        labels.MEAN_MAX_PROBABILITY: float(mean_max_probability),
    }
    rows: dict[str, list[Any]] = {
        labels.REFERENCE_IMAGE: [each.reference for each in classes],
        labels.CLASS_SHARE: [float(each.share) for each in classes],
        labels.ROTATION_ACCURACY: [_or_unknown(each.rotation_accuracy_deg) for each in classes],
        labels.OFFSET_ACCURACY: [_or_unknown(each.offset_accuracy_angstrom) for each in classes],
        labels.ESTIMATED_RESOLUTION: [_resolution_angstrom(each.last_shell, side) for each in classes],
        labels.OVERALL_COMPLETENESS: [overall_completeness(each.completeness, each.last_shell) for each in classes],
    }
    blocks: dict[str, dict[str, Any]] = {"model_general": general, "model_classes": rows}
    blocks |= {f"model_class_{number}": _shells(each, side) for number, each in enumerate(classes, 1)}
    write_small_tables(path, blocks)


def overall_completeness(completeness: Float[Tensor, " shells"], last_shell: int) -> float:
    """Completeness of all coefficients up to a shell, as RELION counts them: radii are rounded down.

    Args:
        completeness: that of each shell, from shell 0.
        last_shell: the last shell that counts.
    """
    if last_shell == 0:
        return 0.0
    line = torch.arange(1 - last_shell, last_shell, dtype=torch.float64).square()
    radii = (line[:, None, None] + line[:, None] + line).sqrt().floor().long()
    return float(completeness.double()[radii[radii <= last_shell]].mean())


def _shells(model: ClassModel, side_angstrom: float) -> dict[str, list[Number]]:
    count = len(model.fsc)
    return {
        labels.SHELL: list(range(count)),
        labels.INVERSE_RESOLUTION: [shell / side_angstrom for shell in range(count)],
        labels.RESOLUTION: [_resolution_angstrom(shell, side_angstrom) for shell in range(count)],
        labels.SSNR: model.ssnr.tolist(),
        labels.GOLD_STANDARD_FSC: model.fsc.double().tolist(),
        labels.FOURIER_COMPLETENESS: model.completeness.double().tolist(),
    }


def _resolution_angstrom(shell: int, side_angstrom: float) -> float:
    return side_angstrom / shell if shell else _NO_RESOLUTION


def _or_unknown(accuracy: float | None) -> float:
    return _NO_RESOLUTION if accuracy is None or not math.isfinite(accuracy) else float(accuracy)
