"""MTF curves of detectors, as RELION's star files hold them."""

from pathlib import Path

import numpy as np
import torch

from cryoeq.domain.mtf import MtfCurve
from cryoeq.errors import MapFileError
from cryoeq.io.labels import IMAGE_NAME
from cryoeq.io.star import StarTable
from cryoeq.io.star_text import read_blocks
from cryoeq.io.table_kinds import other_kind

_FREQUENCY, _VALUE = "rlnResolutionInversePixel", "rlnMtfValue"


def read_mtf(path: Path) -> MtfCurve:
    """Read a star file with the columns ``rlnResolutionInversePixel`` and ``rlnMtfValue``.

    Raises:
        ParticleFileError: no star file, a damaged one, or a value that is no number.
        MapFileError: other columns, frequencies that do not ascend, or values that are not above zero.
    """
    blocks = read_blocks(path)
    curve = next((block for block in blocks.values() if {_FREQUENCY, _VALUE} <= block.keys()), None)
    if curve is None:
        labels = {label for block in blocks.values() for label in block}
        kind = "a table of particles" if IMAGE_NAME in labels else getattr(other_kind(blocks), "name", "")
        missing = _VALUE if _FREQUENCY in labels else _FREQUENCY
        raise MapFileError(
            f"{path}{f' is {kind}: it' if kind else ''} has no column {missing}",
            f"an MTF curve has {_FREQUENCY} and {_VALUE}",
            "Give another --mtf",
        )
    table = StarTable(None, curve, path)
    frequencies, values = table.floats(_FREQUENCY), table.floats(_VALUE)
    if len(values) < 2 or (np.diff(frequencies) <= 0).any() or (values < 1e-10).any():
        raise MapFileError(
            f"{path} is no MTF curve",
            "Expected two frequencies or more that ascend, each with a value above zero",
            "Give another --mtf",
        )
    return MtfCurve(torch.from_numpy(frequencies), torch.from_numpy(values))
