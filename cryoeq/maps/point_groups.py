"""Point groups of a map whose symmetry is not known: which hold, about which axes, and what speaks against the others.

A group holds where the map agrees with its copies as well as it agrees with itself. Half maps say how well that is: in
each shell the correlation of one half map, rotated by an element g, with the other is compared with that of the half
maps as they are,

    score(g) = sum_k n_k (FSC_g(k) - FSC_random(k)) / sum_k n_k (FSC(k) - FSC_random(k)),

over the n_k coefficients of each shell up to the resolution. It is 1 for a symmetry at any level of noise, and 0 for a
random rotation: what any two orientations share, as the inner shells of a compact molecule do, does not count. A
pseudo-symmetry agrees at low resolution and falls behind with each shell.

A body of revolution has all cyclic groups about its axis. So an order n is named only if the turns half way between,
by pi / n, do not hold. A sphere has all groups: a map whose correlation with randomly rotated copies is that of its
halves is called round.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryoeq.maps.symmetry import SymmetryFit

HOLDS = 0.9
"""Score from which on a group holds."""
ROUND = 0.2
"""Share of the half maps' agreement that a random rotation destroys, below which a map is round."""
_WEAKEST = 0.8  # and that of each element; of many elements the lowest is lower by chance
_NEAR = 0.4  # score of the weakest element; of no symmetry 0.33 and less, and that for few particles


@dataclass(frozen=True)
class GroupAgreement:
    """Agreement of a map with its copies under one point group, at its best placement.

    Args:
        symmetry: name of the group.
        fit: its axes and centre in the map.
        score: mean score of its elements but the identity; 1 for a symmetry, 0 for random rotations.
        weakest: lowest score of an element.
        coarse: mean score over the lower half of the shells.
        fine: mean score over the upper half of the shells.
        sigmas: the score in standard deviations of the scores of random rotations.
        between: score of the turn about the main axis by half the angle of its order; 0 for T, O, I.
        correlations: per shell, of one half map with the rotated other, the mean over the elements.
    """

    symmetry: str
    fit: SymmetryFit
    score: float
    weakest: float
    coarse: float
    fine: float
    sigmas: float
    between: float
    correlations: Float[Tensor, " shells"]

    @property
    def holds(self) -> bool:
        """Whether the copies agree about as well as the half maps do, each of them."""
        return self.score >= HOLDS and self.weakest >= _WEAKEST

    @property
    def is_exact(self) -> bool:
        """Whether the group holds and its order is not that of a body of revolution."""
        return self.holds and self.between < HOLDS

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self.fit.element_correlations)

    @property
    def axis(self) -> Float[Tensor, " 3"]:
        """Unit vector (x, y, z) along the group's z axis, in the frame of the map."""
        return self.fit.rotation[2]


@dataclass(frozen=True)
class PointGroups:
    """Point groups of a map.

    Args:
        groups: all that were scored, those of fewer elements first; none of a round map in a search for all.
        half_correlations: correlation of the half maps per shell; 1 without half maps.
        random_correlations: of one half map with the randomly rotated other, per shell: the mean.
        random_deviations: and the standard deviation.
        last_shell: last shell that was compared.
        contrast: share of the half maps' agreement that random rotations destroy.
    """

    groups: tuple[GroupAgreement, ...]
    half_correlations: Float[Tensor, " shells"]
    random_correlations: Float[Tensor, " shells"]
    random_deviations: Float[Tensor, " shells"]
    last_shell: int
    contrast: float

    @property
    def is_round(self) -> bool:
        """Whether the map agrees with its copies however they are rotated, so that no group can be named."""
        return self.contrast < ROUND

    @property
    def best(self) -> GroupAgreement | None:
        """The group of most elements that holds; None where none does, or no order can be named."""
        return self.holding[0] if self.holding else None

    @property
    def holding(self) -> tuple[GroupAgreement, ...]:
        """The best group and those that hold beside it, most elements first; none where no order can be named.

        That is where a larger group holds than any whose order is exact: of a C12 map that is compared up to C8, C4 is
        exact, but C6 holds as well; of a rod, a half turn across it is exact, and any turn about it holds.
        """
        holding = [group for group in self.groups if group.holds]
        largest = max((group.order for group in holding), default=0)
        if self.is_round or not any(group.is_exact for group in holding if group.order == largest):
            return ()
        return tuple(sorted(holding, key=lambda group: (group.order, group.is_exact, group.score), reverse=True))

    @property
    def pseudo(self) -> GroupAgreement | None:
        """Of the groups that do not hold, the one that comes nearest; None where none comes near."""
        failing = [group for group in self.groups if not group.holds and group.weakest > _NEAR]
        return None if self.is_round else max(failing, key=lambda group: group.weakest, default=None)

    @property
    def is_of_revolution(self) -> bool:
        """Whether the map agrees with its copies at any angle about some axis, so that no order can be named."""
        return self.best is None and any(group.holds for group in self.groups)
