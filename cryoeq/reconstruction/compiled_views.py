"""Log-likelihoods of single views on CPUs, in kernels that numba compiles at the first use: the same as in torch.

The views of one particle are side by side in a vector. From products of coefficients to what is left of a view, the
highest of its scores or their sum, nothing leaves the processor's cache: the scores of all poses are never in memory.

With P = a + ib of a view and Z = c + id of an image, of one order, the products ac, bd, ad and bc serve the view and
its mirror: at an angle t their scores are U + V and (-1)^m (U - V), with U = ac cos(mt) - ad sin(mt) and V = bd cos(mt)
+ bc sin(mt). The sums over orders of the terms with cosines and with sines, of even orders and of odd ones, have the
scores of t, of pi - t, and of both half a turn further. So a quarter of the angles is summed.

A particle is summed by itself and in one order, so that nothing depends on its batch. Where the machine code is kept
tells ``machine_code``.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import float32, int32
from torch import Tensor

from cryoeq.geometry.disk_harmonics import DiskHarmonics
from cryoeq.reconstruction.compiled_offsets import score_one_view, shift_images
from cryoeq.reconstruction.machine_code import EXACT_ORDER, Function, compiled, inlined
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, ParticleTransforms

_Array = np.ndarray
_COLUMNS = 96  # views, or views at several offsets, side by side
_LINE = 4 * _COLUMNS  # numbers of an order: U's and V's terms with cosines, those with sines
_TERMS = 4  # radial functions, and orders, that are summed at a time; filled up with zeros
_LOG2_E, _LOWEST = float32(1 / math.log(2)), float32(-86)  # powers of 2 below are as good as 0
_HALF, _ONE = float32(0.5), float32(1)
_E1, _E2, _E3, _E4, _E5 = (float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 6))  # 2^x to 3e-6


def _compiled(function: Function) -> Function:
    return compiled(function, EXACT_ORDER)


def _inlined(function: Function) -> Function:
    return inlined(function, EXACT_ORDER)


@dataclass(frozen=True)
class CompiledViews:
    """A map's views for the kernels.

    Args:
        harmonics: basis of the images.
        even_weights: takes real parts of images to coefficients of even order, without those that are always 0.
        odd_weights: takes imaginary parts to coefficients of odd order.
        table: real and imaginary part of each coefficient of each view, then its terms of the squared CTF.
        orders: of each order its first input among all of even or odd orders, their number, and its place among
            all orders, the even ones filled up; the number of places of even orders, and of all.
        phases: cosine and sine, twice where the order is not 0, at the first quarter of the angles.
    """

    harmonics: DiskHarmonics
    even_weights: Float[Tensor, "points even_inputs"]
    odd_weights: Float[Tensor, "points odd_inputs"]
    table: Float[_Array, "views inputs"]
    orders: tuple[Int[_Array, " orders"], Int[_Array, " orders"], Int[_Array, " orders"], int, int]
    phases: Float[_Array, "quarter places 2"]

    @classmethod
    def build(
        cls,
        harmonics: DiskHarmonics,
        inplane_rad: Float[Tensor, " angles"],
        views: Float[Tensor, "orders views radial 2"],
        powers: Float[Tensor, "power_orders views hats 2"],
    ) -> "CompiledViews":
        """Pack the terms of views.

        Args:
            harmonics: basis of the images.
            inplane_rad: a multiple of four angles, half a step from 0.
            views: coefficients a + ib of each view.
            powers: those that multiply the harmonics of C^2, whose products are summed alike.
        """
        n_even, radial = harmonics.n_even, harmonics.basis.shape[-1]
        counts = np.array(harmonics.n_radial)
        filled = -(-counts // _TERMS)
        even, odd = (_columns(counts[some], radial) for some in (slice(n_even), slice(n_even, None)))
        weights = [
            torch.nn.functional.pad(values.unflatten(1, (-1, 2)), (0, 0, 0, 1))[:, index].flatten(1).contiguous()
            for values, index in ((harmonics.even_weights, even), (harmonics.odd_weights, odd))
        ]
        packed = [
            torch.nn.functional.pad(part.transpose(0, 1).flatten(1, 2), (0, 0, 0, 1))[:, index]
            for part, index in ((views[:n_even], even), (views[n_even:], odd))
        ]
        table = torch.cat([*packed, powers.transpose(0, 1).flatten(1, 2)], 1).flatten(1)
        places = np.arange(len(counts))
        last_even = -(-n_even // _TERMS) * _TERMS
        places[n_even:] += last_even - n_even
        last = last_even - (-(len(counts) - n_even) // _TERMS) * _TERMS
        inputs = 2 * _TERMS * filled
        starts = np.concatenate([np.cumsum([0, *part])[:-1] for part in (inputs[:n_even], inputs[n_even:])])
        angles = inplane_rad[: len(inplane_rad) // 4, None].double() * harmonics.orders
        twice = torch.where(harmonics.orders == 0, 1.0, 2.0)
        phases = np.zeros((len(angles), last, 2), float32)
        phases[:, places] = torch.stack([twice * angles.cos(), twice * angles.sin()], -1).numpy()
        orders = (starts.astype(int32), inputs.astype(int32), places.astype(int32), last_even, last)
        return cls(harmonics, weights[0], weights[1], table.contiguous().numpy(), orders, phases)

    def highest(
        self,
        particles: ParticleTransforms,
        chosen: Int[Tensor, "particles chosen"],
        offsets_px: Float[Tensor, "particles offsets 2"],
    ) -> Float[Tensor, "particles chosen offsets"]:
        """The highest score of each view at each offset, over angles and mirrors."""
        found = offsets_px.new_empty(*chosen.shape, offsets_px.shape[1])
        self._run(particles, chosen, offsets_px, (found, found[:0]))
        return found

    def sums(
        self,
        particles: ParticleTransforms,
        chosen: Int[Tensor, "particles chosen"],
        offsets_px: Float[Tensor, "particles offsets 2"],
    ) -> tuple[Float[Tensor, "particles chosen offsets"], Float[Tensor, "particles chosen offsets"]]:
        """The highest score, and the sum of all exponentials over that of the highest."""
        top, total = (offsets_px.new_empty(*chosen.shape, offsets_px.shape[1]) for _ in range(2))
        self._run(particles, chosen, offsets_px, (top, total))
        return top, total

    def scores(
        self, particles: ParticleTransforms, views: Int[Tensor, " particles"], offsets_px: Float[Tensor, "particles 2"]
    ) -> Float[Tensor, "particles mirrors angles"]:
        """All scores of one view of each particle at one offset."""
        found = offsets_px.new_empty(len(views), 2, 4 * len(self.phases))
        given = self.table, views.contiguous().numpy()
        score_one_view(self._terms(particles, offsets_px[:, None]), given, self.phases, self.orders, found.numpy())
        return found

    def _run(
        self,
        particles: ParticleTransforms,
        chosen: Int[Tensor, "particles chosen"],
        offsets_px: Float[Tensor, "particles offsets 2"],
        found: tuple[Tensor, Tensor],
    ) -> None:
        given = self.table, chosen.contiguous().numpy()
        space = found[0].numpy(), found[1].numpy()
        _sum_views(self._terms(particles, offsets_px), given, self.phases, self.orders, space)

    def _terms(
        self, particles: ParticleTransforms, offsets_px: Float[Tensor, "particles offsets 2"]
    ) -> tuple[_Array, _Array, _Array]:
        """Coefficients of even and odd order of each particle at each offset, and of its squared CTF."""
        (count, n_offsets), plane = offsets_px.shape[:2], self.harmonics.plane
        # Products of a single row are summed in another order than that row among others.
        real, imag = (offsets_px.new_zeros(max(2, count * n_offsets), len(plane)) for _ in range(2))
        images = torch.view_as_real(particles.ctf_multiplied.contiguous()).numpy()
        turns = (offsets_px * (2 * math.pi / plane.box_size_px)).contiguous().numpy()
        shift_images(images, turns, plane.coords.numpy(), (real.numpy(), imag.numpy()))
        even, odd = (real @ self.even_weights).numpy(), (imag @ self.odd_weights).numpy()
        return even, odd, particles.ctf_squared_harmonics.transpose(0, 1).contiguous().numpy()


def _columns(counts: Int[_Array, " orders"], radial: int) -> Int[Tensor, " filled"]:
    """Index of each coefficient among all of as many orders; that after the last where there is none."""
    terms = np.arange(-(-radial // _TERMS) * _TERMS)
    index = np.arange(len(counts))[:, None] * radial + terms
    index = np.where(terms < counts[:, None], index, len(counts) * radial)
    return torch.from_numpy(index[terms < -(-counts[:, None] // _TERMS) * _TERMS])


@_inlined
def _gather(table: _Array, chosen: _Array, views: _Array) -> None:
    """Coefficients of some views, side by side."""
    for v in range(len(chosen)):
        row = table[chosen[v]]
        for k in range(len(row)):
            views[k * _COLUMNS + v] = row[k]


@_inlined
def _sum_powers(views: _Array, power: _Array, count: int, summed: _Array) -> None:
    """Terms of the squared CTF, the same at all offsets; zeros for the orders that it has none of."""
    summed[:] = 0
    for order in range(POWER_ORDERS):
        line = summed[order * _LINE :]
        for hat in range(power.shape[1]):
            c, d = power[order, hat, 0], power[order, hat, 1]
            there = views[(order * power.shape[1] + hat) * 2 * _COLUMNS :]
            for v in range(count):
                a, b = there[v], there[v + _COLUMNS]
                line[v] += a * c
                line[v + _COLUMNS] += b * d
                line[v + 2 * _COLUMNS] -= a * d
                line[v + 3 * _COLUMNS] += b * c


@_inlined
def _add_products(views: _Array, image: _Array, count: int, line: _Array) -> None:
    """Products of an order's coefficients."""
    for lot in range(0, len(image), 2 * _TERMS):
        z, there = image[lot : lot + 2 * _TERMS], views[lot * _COLUMNS :]
        c0, d0, c1, d1, c2, d2, c3, d3 = z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7]
        for v in range(count):
            a0, b0, a1, b1 = there[v], there[v + _COLUMNS], there[v + 2 * _COLUMNS], there[v + 3 * _COLUMNS]
            a2, b2 = there[v + 4 * _COLUMNS], there[v + 5 * _COLUMNS]
            a3, b3 = there[v + 6 * _COLUMNS], there[v + 7 * _COLUMNS]
            line[v] += a0 * c0 + a1 * c1 + a2 * c2 + a3 * c3
            line[v + _COLUMNS] += b0 * d0 + b1 * d1 + b2 * d2 + b3 * d3
            line[v + 2 * _COLUMNS] -= a0 * d0 + a1 * d1 + a2 * d2 + a3 * d3
            line[v + 3 * _COLUMNS] += b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3


@_inlined
def _make_series(
    views: _Array,
    images: tuple[_Array, _Array],
    orders: tuple[_Array, _Array, _Array, int, int],
    summed: _Array,
    count: int,
    series: _Array,
) -> None:
    """Terms of all orders, of some views at a few offsets of one particle. ``images``: a row for each offset."""
    (starts, inputs, places, last_even, _), (even, odd) = orders, images
    for m in range(len(starts)):
        is_even = places[m] < last_even
        image = even if is_even else odd
        there = views[(starts[m] + (0 if is_even else even.shape[1])) * _COLUMNS :]
        for j in range(len(even)):
            line = series[places[m] * _LINE + j * count :]
            for kind in range(4):
                of_kind, of_power = line[kind * _COLUMNS :], summed[min(m, POWER_ORDERS) * _LINE + kind * _COLUMNS :]
                for v in range(count):
                    of_kind[v] = of_power[v]
            _add_products(there, image[j, starts[m] : starts[m] + inputs[m]], count, line)


@_inlined
def _add_angles(series: _Array, first: int, last: int, one: _Array, other: _Array, found: _Array) -> None:
    """Terms with cosines and with sines, summed over some orders, at two angles."""
    found[:] = 0
    for place in range(first, last, _TERMS):
        line, t, u = series[place * _LINE :], one[place : place + _TERMS], other[place : place + _TERMS]
        t0, t1, t2, t3 = t[0, 0], t[1, 0], t[2, 0], t[3, 0]
        s0, s1, s2, s3 = t[0, 1], t[1, 1], t[2, 1], t[3, 1]
        u0, u1, u2, u3 = u[0, 0], u[1, 0], u[2, 0], u[3, 0]
        r0, r1, r2, r3 = u[0, 1], u[1, 1], u[2, 1], u[3, 1]
        for j in range(2 * _COLUMNS):
            x0, x1, x2, x3 = line[j], line[j + _LINE], line[j + 2 * _LINE], line[j + 3 * _LINE]
            found[j] += x0 * t0 + x1 * t1 + x2 * t2 + x3 * t3
            found[j + 4 * _COLUMNS] += x0 * u0 + x1 * u1 + x2 * u2 + x3 * u3
        turned = line[2 * _COLUMNS :]
        for j in range(2 * _COLUMNS):
            x0, x1, x2, x3 = turned[j], turned[j + _LINE], turned[j + 2 * _LINE], turned[j + 3 * _LINE]
            found[j + 2 * _COLUMNS] += x0 * s0 + x1 * s1 + x2 * s2 + x3 * s3
            found[j + 6 * _COLUMNS] += x0 * r0 + x1 * r1 + x2 * r2 + x3 * r3


@_inlined
def _halves(of_even: _Array, of_odd: _Array, halves: _Array) -> None:
    """Four pairs of halves of scores, whose sums and differences are the scores of the eight poses of an angle."""
    for j in range(_COLUMNS):
        u, v = of_even[j], of_even[j + _COLUMNS]
        su, sv = of_even[j + 2 * _COLUMNS], of_even[j + 3 * _COLUMNS]
        p, q, m, n = u + su, u - su, v + sv, v - sv
        halves[j], halves[j + _COLUMNS] = p + m, p - m
        halves[j + 2 * _COLUMNS], halves[j + 3 * _COLUMNS] = q + n, q - n
    for j in range(_COLUMNS):
        u, v = of_odd[j], of_odd[j + _COLUMNS]
        su, sv = of_odd[j + 2 * _COLUMNS], of_odd[j + 3 * _COLUMNS]
        p, q, m, n = u + su, u - su, v + sv, v - sv
        halves[j + 4 * _COLUMNS], halves[j + 5 * _COLUMNS] = abs(p + m), abs(p - m)
        halves[j + 6 * _COLUMNS], halves[j + 7 * _COLUMNS] = abs(q + n), abs(q - n)


@_inlined
def _raise_highest(halves: _Array, best: _Array) -> None:
    for j in range(_COLUMNS):
        top = best[j]
        for k in range(4):
            score = halves[j + k * _COLUMNS] + halves[j + (k + 4) * _COLUMNS]
            # What is no number replaces what is before it.
            top = top if score <= top else score
        best[j] = top


@_inlined
def _add_exponentials(halves: _Array, best: _Array, space: tuple[_Array, _Array], whole: _Array) -> None:
    """Sum of the exponentials of scores over that of the best one."""
    values, bits = space
    whole[:] = 0
    powers = bits.view(float32)
    for angle in range(len(halves)):
        for k in range(4):
            mean, half = halves[angle, k * _COLUMNS :], halves[angle, (k + 4) * _COLUMNS :]
            for j in range(_COLUMNS):
                repeats, changes = (mean[j] - best[j]) * _LOG2_E, half[j] * _LOG2_E
                up, down = max(repeats + changes, _LOWEST), max(repeats - changes, _LOWEST)
                n, m = np.floor(up + _HALF), np.floor(down + _HALF)
                x, y = up - n, down - m
                bits[j], bits[j + _COLUMNS] = (int32(n) + int32(127)) << int32(23), (int32(m) + int32(127)) << int32(23)
                values[j] = ((((_E5 * x + _E4) * x + _E3) * x + _E2) * x + _E1) * x + _ONE
                values[j + _COLUMNS] = ((((_E5 * y + _E4) * y + _E3) * y + _E2) * y + _E1) * y + _ONE
            for j in range(_COLUMNS):
                whole[j] += values[j] * powers[j] + values[j + _COLUMNS] * powers[j + _COLUMNS]


@_inlined
def _score(
    series: _Array, phases: _Array, last_even: int, sums: tuple[_Array, _Array], halves: _Array, best: _Array
) -> None:
    """Halves of the scores at all angles, or at the last one where there is space for one, and the highest score."""
    (of_even, of_odd), n_angles = sums, len(phases)
    best[:] = -np.inf
    for angle in range(0, n_angles, 2):
        one, other = phases[angle], phases[min(angle + 1, n_angles - 1)]
        _add_angles(series, 0, last_even, one, other, of_even)
        _add_angles(series, last_even, phases.shape[1], one, other, of_odd)
        for k in range(min(2, n_angles - angle)):
            there = halves[min(angle + k, len(halves) - 1)]
            _halves(of_even[4 * k * _COLUMNS :], of_odd[4 * k * _COLUMNS :], there)
            _raise_highest(there, best)


@_inlined
def _write(values: _Array, first: int, found: _Array) -> None:
    """From columns, all views at one offset after the other, to views and offsets."""
    for j in range(min(_COLUMNS // len(found), found.shape[1] - first)):
        for v in range(len(found)):
            found[v, first + j] = values[j * len(found) + v]


@_compiled
def _sum_views(
    images: tuple[_Array, _Array, _Array],
    given: tuple[_Array, _Array],
    phases: _Array,
    orders: tuple[_Array, _Array, _Array, int, int],
    found: tuple[_Array, _Array],
) -> None:
    """Highest score of each view, and the sum of exponentials where there is space for it, a few views at a time.

    ``images``: coefficients of even and of odd order, a row for each particle and offset, and of the squared CTF.
    ``given``: the views' table, and those chosen for each particle.
    """
    (even, odd, powers), (table, chosen), (top, total) = images, given, found
    n_offsets, has_sums = top.shape[2], len(total) > 0
    views, series = np.empty(table.shape[1] * _COLUMNS, float32), np.zeros(phases.shape[1] * _LINE, float32)
    summed = np.zeros((POWER_ORDERS + 1) * _LINE, float32)
    sums = np.empty(8 * _COLUMNS, float32), np.empty(8 * _COLUMNS, float32)
    halves = np.empty((len(phases) if has_sums else 1, 8 * _COLUMNS), float32)
    best, whole = np.empty(_COLUMNS, float32), np.empty(_COLUMNS, float32)
    space = np.empty(2 * _COLUMNS, float32), np.empty(2 * _COLUMNS, int32)
    for i in range(len(chosen)):
        for start in range(0, chosen.shape[1], _COLUMNS):
            some = chosen[i, start : start + _COLUMNS]
            stop, at_once = start + len(some), _COLUMNS // len(some)
            _gather(table, some, views)
            _sum_powers(views[(even.shape[1] + odd.shape[1]) * _COLUMNS :], powers[i], len(some), summed)
            for offset in range(0, n_offsets, at_once):
                rows = slice(i * n_offsets + offset, i * n_offsets + min(offset + at_once, n_offsets))
                _make_series(views, (even[rows], odd[rows]), orders, summed, len(some), series)
                _score(series, phases, orders[3], sums, halves, best)
                _write(best, offset, top[i, start:stop])
                if has_sums:
                    _add_exponentials(halves, best, space, whole)
                    _write(whole, offset, total[i, start:stop])


KERNELS = (_sum_views,)
