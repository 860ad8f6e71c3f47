"""The lattice in a power spectrum: sought among its peaks, refined on all spots, judged against chance.

Every pair of peaks, sums and differences of peaks spans a lattice. Its score is the mean power over the background at
its nodes, in standard errors of that mean as it would be at places without spots, the three strongest nodes left out:
three peaks of noise lie on some lattice by chance. Too fine a lattice adds nodes without spots, too coarse a one misses
spots: both lower the score, so the right one stands out without any knowledge of its size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.lattice.power_spectrum import Spectrum, find_peaks, neighbourhood_maximum, refine_peaks

LEAST_SCORE = 5.5  # the highest of 30 images of noise was 3.5; of wrong lattices in faint crystals, 4.1
_CAP = 12.0  # power over the background beyond which a spot counts no more
_PEAK, _SPOT = 5.0, 6.0
_POOL, _COMBINED = 40, 10
_LEFT_OUT = 3
_BETWEEN = torch.tensor([[0.5, 0.5], [0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
_ORDERS = (2, 3, 5, 8, 13, 25, 50)
_REACH_PX, _TOLERANCE_PX = 5, 2.0
_FEWEST_NODES = 8
_KEPT = 12
_PAIRS_AT_ONCE = 2000


@dataclass(frozen=True)
class FoundLattice:
    """A reciprocal lattice in a spectrum.

    Args:
        reciprocal: its two vectors as columns (x, y), in cycles per pixel.
        covariance: of its four numbers, row by row, from the residuals of the spots.
        score: standard errors by which its nodes stand above the background.
        finest_angstrom: resolution up to which the score was largest.
    """

    reciprocal: Float[Tensor, "2 2"]
    covariance: Float[Tensor, "4 4"]
    score: float
    finest_angstrom: float


@dataclass(frozen=True)
class Evidence:
    """A spectrum as the search reads it.

    Args:
        spectrum: power over the background.
        highest: the largest value within one pixel, cut off.
        mean: of ``highest`` where there is no spot.
        deviation: its standard deviation there.
    """

    spectrum: Spectrum
    highest: Float[Tensor, "ny nx"]
    mean: float
    deviation: float

    @classmethod
    def of(cls, spectrum: Spectrum) -> "Evidence":
        """The mean and the deviation are those of the whole usable range: spots are few in it, and make them larger."""
        highest = neighbourhood_maximum(spectrum.excess, 3).clamp(max=_CAP)
        values = highest[spectrum.usable]
        return cls(spectrum, highest, float(values.mean()), float(values.std()))

    def at(self, frequencies: Float[Tensor, "*points 2"]) -> tuple[Float[Tensor, "*points"], Bool[Tensor, "*points"]]:
        """Values about frequencies in cycles per pixel, and whether spots are looked for there."""
        columns, rows = self.spectrum.places(frequencies).unbind(-1)
        inside = (frequencies.abs() < 0.5).all(-1)
        return self.highest[rows, columns], self.spectrum.usable[rows, columns] & inside

    def score(self, values: Float[Tensor, "*batch nodes"], used: Bool[Tensor, "*batch nodes"]) -> Tensor:
        """Standard errors above the background, the strongest nodes left out."""
        rest = torch.where(used, values - self.mean, torch.zeros_like(values))
        count = used.sum(-1) - _LEFT_OUT
        total = rest.sum(-1) - rest.topk(_LEFT_OUT, -1).values.clamp(min=0).sum(-1)
        score = total / (self.deviation * count.clamp(min=1).sqrt())
        return torch.where(count >= _FEWEST_NODES - _LEFT_OUT, score, -torch.inf)


def find_lattice(
    spectrum: Spectrum, *, smallest_cell_angstrom: float, largest_cell_angstrom: float
) -> FoundLattice | None:
    """The lattice with the highest score, whether or not that means anything: compare it with ``LEAST_SCORE``.

    Args:
        spectrum: of the micrograph.
        smallest_cell_angstrom: shorter cell vectors are not considered.
        largest_cell_angstrom: nor longer ones.

    Returns:
        None where there are too few peaks to span any lattice.
    """
    evidence = Evidence.of(spectrum)
    if not evidence.deviation > 0:  # a blank image
        return None
    limits_px = (
        smallest_cell_angstrom / spectrum.pixel_size_angstrom,
        largest_cell_angstrom / spectrum.pixel_size_angstrom,
    )
    candidates = _candidates(evidence, limits_px)
    found = [refined for one in candidates if (refined := refine_lattice(evidence, one, limits_px)) is not None]
    if not found:
        return None
    best = max(found, key=lambda lattice: lattice.score)
    while True:
        related = [refine_lattice(evidence, best.reciprocal @ change, limits_px) for change in _related()]
        better = max((one for one in related if one is not None), key=lambda lattice: lattice.score, default=best)
        if not better.score > best.score:
            return best
        best = better


def _related() -> Float[Tensor, "changes 2 2"]:
    """To the lattices that are two and three times as fine or as coarse."""
    coarser = [[[p, 0], [0, q]] for p, q in ((1, 2), (2, 1), (1, 3), (3, 1))]
    coarser += [[[1, k], [0, p]] for p, k in ((2, 1), (3, 1), (3, 2))]
    changes = torch.tensor(coarser, dtype=torch.float64)
    return torch.cat([changes, torch.linalg.inv(changes)])


def _candidates(evidence: Evidence, limits_px: tuple[float, float]) -> list[Float[Tensor, "2 2"]]:
    peaks = find_peaks(evidence.spectrum, _PEAK, _POOL)
    if len(peaks) < 2:
        return []
    strong = peaks[:_COMBINED]
    first, second = torch.triu_indices(len(strong), len(strong), 1)
    pool = torch.cat([peaks, strong[first] + strong[second], strong[first] - strong[second]])
    first, second = torch.triu_indices(len(pool), len(pool), 1)
    pairs = torch.stack([pool[first], pool[second]], -1)
    pairs = pairs[_is_allowed(pairs, limits_px)]
    if not len(pairs):
        return []
    orders = node_orders(3).double()
    scores = torch.cat([evidence.score(*evidence.at(orders @ part.mT)) for part in pairs.split(_PAIRS_AT_ONCE)])
    chosen: list[Tensor] = []
    for index in scores.argsort(descending=True).tolist():
        one = pairs[index]
        if not any(_is_same(one, other, evidence.spectrum) for other in chosen):
            chosen.append(one)
        if len(chosen) == _KEPT:
            break
    return chosen


def _is_allowed(pairs: Float[Tensor, "pairs 2 2"], limits_px: tuple[float, float]) -> Bool[Tensor, " pairs"]:
    """Whether the cell vectors are neither too short nor too long, and the angle between them not flat."""
    determinant = torch.linalg.det(pairs)
    lengths = pairs.norm(dim=1)
    sine = determinant.abs() / lengths.prod(-1).clamp(min=1e-12)
    cell = lengths.flip(-1) / determinant.abs().clamp(min=1e-12)[:, None]
    return (sine > 0.3) & (cell >= limits_px[0]).all(-1) & (cell <= limits_px[1]).all(-1)


def _is_same(one: Float[Tensor, "2 2"], other: Float[Tensor, "2 2"], spectrum: Spectrum) -> bool:
    """Whether each basis is whole in the other, to a pixel of the transform."""
    whole = torch.linalg.solve(other, one).round()
    if int(torch.linalg.det(whole).abs().round()) != 1:
        return False
    return float(((other @ whole - one) * spectrum.size_px[:, None]).abs().max()) < 1.5


def node_orders(most: int) -> Int[Tensor, "nodes 2"]:
    """Orders (h, k) up to a largest one, without (0, 0), one of each Friedel pair."""
    steps = torch.arange(-most, most + 1)
    orders = torch.cartesian_prod(steps, steps)
    return orders[(orders[:, 0] > 0) | ((orders[:, 0] == 0) & (orders[:, 1] > 0))]


def refine_lattice(
    evidence: Evidence, start: Float[Tensor, "2 2"], limits_px: tuple[float, float]
) -> FoundLattice | None:
    """Least squares on the spots near the nodes, low orders first, and the score of all nodes.

    Args:
        evidence: the spectrum.
        start: reciprocal vectors as columns, cycles per pixel.
        limits_px: shortest and longest cell vector.

    Returns:
        None where the spots do not fix the lattice, or it leaves the limits.
    """
    reciprocal, covariance = start, torch.zeros(4, 4, dtype=torch.float64)
    finest = float(torch.linalg.inv(start).norm(dim=1).max())  # no node of a higher order lies below Nyquist
    for most in _ORDERS:
        orders = node_orders(most)
        spots = match_spots(evidence, reciprocal, orders, _TOLERANCE_PX)
        if len(spots.orders) < 3 or int(torch.linalg.matrix_rank(spots.orders.double())) < 2:
            return None
        reciprocal, covariance = _fit(spots)
        if not bool(_is_allowed(reciprocal[None], limits_px)):
            return None
        if most > finest:
            break
    judged = _judge(evidence, reciprocal, covariance)
    if judged is None:
        return None
    # Again without the nodes beyond the last spots, near which there are only peaks of noise.
    orders = node_orders(min(_ORDERS[-1], math.ceil(finest)))
    radii = (orders.double() @ reciprocal.T).norm(dim=1) / evidence.spectrum.pixel_size_angstrom
    spots = match_spots(evidence, reciprocal, orders[radii <= 1 / judged.finest_angstrom], _TOLERANCE_PX)
    if len(spots.orders) < 3 or int(torch.linalg.matrix_rank(spots.orders.double())) < 2:
        return judged
    again = _judge(evidence, *_fit(spots))
    return again if again is not None and again.score >= judged.score else judged


@dataclass(frozen=True)
class Spots:
    """Peaks near nodes.

    Args:
        orders: (h, k).
        frequencies: where the peak is, cycles per pixel.
        predicted: where the node is.
        power: over the background.
    """

    orders: Int[Tensor, "spots 2"]
    frequencies: Float[Tensor, "spots 2"]
    predicted: Float[Tensor, "spots 2"]
    power: Float[Tensor, " spots"]


def match_spots(
    evidence: Evidence, reciprocal: Float[Tensor, "2 2"], orders: Int[Tensor, "nodes 2"], tolerance_px: float
) -> Spots:
    """The highest pixel near each usable node, where it is a peak and near enough.

    Args:
        evidence: the spectrum.
        reciprocal: vectors as columns, cycles per pixel.
        orders: of the nodes.
        tolerance_px: largest distance of peak and node, in pixels of the transform.
    """
    spectrum = evidence.spectrum
    predicted = orders.double() @ reciprocal.T
    inside = evidence.at(predicted)[1]
    orders, predicted = orders[inside], predicted[inside]
    steps = torch.arange(_REACH_PX) - _REACH_PX // 2
    window = torch.cartesian_prod(steps, steps)
    size = spectrum.size_px.long()
    around = (spectrum.places(predicted)[:, None] + window) % size
    power, index = spectrum.excess[around[..., 1], around[..., 0]].max(1)
    places = around[torch.arange(len(around)), index]
    frequencies = spectrum.frequencies(refine_peaks(spectrum, places))
    near = ((frequencies - predicted) * spectrum.size_px).norm(dim=1) < tolerance_px
    kept = near & (power >= _SPOT)
    return Spots(orders[kept], frequencies[kept], predicted[kept], power[kept])


def _fit(spots: Spots) -> tuple[Float[Tensor, "2 2"], Float[Tensor, "4 4"]]:
    """Reciprocal vectors and their covariance; a spot's weight is its power over the background, cut off."""
    orders, weights = spots.orders.double(), spots.power.double().clamp(max=_CAP)
    normal = torch.linalg.pinv(orders.T @ (orders * weights[:, None]))
    reciprocal = (normal @ (orders.T @ (spots.frequencies * weights[:, None]))).T
    residuals = spots.frequencies - orders @ reciprocal.T
    variance = (weights[:, None] * residuals.square()).sum(0) / max(len(orders) - 2, 1)
    return reciprocal, torch.block_diag(*(normal * one for one in variance))


def _judge(
    evidence: Evidence, reciprocal: Float[Tensor, "2 2"], covariance: Float[Tensor, "4 4"]
) -> FoundLattice | None:
    """The score over all nodes up to the resolution that makes it largest."""
    orders = node_orders(min(_ORDERS[-1], math.ceil(float(torch.linalg.inv(reciprocal).norm(dim=1).max()))))
    frequencies = orders.double() @ reciprocal.T
    values, used = evidence.at(frequencies)
    controls, are_usable = evidence.at((orders.double()[:, None] + _BETWEEN) @ reciprocal.T)
    shares = are_usable / are_usable.sum(-1, keepdim=True).clamp(min=1)
    used = used & are_usable.any(-1)
    # As if the places between the nodes were at the mean; their own noise makes the difference noisier by sqrt(4/3).
    values = evidence.mean + (values - (controls * shares).sum(-1)) * math.sqrt(3 / 4)
    radii = frequencies.norm(dim=1)[used]
    order = radii.argsort()
    values, radii = values[used][order], radii[order]
    if len(radii) < _FEWEST_NODES:
        return None
    cuts = torch.linspace(0.2, 1, 9) * len(radii)
    best, finest = -torch.inf, 0.0
    for cut in cuts.long().clamp(min=_FEWEST_NODES).tolist():
        score = float(evidence.score(values[:cut], torch.ones(cut, dtype=torch.bool)))
        if score > best:
            best, finest = score, evidence.spectrum.pixel_size_angstrom / float(radii[cut - 1])
    return FoundLattice(reciprocal, covariance, best, finest)
