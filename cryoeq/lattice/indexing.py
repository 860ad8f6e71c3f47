"""Indexing of a power spectrum: candidate lattices from its peaks, refinement on all spots, score against noise.

Every pair of peaks, sums and differences of peaks spans a candidate lattice. Its score is the z-score of the power at
its nodes, the three strongest nodes excluded, since three peaks of noise lie on some lattice by chance::

    score  =  sum_nodes (power - mean)  /  (deviation sqrt(number of nodes))

Mean and deviation are those of pixels without spots. Too fine a lattice adds nodes without spots, too coarse a one
misses spots: both lower the score, so the right one is the best without any knowledge of its size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.lattice.power_spectrum import Spectrum, find_peaks, neighbourhood_maximum, refine_peaks

MIN_SCORE = 5.5  # the highest of 30 images of noise was 3.5; of wrong lattices in faint crystals, 4.1
_MAX_POWER = 12.0  # over the background; a stronger spot counts as this, so that a few do not decide
_MIN_PEAK_POWER, _MIN_SPOT_POWER = 5.0, 6.0
_N_PEAKS, _N_COMBINED_PEAKS = 40, 10  # peaks that span candidates; the strongest, whose sums and differences do too
_N_EXCLUDED = 3
_MIDPOINTS = torch.tensor([[0.5, 0.5], [0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
_MAX_ORDERS = (2, 3, 5, 8, 13, 25, 50)  # of the nodes in successive refinements
_WINDOW_PX, _TOLERANCE_PX = 5, 2.0
_MIN_NODES = 8
_N_CANDIDATES = 12
_PAIR_CHUNK = 2000


@dataclass(frozen=True)
class FoundLattice:
    """A reciprocal lattice in a spectrum.

    Args:
        reciprocal: two basis vectors as columns (x, y), in cycles per pixel.
        covariance: covariance of the four numbers of ``reciprocal``, row by row, from the residuals of the spots.
        score: power at the nodes above the background, in standard errors.
        finest_angstrom: resolution up to which the score is largest.
    """

    reciprocal: Float[Tensor, "2 2"]
    covariance: Float[Tensor, "4 4"]
    score: float
    finest_angstrom: float


@dataclass(frozen=True)
class PeakStatistics:
    """Local maxima of a spectrum, and their distribution where there are no spots.

    Args:
        spectrum: power over the background.
        maxima: the largest power within one pixel of each, clipped.
        mean: mean of ``maxima`` without spots.
        deviation: standard deviation of ``maxima`` without spots.
    """

    spectrum: Spectrum
    maxima: Float[Tensor, "ny nx"]
    mean: float
    deviation: float

    @classmethod
    def from_spectrum(cls, spectrum: Spectrum) -> "PeakStatistics":
        """Statistics over the whole usable range: spots are few in it, and make mean and deviation larger."""
        maxima = neighbourhood_maximum(spectrum.excess, 3).clamp(max=_MAX_POWER)
        values = maxima[spectrum.usable]
        return cls(spectrum, maxima, float(values.mean()), float(values.std()))

    def at(self, frequencies: Float[Tensor, "*points 2"]) -> tuple[Float[Tensor, "*points"], Bool[Tensor, "*points"]]:
        """Maxima at frequencies in cycles per pixel, and whether spots may lie there."""
        columns, rows = self.spectrum.pixels(frequencies).unbind(-1)
        inside = (frequencies.abs() < 0.5).all(-1)
        return self.maxima[rows, columns], self.spectrum.usable[rows, columns] & inside

    def score(self, values: Float[Tensor, "*batch nodes"], used: Bool[Tensor, "*batch nodes"]) -> Tensor:
        """Power above the background in standard errors, the strongest nodes excluded; -inf for too few nodes."""
        excess = torch.where(used, values - self.mean, torch.zeros_like(values))
        count = used.sum(-1) - _N_EXCLUDED
        total = excess.sum(-1) - excess.topk(_N_EXCLUDED, -1).values.clamp(min=0).sum(-1)
        score = total / (self.deviation * count.clamp(min=1).sqrt())
        return torch.where(count >= _MIN_NODES - _N_EXCLUDED, score, -torch.inf)


def find_lattice(
    spectrum: Spectrum, *, smallest_cell_angstrom: float, largest_cell_angstrom: float
) -> FoundLattice | None:
    """The lattice with the highest score, significant or not: compare it with ``MIN_SCORE``.

    Args:
        spectrum: background-corrected power spectrum of the micrograph.
        smallest_cell_angstrom: lower limit of the cell vectors' lengths.
        largest_cell_angstrom: upper limit of the cell vectors' lengths.

    Returns:
        None where there are too few peaks to span any lattice.
    """
    statistics = PeakStatistics.from_spectrum(spectrum)
    if not statistics.deviation > 0:  # a blank image
        return None
    limits_px = (
        smallest_cell_angstrom / spectrum.pixel_size_angstrom,
        largest_cell_angstrom / spectrum.pixel_size_angstrom,
    )
    candidates = _candidates(statistics, limits_px)
    refined = [refine_lattice(statistics, candidate, limits_px) for candidate in candidates]
    lattices = [lattice for lattice in refined if lattice is not None]
    if not lattices:
        return None
    best = max(lattices, key=lambda lattice: lattice.score)
    while True:
        related = [refine_lattice(statistics, best.reciprocal @ change, limits_px) for change in _index_changes()]
        better = max((one for one in related if one is not None), key=lambda lattice: lattice.score, default=best)
        if not better.score > best.score:
            return best
        best = better


def _index_changes() -> Float[Tensor, "changes 2 2"]:
    """Changes of basis to the lattices that are two and three times as fine or as coarse."""
    coarser = [[[p, 0], [0, q]] for p, q in ((1, 2), (2, 1), (1, 3), (3, 1))]
    coarser += [[[1, k], [0, p]] for p, k in ((2, 1), (3, 1), (3, 2))]
    changes = torch.tensor(coarser, dtype=torch.float64)
    return torch.cat([changes, torch.linalg.inv(changes)])


def _candidates(statistics: PeakStatistics, limits_px: tuple[float, float]) -> list[Float[Tensor, "2 2"]]:
    """Distinct lattices spanned by two peaks, by their scores at low orders."""
    peaks = find_peaks(statistics.spectrum, _MIN_PEAK_POWER, _N_PEAKS)
    if len(peaks) < 2:
        return []
    strong = peaks[:_N_COMBINED_PEAKS]
    first, second = torch.triu_indices(len(strong), len(strong), 1)
    pool = torch.cat([peaks, strong[first] + strong[second], strong[first] - strong[second]])
    first, second = torch.triu_indices(len(pool), len(pool), 1)
    pairs = torch.stack([pool[first], pool[second]], -1)
    pairs = pairs[_is_allowed(pairs, limits_px)]
    if not len(pairs):
        return []
    orders = node_orders(3).double()
    scores = torch.cat([statistics.score(*statistics.at(orders @ chunk.mT)) for chunk in pairs.split(_PAIR_CHUNK)])
    candidates: list[Tensor] = []
    for index in scores.argsort(descending=True).tolist():
        pair = pairs[index]
        if not any(_is_same(pair, candidate, statistics.spectrum) for candidate in candidates):
            candidates.append(pair)
        if len(candidates) == _N_CANDIDATES:
            break
    return candidates


def _is_allowed(pairs: Float[Tensor, "pairs 2 2"], limits_px: tuple[float, float]) -> Bool[Tensor, " pairs"]:
    """Whether the cell vectors are within the limits, and the angle between them is not flat."""
    determinant = torch.linalg.det(pairs)
    lengths = pairs.norm(dim=1)
    sine = determinant.abs() / lengths.prod(-1).clamp(min=1e-12)
    cell = lengths.flip(-1) / determinant.abs().clamp(min=1e-12)[:, None]
    return (sine > 0.3) & (cell >= limits_px[0]).all(-1) & (cell <= limits_px[1]).all(-1)


def _is_same(first: Float[Tensor, "2 2"], second: Float[Tensor, "2 2"], spectrum: Spectrum) -> bool:
    """Whether two bases span one lattice, to about a pixel of the transform: their change of basis is unimodular."""
    change = torch.linalg.solve(second, first).round()
    if int(torch.linalg.det(change).abs().round()) != 1:
        return False
    return float(((second @ change - first) * spectrum.size_px[:, None]).abs().max()) < 1.5


def node_orders(max_order: int) -> Int[Tensor, "nodes 2"]:
    """Orders (h, k) up to a largest one, without (0, 0), one of each Friedel pair."""
    steps = torch.arange(-max_order, max_order + 1)
    orders = torch.cartesian_prod(steps, steps)
    return orders[(orders[:, 0] > 0) | ((orders[:, 0] == 0) & (orders[:, 1] > 0))]


def refine_lattice(
    statistics: PeakStatistics, start: Float[Tensor, "2 2"], limits_px: tuple[float, float]
) -> FoundLattice | None:
    """Least squares on the spots near the nodes, low orders first, and the score of all nodes.

    Args:
        statistics: peaks of the spectrum.
        start: reciprocal vectors as columns, cycles per pixel.
        limits_px: shortest and longest cell vector.

    Returns:
        None where the spots do not determine the lattice, or it leaves the limits.
    """
    reciprocal, covariance = start, torch.zeros(4, 4, dtype=torch.float64)
    nyquist_order = float(torch.linalg.inv(start).norm(dim=1).max())  # no node of a higher order lies below Nyquist
    for max_order in _MAX_ORDERS:
        spots = match_spots(statistics, reciprocal, node_orders(max_order), _TOLERANCE_PX)
        if not spots.span_plane:
            return None
        reciprocal, covariance = _fit(spots)
        if not bool(_is_allowed(reciprocal[None], limits_px)):
            return None
        if max_order > nyquist_order:
            break
    lattice = _score_lattice(statistics, reciprocal, covariance)
    if lattice is None:
        return None
    # A second fit leaves out the nodes beyond the last spots, near which there are only peaks of noise.
    orders = node_orders(min(_MAX_ORDERS[-1], math.ceil(nyquist_order)))
    radii = (orders.double() @ reciprocal.T).norm(dim=1) / statistics.spectrum.pixel_size_angstrom
    spots = match_spots(statistics, reciprocal, orders[radii <= 1 / lattice.finest_angstrom], _TOLERANCE_PX)
    if not spots.span_plane:
        return lattice
    refitted = _score_lattice(statistics, *_fit(spots))
    return refitted if refitted is not None and refitted.score >= lattice.score else lattice


@dataclass(frozen=True)
class Spots:
    """Peaks near nodes of a lattice.

    Args:
        orders: (h, k) of the nodes.
        frequencies: positions of the peaks, cycles per pixel.
        predicted: positions of the nodes, cycles per pixel.
        power: power of the peaks over the background.
    """

    orders: Int[Tensor, "spots 2"]
    frequencies: Float[Tensor, "spots 2"]
    predicted: Float[Tensor, "spots 2"]
    power: Float[Tensor, " spots"]

    @property
    def span_plane(self) -> bool:
        """Whether a lattice can be fitted to them: three spots at least, not all on one line through the origin."""
        return len(self.orders) >= 3 and int(torch.linalg.matrix_rank(self.orders.double())) == 2


def match_spots(
    statistics: PeakStatistics, reciprocal: Float[Tensor, "2 2"], orders: Int[Tensor, "nodes 2"], tolerance_px: float
) -> Spots:
    """The highest pixel near each usable node, where it is a peak and near enough.

    Args:
        statistics: peaks of the spectrum.
        reciprocal: vectors as columns, cycles per pixel.
        orders: (h, k) of the nodes.
        tolerance_px: largest distance between peak and node, in pixels of the transform.
    """
    spectrum = statistics.spectrum
    predicted = orders.double() @ reciprocal.T
    is_usable = statistics.at(predicted)[1]
    orders, predicted = orders[is_usable], predicted[is_usable]
    steps = torch.arange(_WINDOW_PX) - _WINDOW_PX // 2
    window = torch.cartesian_prod(steps, steps)
    around = (spectrum.pixels(predicted)[:, None] + window) % spectrum.size_px.long()
    power, index = spectrum.excess[around[..., 1], around[..., 0]].max(1)
    peaks = around[torch.arange(len(around)), index]
    frequencies = spectrum.frequencies(refine_peaks(spectrum, peaks))
    is_near = ((frequencies - predicted) * spectrum.size_px).norm(dim=1) < tolerance_px
    is_spot = is_near & (power >= _MIN_SPOT_POWER)
    return Spots(orders[is_spot], frequencies[is_spot], predicted[is_spot], power[is_spot])


def _fit(spots: Spots) -> tuple[Float[Tensor, "2 2"], Float[Tensor, "4 4"]]:
    """Reciprocal vectors and their covariance; the weight of a spot is its power over the background, clipped."""
    orders, weights = spots.orders.double(), spots.power.double().clamp(max=_MAX_POWER)
    normal = torch.linalg.pinv(orders.T @ (orders * weights[:, None]))
    reciprocal = (normal @ (orders.T @ (spots.frequencies * weights[:, None]))).T
    residuals = spots.frequencies - orders @ reciprocal.T
    variance = (weights[:, None] * residuals.square()).sum(0) / max(len(orders) - 2, 1)
    return reciprocal, torch.block_diag(*(normal * axis_variance for axis_variance in variance))


def _score_lattice(
    statistics: PeakStatistics, reciprocal: Float[Tensor, "2 2"], covariance: Float[Tensor, "4 4"]
) -> FoundLattice | None:
    """The lattice with its score over all nodes up to the resolution that makes it largest; None for too few nodes."""
    orders = node_orders(min(_MAX_ORDERS[-1], math.ceil(float(torch.linalg.inv(reciprocal).norm(dim=1).max()))))
    frequencies = orders.double() @ reciprocal.T
    values, used = statistics.at(frequencies)
    controls, are_usable = statistics.at((orders.double()[:, None] + _MIDPOINTS) @ reciprocal.T)
    weights = are_usable / are_usable.sum(-1, keepdim=True).clamp(min=1)
    used = used & are_usable.any(-1)
    # Differences from the midpoints of the nodes; the noise of three midpoints adds a third of the variance.
    values = statistics.mean + (values - (controls * weights).sum(-1)) * math.sqrt(3 / 4)
    radii = frequencies.norm(dim=1)[used]
    order = radii.argsort()
    values, radii = values[used][order], radii[order]
    if len(radii) < _MIN_NODES:
        return None
    counts = torch.linspace(0.2, 1, 9) * len(radii)
    best_score, finest_angstrom = -torch.inf, 0.0
    for count in counts.long().clamp(min=_MIN_NODES).tolist():
        score = float(statistics.score(values[:count], torch.ones(count, dtype=torch.bool)))
        if score > best_score:
            best_score = score
            finest_angstrom = statistics.spectrum.pixel_size_angstrom / float(radii[count - 1])
    return FoundLattice(reciprocal, covariance, best_score, finest_angstrom)
