"""Aberrations that a table states and cryoeq does not model: beam tilt, Zernike polynomials, magnification matrices."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

from cryoeq.io.star import StarTable

_NOTICEABLE = 1e-6  # smaller values are rounding errors of zero


class _Aberration(NamedTuple):
    """One aberration.

    Args:
        name: its name for the user.
        columns: its columns, of the optics groups or of the particles.
        neutral: their values where there is no aberration, as 0 everywhere is.
    """

    name: str
    columns: tuple[str, ...]
    neutral: tuple[float, ...] = (0.0,)


_ABERRATIONS = (
    _Aberration("beam tilt", ("rlnBeamTiltX", "rlnBeamTiltY")),
    _Aberration("odd aberrations", ("rlnOddZernike",)),
    _Aberration("even aberrations", ("rlnEvenZernike",)),
    _Aberration(
        "anisotropic magnification",
        ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        (1.0, 0.0, 0.0, 1.0),
    ),
)
_CS_ABERRATIONS = (
    _Aberration("beam tilt", ("ctf/tilt_A",)),
    _Aberration("image shift of the beam tilt", ("ctf/shift_A",)),
    _Aberration("trefoil", ("ctf/trefoil_A",)),
    _Aberration("tetrafoil", ("ctf/tetra_A",)),
    _Aberration("anisotropic magnification", ("ctf/anisomag",)),
)


def aberration_notes(star: StarTable, index: Int[Tensor, " particles"]) -> tuple[str, ...]:
    """One note on the aberrations of the particles that are not modelled; none where all are zero.

    Args:
        star: table in the 3.1 layout.
        index: row of the optics table of each particle.
    """
    optics, groups = star.optics or {}, np.unique(index.numpy())
    found = []
    for aberration in _ABERRATIONS:
        neutral = dict(zip(aberration.columns, aberration.neutral * len(aberration.columns), strict=False))
        for columns, rows in ((star.particles, slice(None)), (optics, groups)):
            texts = {name: columns[name][rows].tolist() for name in aberration.columns if name in columns}
            distinct = {name: sorted(set(text)) for name, text in texts.items()}
            if any(_is_set(value, neutral[name]) for name, values in distinct.items() for value in values):
                found.append(_described(aberration.name, distinct))
    return _note(star.path, found)


def cs_aberration_notes(path: Path, fields: Shaped[np.ndarray, " particles"]) -> tuple[str, ...]:
    """One note on the aberrations of a table of cryoSPARC that are not modelled; none where all are zero.

    Args:
        path: its file.
        fields: its particles.
    """
    found = []
    for name, columns, _ in _CS_ABERRATIONS:
        if columns[0] not in (fields.dtype.names or ()):
            continue
        values = fields[columns[0]].reshape(len(fields), -1).astype(np.float64)
        if (np.abs(values) > _NOTICEABLE).any():
            rows = ["[" + ",".join(f"{value:.4g}" for value in row) + "]" for row in np.unique(values, axis=0)]
            found.append(_described(name, {columns[0]: rows}))
    return _note(path, found)


def _note(path: Path | None, found: Iterable[str]) -> tuple[str, ...]:
    if not (listed := ", ".join(found)):
        return ()
    return (
        f"{path.name if path else 'star'}: cryoeq does not model {listed}; the columns are kept. Fine detail may be "
        "lost: refine the final map with RELION or cryoSPARC.",
    )


def _is_set(text: str, neutral: float) -> bool:
    """Whether a number, or a vector in RELION's brackets, is neither 0 nor what it is without aberration."""
    try:
        numbers = [float(part) for part in text.strip("[]").split(",") if part.strip()]
    except ValueError:
        return True
    return any(min(abs(number), abs(number - neutral)) > _NOTICEABLE for number in numbers)


def _described(name: str, distinct: Mapping[str, Sequence[str]]) -> str:
    shown = (
        f"{column} {values[0]}" if len(values) == 1 else f"{column} {values[0]} to {values[-1]}"
        for column, values in distinct.items()
    )
    return f"{name} ({', '.join(shown)})"
