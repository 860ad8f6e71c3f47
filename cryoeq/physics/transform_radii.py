"""Radii in an oversampled half transform, z and y from -m / 2, x from 0: tables that iterations share, kept.

Those of all coefficients are kept for small transforms only, where it costs more to launch their kernels than to carry
them out.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.shells import slabs

_MOST_KEPT = 2**21  # coefficients: 16 MiB


@dataclass(frozen=True)
class TransformRadii:
    """|k| and |k|^2 of a transform, up to its corners; none of its tensors may be changed.

    Args:
        half: number of coefficients along x, m / 2 + 1.
        padding: oversampling: samples per cycle per box.
        device: device of the tables.
    """

    half: int
    padding: int
    device: torch.device

    @classmethod
    def of(cls, half: int, padding: int, device: torch.device) -> "TransformRadii":
        """The radii, with what was computed of them before."""
        return _kept(half, padding, device)

    @cached_property
    def radii(self) -> Float[Tensor, " radii"]:
        """|k| in cycles per box of each |k|^2 in samples."""
        return torch.arange(3 * (self.half - 1) ** 2 + 1, device=self.device).float().sqrt() / self.padding

    def squared(self, start: int, stop: int) -> Int[Tensor, "rows m half"]:
        """|k|^2 in samples of a range of z, without the last sample of y.

        Args:
            start: first of the range.
            stop: behind the last.
        """
        return self._squared[start:stop] if self._is_small else self._computed(start, stop)

    @cached_property
    def counts(self) -> Float[Tensor, " radii"]:
        """Number of coefficients with each |k|^2, Friedel mates counted, in float64."""
        counts, multiplicity = torch.zeros(len(self.radii), dtype=torch.float64, device=self.device), self.multiplicity
        for start, stop in slabs(2 * (self.half - 1), self.device):
            squared = self.squared(start, stop)
            counts.scatter_add_(0, squared.flatten(), multiplicity.expand(squared.shape).flatten())
        return counts

    @cached_property
    def multiplicity(self) -> Float[Tensor, " half"]:
        """How many coefficients each along x stands for, in float64."""
        multiplicity = torch.full((self.half,), 2.0, dtype=torch.float64, device=self.device)
        multiplicity[:1].fill_(1.0)  # an assignment of one number would wait for a GPU
        return multiplicity

    def shells(self, count: int) -> "RadialShells":
        """The first shells; what lies beyond is in one more.

        Args:
            count: number of shells.
        """
        return _kept_shells(self, count)

    @cached_property
    def last_shell(self) -> int:
        """Shell of the corners."""
        return int((3.0 * (self.half - 1) ** 2) ** 0.5 / self.padding + 0.5)

    @property
    def _is_small(self) -> bool:
        return 4 * self.half**3 <= _MOST_KEPT

    @cached_property
    def _squared(self) -> Int[Tensor, "m m half"]:
        return self._computed(0, 2 * (self.half - 1))

    def _computed(self, start: int, stop: int) -> Int[Tensor, "rows m half"]:
        k = torch.arange(1 - self.half, self.half - 1, device=self.device)
        return k[start:stop, None, None] ** 2 + k[:, None] ** 2 + torch.arange(self.half, device=self.device) ** 2


@dataclass(frozen=True)
class RadialShells:
    """The shells of each |k|^2, and the position of |k| between whole radii.

    Args:
        of_radius: ROUND(|k|), the number of shells where it is more.
        counts: number of coefficients of each shell, in float64.
        below: the whole radius below |k|, the last shell at most.
        above: the next one, likewise.
        position: of |k| between them, 1 at most.
    """

    of_radius: Int[Tensor, " radii"]
    counts: Float[Tensor, " shells"]
    below: Int[Tensor, " radii"]
    above: Int[Tensor, " radii"]
    position: Float[Tensor, " radii"]

    def sums(self, values: Float[Tensor, " radii"]) -> Float[Tensor, " shells"]:
        """Sums over each shell of sums over radii."""
        count = len(self.counts)
        return values.new_zeros(count + 1).index_add(0, self.of_radius, values)[:-1]

    def between(self, values: Float[Tensor, " shells"]) -> Float[Tensor, " radii"]:
        """Values of shells at each radius, linearly from one to the next."""
        return torch.lerp(values[self.below], values[self.above], self.position.to(values))


@lru_cache(maxsize=16)
def _kept(half: int, padding: int, device: torch.device) -> TransformRadii:
    return TransformRadii(half, padding, device)


@lru_cache(maxsize=32)
def _kept_shells(radii: TransformRadii, count: int) -> RadialShells:
    of_radius = (radii.radii + 0.5).long().clamp(max=count)
    counts = radii.counts.new_zeros(count + 1).index_add(0, of_radius, radii.counts)[:-1]
    below = radii.radii.long().clamp(max=count - 1)
    above = (below + 1).clamp(max=count - 1)
    return RadialShells(of_radius, counts, below, above, (radii.radii - below).clamp(max=1.0))
