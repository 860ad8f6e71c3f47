"""MTF curves of detectors, as RELION's star files hold them."""

from pathlib import Path

import numpy as np
import torch

from cryoeq.domain.mtf import MtfCurve
from cryoeq.errors import MapFileError
from cryoeq.io.star import read_star

_FREQUENCY, _VALUE = "rlnResolutionInversePixel", "rlnMtfValue"


def read_mtf(path: Path) -> MtfCurve:
    """Read a star file with the columns ``rlnResolutionInversePixel`` and ``rlnMtfValue``.

    Raises:
        ParticleFileError: no star file, or a value that is no number.
        MapFileError: other columns, frequencies that do not ascend, or values that are not above zero.
    """
    table = read_star(path)
    if missing := [column for column in (_FREQUENCY, _VALUE) if column not in table.particles]:
        raise MapFileError(
            f"{path} has no column {missing[0]}", f"an MTF curve has {_FREQUENCY} and {_VALUE}", "Give another --mtf"
        )
    frequencies, values = table.floats(_FREQUENCY), table.floats(_VALUE)
    if len(values) < 2 or (np.diff(frequencies) <= 0).any() or (values < 1e-10).any():
        raise MapFileError(
            f"{path} is no MTF curve",
            "Expected two frequencies or more that ascend, each with a value above zero",
            "Give another --mtf",
        )
    return MtfCurve(torch.from_numpy(frequencies), torch.from_numpy(values))
