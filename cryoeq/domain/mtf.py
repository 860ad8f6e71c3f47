"""Detectors."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class MtfCurve:
    """Modulation transfer function of a detector.

    Args:
        frequencies_per_px: ascending, in cycles per pixel of the micrographs, 0.5 at their Nyquist.
        values: what the detector leaves of a wave of that frequency, above 0.
    """

    frequencies_per_px: Float[Tensor, " points"]
    values: Float[Tensor, " points"]
