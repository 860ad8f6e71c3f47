"""The non-uniform filter as the filter of the references of a refinement, where noise gains nothing by it."""

from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Note
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.maps.nonuniform_filter import MAX_GAIN, filter_nonuniformly, noise_gain
from cryoeq.reconstruction.state import FSC_THRESHOLD


class NonuniformReferences:
    """Filter of unfiltered half maps, None where it is not to be trusted.

    Args:
        side_angstrom: side of the box.
    """

    def __init__(self, side_angstrom: float) -> None:
        self._side_angstrom = side_angstrom
        self.gain: float | None = None
        """Gain of noise at the first half maps, on which the use of the filter is decided; None before these."""

    def __call__(
        self, halves: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
    ) -> tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]] | None:
        """The filtered half maps; None where the correlation of noise would gain too much.

        Args:
            halves: unfiltered half maps.
        """
        pixel = self._side_angstrom / len(halves[0])
        unfiltered = HalfMaps(*(Volume(half, pixel) for half in halves))
        below = (fourier_shell_correlation(*halves) < FSC_THRESHOLD).nonzero()
        shell = int(below[0]) if len(below) else len(halves[0]) // 2
        resolution_angstrom = self._side_angstrom / max(1, shell)
        if self.gain is None:
            self.gain = noise_gain(unfiltered, resolution_angstrom)
        if self.gain > MAX_GAIN:
            return None
        filtered = filter_nonuniformly(unfiltered, resolution_angstrom).halves
        return filtered.first.values, filtered.second.values

    def note(self) -> Note | None:
        """What was made of the filter; None where it was not asked for a filtered map."""
        if self.gain is None:
            return None
        gained = f"half maps of nothing but noise gain {self.gain:.3f} in correlation by it"
        if self.gain > MAX_GAIN:
            return Note(
                f"The non-uniform filter was left out: {gained}, more than {MAX_GAIN:g}; references were filtered by "
                "the FSC.",
                "warning",
            )
        return Note(f"Non-uniform filter: {gained}.")
