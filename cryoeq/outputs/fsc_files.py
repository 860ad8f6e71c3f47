"""FSC curves as files of other programs: RELION's star, EMDB's XML, and columns of numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cryoeq.evaluation.resolution import FscCurves
from cryoeq.evaluation.sharpening import GuinierPlot
from cryoeq.io import labels
from cryoeq.io.small_tables import Number, write_small_tables
from cryoeq.io.text import write_text

# RELION's number for an infinite resolution.
_NO_RESOLUTION = 999.0


def write_fsc_star(path: Path, curves: FscCurves) -> None:
    """Write the blocks ``data_general`` and ``data_fsc`` of RELION's postprocess.star.

    Args:
        path: the file to create or replace.
        curves: the columns; a missing curve has none.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    general = {labels.FINAL_RESOLUTION: _number(curves.final_resolution_angstrom), **_randomised_from(curves)}
    write_small_tables(path, {"general": general, "fsc": _fsc_columns(curves)})


def write_postprocess_star(path: Path, curves: FscCurves, guinier: GuinierPlot, names: Mapping[str, str]) -> None:
    """Write the blocks ``data_general``, ``data_fsc`` and ``data_guinier`` of RELION's postprocess.star.

    Args:
        path: the file to create or replace.
        curves: curves of the half maps; the column of the corrected one holds the final one, as in RELION.
        guinier: amplitudes after each step of sharpening.
        names: file names by label: ``HALF_MAP_1``, ``HALF_MAP_2`` and, with a mask, ``MASK_NAME`` of ``io.labels``.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    names = {label: _star_safe(name) for label, name in names.items()}
    mask_name = {label: names.pop(label) for label in (labels.MASK_NAME,) if label in names}
    fraction = curves.solvent_fraction
    general: dict[str, Number | str] = {
        labels.FINAL_RESOLUTION: _number(curves.final_resolution_angstrom),
        labels.SHARPENING_BFACTOR: _number(guinier.bfactor_angstrom2),
        **names,
        **({} if fraction is None else {labels.MASK_SOLVENT_FRACTION: _number(fraction)}),
        **mask_name,
        **_randomised_from(curves),
    }
    if guinier.fit is not None:
        general[labels.GUINIER_SLOPE] = _number(guinier.fit.slope_angstrom2)
        general[labels.GUINIER_INTERCEPT] = _number(guinier.fit.intercept)
        general[labels.GUINIER_CORRELATION] = _number(guinier.fit.correlation)
    tables = {"fsc": _fsc_columns(curves), "guinier": _guinier_columns(guinier)}
    write_small_tables(path, {"general": general, **tables})


def write_fsc_xml(path: Path, curves: FscCurves) -> None:
    """Write the final curve in EMDB's format, as RELION does.

    Args:
        path: the file to create or replace.
        curves: the curves of two half maps.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    final = curves.final
    kind = "unmasked" if final is curves.unmasked else "masked" if final is curves.masked else "masked-corrected"
    points = "".join(
        f"  <coordinate>\n    <x>{frequency:.6g}</x>\n    <y>{value:.6g}</y>\n  </coordinate>\n"
        for frequency, value in _points(curves)
    )
    title = f'<fsc title="cryoeq {kind} FSC" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    write_text(path, f"{title}\n{points}</fsc>\n")


def write_fsc_dat(path: Path, curves: FscCurves) -> None:
    """Write the final curve as lines of spatial frequency (1/Å) and correlation.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    write_text(path, "".join(f"{frequency:.6g} {value:.6g}\n" for frequency, value in _points(curves)))


def _points(curves: FscCurves) -> list[tuple[float, float]]:
    frequencies = [1 / resolution for resolution in _resolutions(curves)]
    return list(zip(frequencies, curves.final.tolist(), strict=True))


def _fsc_columns(curves: FscCurves) -> dict[str, Sequence[Number]]:
    resolutions = _resolutions(curves)
    final = None if curves.masked is None else curves.final
    columns: dict[str, Sequence[Number]] = {
        labels.SHELL: list(range(len(resolutions))),
        labels.INVERSE_RESOLUTION: [1 / resolution for resolution in resolutions],
        labels.RESOLUTION: resolutions,
        labels.FSC_FINAL: _column(final),
        labels.FSC_PARTICLE_FRACTION: _column(curves.particle_fraction),
        labels.FSC_UNMASKED: _column(curves.unmasked),
        labels.FSC_MASKED: _column(curves.masked),
        labels.FSC_RANDOMISED: _column(curves.randomised),
    }
    return {label: values for label, values in columns.items() if values}


def _guinier_columns(guinier: GuinierPlot) -> dict[str, Sequence[Number]]:
    intercept = [] if guinier.fit is None else [guinier.fit.intercept] * len(guinier.original)
    columns: dict[str, Sequence[Number]] = {
        labels.INVERSE_SQUARE_RESOLUTION: _column(guinier.inverse_square_resolution),
        labels.LOG_AMPLITUDES: _column(guinier.original),
        labels.LOG_AMPLITUDES_MTF: _column(guinier.mtf_corrected),
        labels.LOG_AMPLITUDES_WEIGHTED: _column(guinier.weighted),
        labels.LOG_AMPLITUDES_SHARPENED: _column(guinier.sharpened),
        labels.LOG_AMPLITUDES_INTERCEPT: intercept,
    }
    return {label: values for label, values in columns.items() if values}


def _randomised_from(curves: FscCurves) -> dict[str, Number]:
    shell = curves.randomised_from_shell
    return {} if shell is None else {labels.RANDOMISED_FROM: _resolutions(curves)[shell]}


def _star_safe(name: str) -> str:
    """Name that RELION can read: it takes ``data_`` on any line for a new block."""
    return Path(name).name if "data_" in name else name


def _resolutions(curves: FscCurves) -> list[float]:
    """Resolution of each shell in Å, RELION's 999 for the mean density."""
    side = curves.box_size_px * curves.pixel_size_angstrom
    return [_NO_RESOLUTION] + [side / shell for shell in range(1, len(curves.unmasked))]


def _column(curve: Tensor | None) -> Sequence[Number]:
    return [] if curve is None else [_number(value) for value in curve.tolist()]


def _number(value: float) -> float:
    return value if math.isfinite(value) else _NO_RESOLUTION
