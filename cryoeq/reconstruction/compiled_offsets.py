"""Images at several offsets, and single views and poses of them, on CPUs: kernels that numba compiles at the first use.

A particle is summed by itself and in one order, so that nothing depends on its batch. Where the machine code is kept
tells ``machine_code``.
"""

import math

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import float32
from torch import Tensor

from cryoeq.reconstruction.machine_code import EXACT_ORDER, Function, compiled, inlined
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_Array = np.ndarray
_HALF, _NEIGHBOURS = float32(0.5), 5


def _compiled(function: Function) -> Function:
    return compiled(function, EXACT_ORDER)


def _inlined(function: Function) -> Function:
    return inlined(function, EXACT_ORDER)


def compiled_scores_around(
    padded: Complex[Tensor, "m m m"],
    weights: Float[Tensor, " points"],
    particles: ParticleTransforms,
    rotations: Float[Tensor, "particles poses 3 3"],
    offsets_px: Float[Tensor, "particles poses 2"],
    step_px: float,
) -> Float[Tensor, "particles poses 5"]:
    """As ``log_likelihoods_around``.

    Args:
        padded: oversampled transform of the map.
        weights: inverse noise variance of each coefficient, times its multiplicity.
        particles: the particles, whose coefficients are nearer than the last samples but one.
        rotations: RELION's matrices A of a few poses of each.
        offsets_px: the middle offset of each pose.
        step_px: distance of the neighbours.
    """
    plane, found = particles.plane, offsets_px.new_empty(*offsets_px.shape[:2], _NEIGHBOURS)
    radians = 2 * math.pi / plane.box_size_px
    _score_around(
        torch.view_as_real(padded.contiguous()).numpy(),
        (plane.coords.numpy(), weights.contiguous().numpy(), plane.box_size_px),
        (torch.view_as_real(particles.ctf_multiplied.contiguous()).numpy(), particles.ctf_squared.contiguous().numpy()),
        (rotations.contiguous().numpy(), (offsets_px * radians).contiguous().numpy(), step_px * radians),
        found.numpy(),
    )
    return found


@_inlined
def _turn(angle: float, cos: _Array, sin: _Array) -> None:
    """Cosine and sine of all multiples of an angle, the 0th in the middle."""
    reach, x, y, to_x, to_y = len(cos) // 2, 1.0, 0.0, math.cos(angle), math.sin(angle)
    for k in range(reach + 1):
        cos[reach + k], cos[reach - k], sin[reach + k], sin[reach - k] = x, x, y, -y
        x, y = x * to_x - y * to_y, x * to_y + y * to_x


@_compiled
def shift_images(images: _Array, turns: _Array, coords: _Array, shifted: tuple[_Array, _Array]) -> None:
    """Images at each of their offsets.

    Args:
        images: coefficients of each image, real and imaginary part.
        turns: offsets of each, in radians per cycle per box.
        coords: kx and ky of each coefficient.
        shifted: space for real and imaginary parts, a row for each image and offset.
    """
    reach = 0
    for p in range(len(coords)):
        reach = max(reach, abs(coords[p, 0]), abs(coords[p, 1]))
    table, (real, imag) = np.empty((4, 2 * reach + 1), float32), shifted
    for row in range(turns.shape[0] * turns.shape[1]):
        i, j = row // turns.shape[1], row % turns.shape[1]
        _turn(turns[i, j, 0], table[0], table[1])
        _turn(turns[i, j, 1], table[2], table[3])
        of_real, of_imag, image = real[row], imag[row], images[i]
        for p in range(len(coords)):
            kx, ky = coords[p, 0] + reach, coords[p, 1] + reach
            cos = table[0, kx] * table[2, ky] - table[1, kx] * table[3, ky]
            sin = table[1, kx] * table[2, ky] + table[0, kx] * table[3, ky]
            of_real[p] = image[p, 0] * cos + image[p, 1] * sin
            of_imag[p] = image[p, 1] * cos - image[p, 0] * sin


@_inlined
def _sample(padded: _Array, coords: _Array, rotation: _Array, scale: float32, slices: _Array) -> None:
    """Slice of a map: real and imaginary parts, trilinear."""
    m = len(padded)
    centre = float32(m // 2)
    for p in range(len(coords)):
        kx, ky = float32(coords[p, 0]) * scale, float32(coords[p, 1]) * scale
        x = kx * rotation[0, 0] + ky * rotation[1, 0] + centre
        y = kx * rotation[0, 1] + ky * rotation[1, 1] + centre
        z = kx * rotation[0, 2] + ky * rotation[1, 2] + centre
        i, j, k = np.uint64(x), np.uint64(y), np.uint64(z)
        u, v, w = x - float32(i), y - float32(j), z - float32(k)
        far_i, far_j, far_k = i + np.uint64(1), j + np.uint64(1), k + np.uint64(1)
        for part in range(2):
            a, b = padded[k, j, i, part], padded[k, j, far_i, part]
            c, d = padded[k, far_j, i, part], padded[k, far_j, far_i, part]
            e, f = padded[far_k, j, i, part], padded[far_k, j, far_i, part]
            g, h = padded[far_k, far_j, i, part], padded[far_k, far_j, far_i, part]
            a, c, e, g = a + u * (b - a), c + u * (d - c), e + u * (f - e), g + u * (h - g)
            a, e = a + v * (c - a), e + v * (g - e)
            slices[part, p] = a + w * (e - a)


@_compiled
def _score_around(
    padded: _Array,
    plane: tuple[_Array, _Array, int],
    images: tuple[_Array, _Array],
    poses: tuple[_Array, _Array, float],
    found: _Array,
) -> None:
    """``plane``: coefficients, their weights, side of the box. ``poses``: rotations, offsets and step in radians."""
    (coords, weights, n), (matched, squared), (rotations, turns, step) = plane, images, poses
    reach, scale = 0, float32(len(padded) / n)
    for p in range(len(coords)):
        reach = max(reach, abs(coords[p, 0]), abs(coords[p, 1]))
    table, slices = np.empty((6, 2 * reach + 1), float32), np.empty((2, len(coords)), float32)
    _turn(step, table[4], table[5])
    for i in range(found.shape[0]):
        for pose in range(found.shape[1]):
            _sample(padded, coords, rotations[i, pose], scale, slices)
            _turn(turns[i, pose, 0], table[0], table[1])
            _turn(turns[i, pose, 1], table[2], table[3])
            middle, power = float32(0), float32(0)
            along_x, across_x, along_y, across_y = float32(0), float32(0), float32(0), float32(0)
            for p in range(len(coords)):
                kx, ky, a, b = coords[p, 0] + reach, coords[p, 1] + reach, slices[0, p], slices[1, p]
                c, d = matched[i, p, 0] * weights[p], matched[i, p, 1] * weights[p]
                real, imag = c * a + d * b, d * a - c * b
                cos = table[0, kx] * table[2, ky] - table[1, kx] * table[3, ky]
                sin = table[1, kx] * table[2, ky] + table[0, kx] * table[3, ky]
                real, imag = real * cos + imag * sin, imag * cos - real * sin
                middle += real
                power += (a * a + b * b) * squared[i, p] * weights[p]
                along_x += real * table[4, kx]
                across_x += imag * table[5, kx]
                along_y += real * table[4, ky]
                across_y += imag * table[5, ky]
            power *= _HALF
            scores = found[i, pose]
            scores[0] = middle - power
            scores[1], scores[2] = along_x + across_x - power, along_x - across_x - power
            scores[3], scores[4] = along_y + across_y - power, along_y - across_y - power


@_inlined
def _add_line(row: _Array, image: _Array, line: _Array) -> None:
    for k in range(len(image) // 2):
        a, b, c, d = row[2 * k], row[2 * k + 1], image[2 * k], image[2 * k + 1]
        line[0] += a * c
        line[1] += b * d
        line[2] -= a * d
        line[3] += b * c


@_compiled
def score_one_view(
    images: tuple[_Array, _Array, _Array],
    given: tuple[_Array, _Array],
    phases: _Array,
    orders: tuple[_Array, _Array, _Array, int, int],
    found: _Array,
) -> None:
    """As ``CompiledViews.scores``.

    Args:
        images: coefficients of even and of odd order, and of the squared CTF, of each particle.
        given: the views' table, and that of each particle.
        phases: as ``CompiledViews`` has them.
        orders: as ``CompiledViews`` has them.
        found: space for the scores.
    """
    (even, odd, powers), (table, views), quarter = images, given, len(phases)
    starts, inputs, places, last_even, _ = orders
    hats, line, sums = powers.shape[2], np.empty(4, float32), np.empty((2, 4, quarter), float32)
    turned = np.ascontiguousarray(phases.transpose(1, 2, 0))
    for i in range(len(views)):
        row = table[views[i]]
        sums[:] = 0
        for m in range(len(starts)):
            line[:] = 0
            is_even = places[m] < last_even
            image = even[i] if is_even else odd[i]
            first, count = starts[m], inputs[m]
            _add_line(row[first + (0 if is_even else even.shape[1]) :], image[first : first + count], line)
            if m < powers.shape[1]:
                there = row[even.shape[1] + odd.shape[1] + 2 * hats * m :]
                _add_line(there, powers[i, m].reshape(-1), line)
            cos, sin, total = turned[places[m], 0], turned[places[m], 1], sums[0 if is_even else 1]
            for t in range(quarter):
                total[0, t] += line[0] * cos[t]
                total[1, t] += line[1] * cos[t]
                total[2, t] += line[2] * sin[t]
                total[3, t] += line[3] * sin[t]
        for t in range(quarter):
            for side in range(2):
                sign = float32(1 - 2 * side)
                u, v = sums[0, 0, t] + sign * sums[0, 2, t], sums[0, 1, t] + sign * sums[0, 3, t]
                p, q = sign * (sums[1, 0, t] + sign * sums[1, 2, t]), sign * (sums[1, 1, t] + sign * sums[1, 3, t])
                here = t if side == 0 else 2 * quarter - 1 - t
                found[i, 0, here], found[i, 0, here + 2 * quarter] = u + v + p + q, u + v - p - q
                found[i, 1, here], found[i, 1, here + 2 * quarter] = u - v - p + q, u - v + p - q


KERNELS = shift_images, score_one_view, _score_around
