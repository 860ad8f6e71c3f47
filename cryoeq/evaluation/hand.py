"""Hand of a map, told by its density: the sign of what proteins and RNA have in one hand only.

Images do not determine the hand; the map does, once it shows turns of alpha helices (to about 5 Angstrom), the twist of
sheets and how helices cross (to about 7), or the grooves of RNA. The mirror-odd invariants around peaks of density
(``chirality``) are weighed by a logistic regression without an intercept, so the mirror image of a map has the negated
score. Weights per resolution were learnt from simulated maps of molecules of known hand (``tests/benchmarks/hand.py``).
The weighted sums of cells of 25 Angstrom, and of shells about the centre, give the score its error; how often a score
of that size has the right sign was measured on molecules left out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.chirality import LocalChirality, local_chirality

WORST_RESOLUTION_ANGSTROM: Final = 8.0
"""Resolution beyond which no hand is computed."""
MIN_PROBABILITY: Final = 0.95
"""Probability from which on the map tells the hand, where t is not by chance."""
MIN_T: Final = 2.0
"""Size of t that 5 % of the maps without any hand exceed."""
WEIGHTS: Final = Path(__file__).with_name("hand.npz")
_CELL_ANGSTROM = 25.0
_SHELL_ANGSTROM = 3.0  # about the centre
_MAX_SAID = 0.99  # more was not measured

Array = np.ndarray


@dataclass(frozen=True)
class Hand:
    """Hand of a map.

    Args:
        t: sum over the cells of the map over its error; positive for right-handed helices, negated by a mirror.
        probability_right: probability that alpha helices turn right in the map, as they do in molecules.
    """

    t: float
    probability_right: float

    @property
    def found(self) -> Literal["right", "left", "unknown"]:
        """Hand of the helices in the map; unknown where neither has a probability of 0.95, or t is below 2."""
        if max(self.probability_right, 1 - self.probability_right) < MIN_PROBABILITY or abs(self.t) < MIN_T:
            return "unknown"
        return "right" if self.t > 0 else "left"

    @property
    def text(self) -> str:
        """One clause: the hand, its probability and t."""
        if self.found == "unknown":
            return f"the map does not tell (t = {self.t:.1f})"
        probability = max(self.probability_right, 1 - self.probability_right)
        surely = "above 0.99" if probability > _MAX_SAID else f"{probability:.2f}"
        mirrored = ": probably the mirror image" if self.found == "left" else ""
        return f"{self.found}-handed helices, probability {surely} (t = {self.t:.1f}){mirrored}"

    def to_json(self) -> dict[str, float | str]:
        """The hand as ``fsc.json`` records it."""
        return {"found": self.found, **asdict(self)}


@dataclass(frozen=True)
class Learnt:
    """What was learnt from maps of known hand.

    Args:
        cuts_angstrom: resolutions, ascending.
        weights: of the invariants, per resolution.
        slopes: log odds of the right sign per unit of t, per resolution.
    """

    cuts_angstrom: Float[Array, " cuts"]
    weights: Float[Array, "cuts features"]
    slopes: Float[Array, " cuts"]


def measure_hand(volume: Volume, resolution_angstrom: float) -> Hand | None:
    """Hand of a map; None beyond 8 Angstrom, and where its voxels are too large to show that resolution.

    A map better than 4 Angstrom is looked at at 4, others at the next of 4, 4.5, 5, 5.5, 6, 7 and 8 Angstrom.

    Args:
        volume: average of half maps, or a map sharpened or masked in any way.
        resolution_angstrom: its resolution, FSC 0.143 of its half maps.
    """
    learnt = load_learnt()
    resolution = max(resolution_angstrom, 2 * volume.pixel_size_angstrom)
    beyond = np.flatnonzero(learnt.cuts_angstrom >= resolution * 0.999)
    if len(beyond) == 0:
        return None
    found = local_chirality(volume, float(learnt.cuts_angstrom[beyond[0]]))
    t = score(found, learnt.weights[beyond[0]])
    return Hand(t, probability_right(t, float(learnt.slopes[beyond[0]])))


def hand_remarks(hand: Hand | None, *, is_given: bool) -> Iterator[tuple[str, str]]:
    """What a verdict says on the hand: sentences, each with advice, which is empty where there is none.

    Args:
        hand: of the map; None where it was not measured.
        is_given: whether the poses, or the map that they were refined to, brought a hand along.
    """
    if hand is not None:
        yield f"Hand: {hand.text}.", "--both-hands writes the other as ..._mirrored." if hand.found == "left" else ""
    if not is_given and (hand is None or hand.found == "unknown"):
        yield "The hand cannot be determined from projections: the mirror image of the map is as likely.", ""


def score(found: LocalChirality, weights: Float[Array, " features"]) -> float:
    """Weighted sum of all invariants over its error; 0 for a map without peaks.

    The error is the larger of two: from cells of 25 Angstrom, and from shells about the centre, in which what symmetry
    repeats is together.

    Args:
        found: invariants at the peaks of a map.
        weights: of the invariants.
    """
    if len(found.invariants) == 0:
        return 0.0
    values = found.invariants @ weights
    cells = np.unique(np.rint(found.positions_angstrom / _CELL_ANGSTROM), axis=0, return_inverse=True)[1]
    error = max(np.sqrt((np.bincount(cells.ravel(), values) ** 2).sum()), _error_of_copies(found, values))
    return float(values.sum() / error) if error > 0 else 0.0


def _error_of_copies(found: LocalChirality, values: Float[Array, " peaks"]) -> float:
    """Error of the sum where parts of a map repeat by symmetry: copies are as far from the centre, in one shell."""
    positions = found.positions_angstrom
    radius = np.linalg.norm(positions - positions.mean(0), axis=1)
    shells = np.unique(np.floor(radius / _SHELL_ANGSTROM), return_inverse=True)[1].ravel()
    apart = np.bincount(shells, values - values.mean())
    if len(apart) < 2:
        return 0.0
    return float(np.sqrt((apart**2).sum() * len(apart) / (len(apart) - 1)))


def probability_right(t: float, slope: float) -> float:
    """Probability of right-handed helices, given t: logistic, so that of the mirror image is 1 less it."""
    return float(0.5 * (1 + np.tanh(slope * t / 2)))


@cache
def load_learnt() -> Learnt:
    """The weights that were learnt, from the package."""
    with np.load(WEIGHTS, allow_pickle=False) as stored:
        return Learnt(stored["cuts_angstrom"], stored["weights"].astype(float), stored["slopes"])
