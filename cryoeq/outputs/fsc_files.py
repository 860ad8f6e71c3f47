"""FSC curves as files that other programs read: a RELION star and the XML that EMDB takes."""

import math
from pathlib import Path

from torch import Tensor

from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves
from cryoeq.io.text import write_text

# What RELION writes where the resolution would be infinite.
_NO_RESOLUTION = 999.0


def write_fsc_star(path: Path, curves: FscCurves) -> None:
    """Write the blocks ``data_general`` and ``data_fsc`` of RELION's postprocess.star.

    Args:
        path: the file to create or replace.
        curves: the columns; a curve that is missing has none.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    finest = [resolution for resolution in curves.resolutions_angstrom(HALF_MAP_THRESHOLD).values() if resolution]
    general = [("rlnFinalResolution", _number(finest[-1]))]
    if curves.randomised_from_shell is not None:
        general.append(("rlnRandomiseFrom", _number(_resolutions(curves)[curves.randomised_from_shell])))
    resolutions = _resolutions(curves)
    columns = {
        "rlnSpectralIndex": [f"{shell:12d}" for shell in range(len(resolutions))],
        "rlnResolution": [_number(1 / resolution) for resolution in resolutions],
        "rlnAngstromResolution": [_number(resolution) for resolution in resolutions],
        "rlnFourierShellCorrelationCorrected": _column(curves.corrected),
        "rlnFourierShellCorrelationUnmaskedMaps": _column(curves.unmasked),
        "rlnFourierShellCorrelationMaskedMaps": _column(curves.masked),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": _column(curves.randomised),
    }
    columns = {label: values for label, values in columns.items() if values}
    labels = "".join(f"_{label} #{number}\n" for number, label in enumerate(columns, 1))
    rows = "".join(" ".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    pairs = "".join(f"_{label:<40} {value}\n" for label, value in general)
    version = "# version 30001"
    write_text(path, f"\n{version}\n\ndata_general\n\n{pairs}\n\n{version}\n\ndata_fsc\n\nloop_\n{labels}{rows}\n")


def write_fsc_xml(path: Path, curves: FscCurves) -> None:
    """Write the corrected curve, or the unmasked one where there is no mask, in EMDB's format, as RELION does.

    Args:
        path: the file to create or replace.
        curves: the curves of two half maps.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    options = {"masked-corrected": curves.corrected, "masked": curves.masked, "unmasked": curves.unmasked}
    kind, curve = next((kind, curve) for kind, curve in options.items() if curve is not None)
    points = "".join(
        f"  <coordinate>\n    <x>{1 / resolution:.6g}</x>\n    <y>{value:.6g}</y>\n  </coordinate>\n"
        for resolution, value in zip(_resolutions(curves), curve.tolist(), strict=True)
    )
    title = f'<fsc title="cryoeq {kind} FSC" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    write_text(path, f"{title}\n{points}</fsc>\n")


def _resolutions(curves: FscCurves) -> list[float]:
    """Resolution of each shell in Angstrom, RELION's 999 for the mean density."""
    side = curves.box_size_px * curves.pixel_size_angstrom
    return [_NO_RESOLUTION] + [side / shell for shell in range(1, len(curves.unmasked))]


def _column(curve: Tensor | None) -> list[str]:
    return [] if curve is None else [_number(value) for value in curve.tolist()]


def _number(value: float) -> str:
    return f"{value if math.isfinite(value) else _NO_RESOLUTION:12.6f}"
