"""Modulation transfer function (MTF) of a detector."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MtfCurve:
    """Modulation transfer function of a detector.

    Args:
        frequencies_per_px: spatial frequencies in ascending order, in cycles per pixel of the micrographs, 0.5 at
            Nyquist.
        values: fraction of a wave's amplitude that the detector transmits at each frequency, above 0.
    """

    frequencies_per_px: Float[Tensor, " points"]
    values: Float[Tensor, " points"]
