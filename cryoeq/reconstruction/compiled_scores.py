"""Scores of all poses on CPUs, in kernels that numba compiles at the first use: the same as in torch, in fewer passes.

Scores stay the two halves of their Fourier series, that which repeats and that which changes sign after half a turn:
their sum and their difference are the scores of two angles, and what ``PoseLikelihood.sum_images`` needs of the
weights are their sum and difference again. One pass over them finds the highest score of each hypothesis of each row.
Only hypotheses are read again that are significant, with a score of which a whole grid would count. Exponentials, their
sums, and where they are few the sums of images come from these alone.

A hypothesis of a row is summed by itself and in one order, so that no particle's posterior depends on its batch. Where
the machine code is kept tells ``machine_code``.

Significant poses, 0.999 of the posterior: Scheres 2012, J. Struct. Biol. 180, 519-530.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import float32, int32
from torch import Tensor

from cryoeq.reconstruction.machine_code import EXACT_ORDER, Function, compiled, inlined
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, LikelihoodTerms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood
from cryoeq.reconstruction.pose_scores import MIN_LOG_WEIGHT

_Array = np.ndarray
# Of a posterior, at most: what is not significant. On 1WCM at SNR 0.1, three grids: 1e-6 in the mean, 7e-6 at most.
_OMITTED = 1e-3
_FEW = 0.4  # of the hypotheses: that share is summed one by one in the time of a matrix product of all
_BLOCK = 512  # numbers at a time, of which several arrays fit the first cache
# Cephes' single-precision exponential: exp(x) = 2^n (1 + r + r^2 p(r)), its error below 2 units in the last place.
_LOG2_E, _LN2_HIGH, _LN2_LOW = float32(1 / math.log(2)), float32(0.693359375), float32(-2.12194440e-4)
_P0, _P1, _P2 = float32(1.9875691500e-4), float32(1.3981999507e-3), float32(8.3334519073e-3)
_P3, _P4, _P5 = float32(4.1665795894e-2), float32(1.6666665459e-1), float32(5.0000001201e-1)
_HALF, _ONE, _NEVER = float32(0.5), float32(1), float32(-math.inf)


def _compiled(function: Function) -> Function:
    return compiled(function, EXACT_ORDER)


def _inlined(function: Function) -> Function:
    return inlined(function, EXACT_ORDER)


@dataclass(frozen=True)
class CompiledScores:
    """Log-posterior of each pose and row, up to a constant of the image.

    Args:
        likelihood: of the poses.
        even: the half of the log-likelihoods that repeats after half a turn.
        odd: the half that changes sign.
        log_prior: of each map and row.
    """

    likelihood: PoseLikelihood
    even: Float[Tensor, "half hypotheses rows"]
    odd: Float[Tensor, "half hypotheses rows"]
    log_prior: Float[Tensor, "maps rows"]

    def highest(self) -> Float[Tensor, "hypotheses rows"]:
        """The highest score of each hypothesis, over the angles."""
        found = self.even.new_empty(self.even.shape[1:])
        _find_highest(self.even.flatten(1).numpy(), self.odd.flatten(1).numpy(), found.view(-1).numpy())
        found.view(2, len(self.log_prior), -1, found.shape[1]).add_(self.log_prior[:, None])
        return found

    def over_angles(
        self, hypothesis: Int[Tensor, "maps particles"], row: Int[Tensor, "maps particles"]
    ) -> Float[Tensor, "angles maps particles"]:
        """Scores of some hypotheses and rows at all angles, up to their prior."""
        even, odd = self.even[:, hypothesis, row], self.odd[:, hypothesis, row]
        return torch.cat([even + odd, even - odd])

    def weights(
        self,
        highest: Float[Tensor, "hypotheses rows"],
        best: Float[Tensor, " particles"],
        temperature: float | Float[Tensor, ""],
        *,
        for_images: bool = True,
    ) -> "CompiledWeights":
        """Exponentials of the scores, over those of the best pose of the particle.

        Args:
            highest: highest score of each hypothesis.
            best: score of the best pose of each particle, which has as many rows as any other.
            temperature: divisor of all scores.
            for_images: whether images are to be summed with these weights.
        """
        half, hypotheses, rows = self.even.shape
        n_offsets = rows // len(best)
        least = math.log(_OMITTED / (2 * half * hypotheses * n_offsets))
        of_row = best.repeat_interleave(n_offsets)
        is_significant = ~((highest - of_row).div_(temperature) < least)  # those that are no number too
        is_dense = for_images and float(is_significant.float().mean()) > _FEW
        places = None if is_dense else is_significant.flatten().nonzero().squeeze(1)
        views = hypotheses // (2 * len(self.log_prior))
        shape = (2, len(self.log_prior), views, rows)
        prior, top = (each[:, None].expand(shape).flatten() for each in (self.log_prior, of_row[None]))
        # Whatever the rest of a batch is like, what is not significant counts for nothing.
        prior = prior.masked_fill(~is_significant.flatten(), -math.inf) if places is None else prior[places]
        top = top if places is None else top[places]
        first, second = (self.even.new_empty(half if for_images else 0, len(prior)) for _ in range(2))
        sums = torch.zeros(len(self.log_prior), rows, dtype=torch.float64)
        _exponentiate(
            (self.even.flatten(1).numpy(), self.odd.flatten(1).numpy()),
            (prior.new_empty(0).int() if places is None else places.int()).numpy(),
            # What stands in other files is passed: numba would keep machine code with its old value.
            (
                prior.contiguous().numpy(),
                top.contiguous().numpy(),
                float32(1 / float(temperature)),
                float32(MIN_LOG_WEIGHT),
            ),
            (first.numpy(), second.numpy()),
            sums.numpy(),
            views,
        )
        return CompiledWeights(self.likelihood, first, second, sums.to(best), places)


@dataclass(frozen=True)
class CompiledWeights:
    """Unnormalised posterior of each pose and row.

    Args:
        likelihood: of the poses.
        first: sum of the weights of each angle and that half a turn further.
        second: their difference.
        sums: over all poses of each map.
        places: number of each hypothesis and row whose weights these are; None for all of them.
    """

    likelihood: PoseLikelihood
    first: Float[Tensor, "half columns"]
    second: Float[Tensor, "half columns"]
    sums: Float[Tensor, "maps rows"]
    places: Int[Tensor, " columns"] | None

    def sum_images(self, images: LikelihoodTerms) -> LikelihoodTerms:
        """As ``PoseLikelihood.sum_images``, without the hypotheses that are not significant."""
        likelihood, rows = self.likelihood, self.sums.shape[1]
        if self.places is None:
            first, second = (half.unflatten(1, (-1, rows)) for half in (self.first, self.second))
            return likelihood.sum_halves(first, second, images)
        found = likelihood.no_images()
        pairs = _pairs(likelihood.harmonics.n_radial, likelihood.harmonics.n_even, images.quadratic_term.shape[2])
        halves = zip((self.first, self.second), likelihood.analysis(), strict=True)
        moments = [half.T @ phases.transpose(1, 2).flatten(1) for half, phases in halves]
        starts = torch.searchsorted(self.places, torch.arange(2 * found.cross_term.shape[1] + 1) * rows)
        _sum_columns(
            (moments[0].unflatten(1, (2, -1)).numpy(), moments[1].unflatten(1, (2, -1)).numpy()),
            ((self.places % rows).int().numpy(), starts.numpy()),
            pairs.pack(images).numpy(),
            (pairs.even_starts, pairs.odd_starts, pairs.order, pairs.term, pairs.sign),
            (found.cross_term.numpy(), found.quadratic_term.numpy()),
        )
        return found


@dataclass(frozen=True)
class _Pairs:
    """The pairs of an order and a radial function, or a hat function, in which an image may have anything.

    First those of even orders, all orders of one radial function after the other, then those of odd orders; then those
    of the squared CTF, all hats of one order after the other.

    Args:
        even_starts: first pair of each radial function among even orders, and the one after the last.
        odd_starts: likewise among odd orders.
        order: number of the order of each pair.
        term: number of its radial or hat function.
        sign: factor of its moments where mirrored.
    """

    even_starts: Int[_Array, " radial"]
    odd_starts: Int[_Array, " radial"]
    order: Int[_Array, " pairs"]
    term: Int[_Array, " pairs"]
    sign: Float[_Array, " pairs"]

    def pack(self, images: LikelihoodTerms) -> Float[Tensor, "rows 2 pairs"]:
        """The terms of each row that belong to the pairs, real parts and then imaginary ones."""
        count, radial = int(self.odd_starts[-1]), images.cross_term.shape[2]
        index = torch.from_numpy(self.order[:count] * radial + self.term[:count])
        cross = images.cross_term.permute(1, 3, 0, 2).flatten(2).index_select(2, index)
        return torch.cat([cross, images.quadratic_term.permute(1, 3, 0, 2).flatten(2)], 2)


@lru_cache(maxsize=32)
def _pairs(n_radial: tuple[int, ...], n_even: int, hats: int) -> _Pairs:
    """The pairs of a basis and of as many hat functions.

    Args:
        n_radial: number of radial functions of each order.
        n_even: number of even orders, which come first.
        hats: number of hat functions.
    """
    counts, radial, end = np.array(n_radial), max(n_radial), 0
    starts: list[_Array] = []
    order: list[_Array] = []
    term: list[_Array] = []
    for first, of_parity in ((0, counts[:n_even]), (n_even, counts[n_even:])):
        # Up to the last order that has the radial function: higher orders have fewer of them.
        lengths = [int(max(np.flatnonzero(of_parity > j) + 1, default=0)) for j in range(radial)]
        starts.append(end + np.cumsum([0, *lengths]))
        order.append(first + np.concatenate([np.arange(length) for length in lengths]))
        term.append(np.repeat(np.arange(radial), lengths))
        end = int(starts[-1][-1])
    order.append(np.repeat(np.arange(POWER_ORDERS), hats))
    term.append(np.tile(np.arange(hats), POWER_ORDERS))
    # The first orders of the squared CTF's moments are even.
    sign = np.where(np.concatenate(order) < n_even, _ONE, -_ONE)
    return _Pairs(starts[0], starts[1], np.concatenate(order).astype(int32), np.concatenate(term).astype(int32), sign)


@_compiled
def _find_highest(even: _Array, odd: _Array, found: _Array) -> None:
    """The highest of sum and difference of two halves, over the angles."""
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        for a in range(len(even)):
            of_even, of_odd = even[a, start : start + _BLOCK], odd[a, start : start + _BLOCK]
            for j in range(len(block)):
                score = of_even[j] + abs(of_odd[j])
                # What is no number replaces what is before it.
                block[j] = block[j] if a > 0 and score <= block[j] else score


@_inlined
def _exponentials(values: _Array, lowest: float32, bits: _Array, powers: _Array) -> None:
    """In place; the powers of two are numbers whose bits are these."""
    for j in range(len(values)):
        value = lowest if values[j] < lowest else values[j]
        n = np.floor(value * _LOG2_E + _HALF)
        r = value - n * _LN2_HIGH - n * _LN2_LOW
        bits[j] = (int32(n) + int32(127)) << int32(23)
        series = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
        values[j] = series * (r * r) + r + _ONE
    for j in range(len(values)):
        values[j] = values[j] * powers[j]


@_inlined
def _load_scores(
    halves: tuple[_Array, _Array], there: _Array, prior: _Array, best: _Array, factor: float32, scores: _Array
) -> None:
    """Scores of some columns at an angle and half a turn further, relative to the best; all where no place is given.

    Terms are added in the order in which ``CompiledScores.highest`` adds them: the best one is exactly 0.
    """
    (even, odd), up, down = halves, scores[0], scores[1]
    if len(there) == 0:
        for j in range(len(prior)):
            repeats, changes = even[j], odd[j]
            up[j] = (repeats + changes + prior[j] - best[j]) * factor
            down[j] = (repeats - changes + prior[j] - best[j]) * factor
    else:
        for j in range(len(prior)):
            repeats, changes = even[there[j]], odd[there[j]]
            up[j] = (repeats + changes + prior[j] - best[j]) * factor
            down[j] = (repeats - changes + prior[j] - best[j]) * factor


@_compiled
def _exponentiate(
    halves: tuple[_Array, _Array],
    places: _Array,
    scaling: tuple[_Array, _Array, float32, float32],
    weights: tuple[_Array, _Array],
    sums: _Array,
    views: int,
) -> None:
    """Sum and difference of the weights of some columns, where there is space for them, and sums over maps and rows.

    A column is a hypothesis of a row. ``places`` of the columns among all; none of them for all columns. ``scaling``:
    log-prior of each column, best score of its particle, factor of the scores, and the lowest one. ``views`` of a map.
    """
    (even, odd), (prior, best, factor, lowest), (first, second) = halves, scaling, weights
    space, bits = np.empty((3, _BLOCK), float32), np.empty(_BLOCK, int32)
    powers, (n_maps, rows) = bits.view(float32), sums.shape
    for start in range(0, len(prior), _BLOCK):
        stop = min(start + _BLOCK, len(prior))
        up, down, total = space[0, : stop - start], space[1, : stop - start], space[2, : stop - start]
        total[:] = 0
        for a in range(len(even)):
            added, top = prior[start:stop], best[start:stop]
            if len(places) == 0:
                _load_scores((even[a, start:stop], odd[a, start:stop]), places, added, top, factor, space)
            else:
                _load_scores((even[a], odd[a]), places[start:stop], added, top, factor, space)
            _exponentials(up, lowest, bits, powers)
            _exponentials(down, lowest, bits, powers)
            if len(first) > 0:
                summed, difference = first[a, start:stop], second[a, start:stop]
                for j in range(stop - start):
                    summed[j], difference[j] = up[j] + down[j], up[j] - down[j]
            for j in range(stop - start):
                total[j] += up[j] + down[j]
        for j in range(stop - start):
            place = start + j if len(places) == 0 else places[start + j]
            found = float32(0) if prior[start + j] == _NEVER else total[j]
            sums[place // rows // views % n_maps, place % rows] += found


@_inlined
def _repeat_moments(
    moments: tuple[_Array, _Array], pairs: tuple[_Array, _Array, int], k: int, real: _Array, imag: _Array
) -> None:
    """The moments of a column, one for each pair; those of the squared CTF have the first even orders."""
    (even, odd), (even_starts, odd_starts, hats) = moments, pairs
    even_real, even_imag, odd_real, odd_imag = even[k, 0], even[k, 1], odd[k, 0], odd[k, 1]
    for j in range(len(even_starts) - 1):
        start = even_starts[j]
        for i in range(even_starts[j + 1] - start):
            real[start + i], imag[start + i] = even_real[i], even_imag[i]
        start = odd_starts[j]
        for i in range(odd_starts[j + 1] - start):
            real[start + i], imag[start + i] = odd_real[i], odd_imag[i]
    start = odd_starts[-1]
    for order in range((len(real) - start) // hats):
        for i in range(start, start + hats):
            real[i], imag[i] = even_real[order], even_imag[order]
        start += hats


@_compiled
def _sum_columns(
    moments: tuple[_Array, _Array],
    columns: tuple[_Array, _Array],
    images: _Array,
    pairs: tuple[_Array, _Array, _Array, _Array, _Array],
    sums: tuple[_Array, _Array],
) -> None:
    """Add complex moments times images to the sums of their views; mirrored ones conjugated, with their sign.

    ``moments`` of each column: real and imaginary, of even orders and of odd ones. ``columns``: row of each, and the
    first one of each hypothesis. ``images``, ``pairs``: as ``_Pairs`` has them.
    """
    (row, starts), (even_starts, odd_starts, orders, terms, sign), (cross, power) = columns, pairs, sums
    count, last_cross, views = images.shape[2], odd_starts[-1], cross.shape[1]
    space = np.empty((4, count), float32)
    real, imag, of_real, of_imag = space[0], space[1], space[2], space[3]
    for hypothesis in range(2 * views):
        first, last = starts[hypothesis], starts[hypothesis + 1]
        if first == last:
            continue
        of_real[:], of_imag[:] = 0, 0
        for k in range(first, last):
            _repeat_moments(moments, (even_starts, odd_starts, power.shape[2]), k, real, imag)
            image_real, image_imag = images[row[k], 0], images[row[k], 1]
            for i in range(count):
                of_real[i] += real[i] * image_real[i] - imag[i] * image_imag[i]
                of_imag[i] += real[i] * image_imag[i] + imag[i] * image_real[i]
        is_mirrored = hypothesis >= views
        view = hypothesis - views if is_mirrored else hypothesis
        for i in range(count):
            found = cross[orders[i], view, terms[i]] if i < last_cross else power[orders[i], view, terms[i]]
            found[0] += sign[i] * of_real[i] if is_mirrored else of_real[i]
            found[1] -= sign[i] * of_imag[i] if is_mirrored else -of_imag[i]


KERNELS = _find_highest, _exponentiate, _sum_columns
