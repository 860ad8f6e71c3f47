"""Local refinement as a kernel for CPUs, compiled by numba at the first use: the same steps as in torch.

Image by image, so that the samples of the map that one evaluation has read are still in the cache at the next. An
evaluation goes line by line of the half plane: the samples around each coefficient, the slice and its gradient from
them, then the sums of ``normal_equations``. The samples of a line fit the first cache, so that what follows them reads
no memory but the image. Along a line ky is constant: sums need the powers of kx alone.

An image is summed by one thread in one order: results depend neither on the batch nor on the number of threads. The
machine code is kept beside this file, or, where that may not be written to, in the user's cache folder. All of it is in
this file, whose date tells numba whether what it has kept is still valid.
"""

import inspect
import math
from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from numpy import float32
from torch import Tensor

from cryoeq.reconstruction.normal_equations import (
    FIRST_DAMPING,
    MAX_STEP_PX,
    MAX_STEP_RAD,
    MIN_GAIN,
    NormalEquations,
    WeightedImages,
)

_Function = TypeVar("_Function", bound=Callable[..., object])
_Array = np.ndarray
# Sums in any order, and fused products; infinities and NaN stay what they are.
_FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
_MAX_LINE = 64  # coefficients at a time, whose samples fit the first cache
_N_SUMS = 21  # value, 5 of the gradient, 15 of the curvature's upper triangle


def _compiled(function: _Function) -> _Function:
    """The function as machine code, kept for the next process where there is a folder for it."""
    plain = inspect.unwrap(function)  # without the checks of shapes that tests put around it
    try:
        return numba.njit(plain, cache=True, nogil=True, fastmath=_FAST_MATH)
    except RuntimeError:  # no folder to write to
        return numba.njit(plain, nogil=True, fastmath=_FAST_MATH)


def _inlined(function: _Function) -> _Function:
    """A part of the kernel, compiled into it.

    Functions of their own are inlined by another rule when just compiled than when read from the cache, and rounded
    otherwise: the first process after an installation would have other results than the next.
    """
    return numba.njit(inspect.unwrap(function), nogil=True, fastmath=_FAST_MATH, inline="always")


def compiled_refinement(
    observed: WeightedImages,
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
    *,
    shift_sigma_px: float,
    steps: int,
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"], NormalEquations]:
    """As ``local_refinement.refine_in_torch``, in float32 on the CPU.

    Args:
        observed: the images.
        padded: oversampled transform of the map.
        rotations: initial rotations, RELION's matrices A.
        shifts_px: initial offsets.
        shift_sigma_px: standard deviation of the prior of offsets; where it is 0 they stay.
        steps: most Gauss-Newton steps.

    Returns:
        Rotations, offsets, and the normal equations there.
    """
    sums = np.zeros((len(rotations), _N_SUMS))
    poses = rotations.numpy().copy(), shifts_px.numpy().copy()
    _refine_images(
        (_as_floats(observed.images), observed.precision.contiguous().numpy()),
        # A sample is one number of 8 bytes as long as it is only moved.
        padded.contiguous().numpy().view(np.float64),
        poses,
        (_lines(observed.plane.coords.numpy()), observed.plane.box_size_px),
        # What stands in other files is passed: numba would keep machine code with their old values.
        (shift_sigma_px, steps, FIRST_DAMPING, MAX_STEP_RAD, MAX_STEP_PX, MIN_GAIN),
        sums,
    )
    found = torch.from_numpy(sums).float()
    curvature = found.new_empty(len(found), 5, 5)
    row, column = torch.triu_indices(5, 5)
    curvature[:, row, column] = curvature[:, column, row] = found[:, 6:]
    equations = NormalEquations(found[:, 0], found[:, 1:6], curvature)
    return torch.from_numpy(poses[0]), torch.from_numpy(poses[1]), equations


def _as_floats(values: Complex[Tensor, "..."]) -> _Array:
    return torch.view_as_real(values.contiguous()).flatten(-2).numpy()


def _lines(coords: Int[_Array, "points 2"]) -> Int[_Array, "lines 4"]:
    """First coefficient, number of coefficients, first kx, and ky of each line: of neighbours only, and none long."""
    kx, ky = coords.T
    is_next = (np.diff(ky, prepend=ky[0] - 1) == 0) & (np.diff(kx, prepend=kx[0]) == 1)
    places = np.arange(len(kx))
    first = np.flatnonzero((places - np.maximum.accumulate(np.where(is_next, 0, places))) % _MAX_LINE == 0)
    return np.stack([first, np.diff(first, append=len(ky)), kx[first], ky[first]], 1)


@_inlined
def _gather(line: _Array, rotation: _Array, scale: float32, padded: _Array, offsets: _Array, samples: _Array) -> None:
    """The 20 samples of the transform around each coefficient, and its position (x, y, z) in their cell.

    First the eight of the cell, x before y before z; then four beyond it on the nearer side of each axis.
    """
    m = len(padded)
    flat, step_y, step_z = padded.reshape(-1), np.uint64(m), np.uint64(m * m)
    half, low, high, middle = float32(m // 2), float32(1), float32(m - 3), float32(0.5)
    for j in range(line[1]):
        kx, ky = scale * float32(line[2] + j), scale * float32(line[3])
        x = kx * rotation[0, 0] + ky * rotation[1, 0] + half
        y = kx * rotation[0, 1] + ky * rotation[1, 1] + half
        z = kx * rotation[0, 2] + ky * rotation[1, 2] + half
        cell_x = np.int64(min(max(x, low), high))
        cell_y = np.int64(min(max(y, low), high))
        cell_z = np.int64(min(max(z, low), high))
        x, y, z = x - float32(cell_x), y - float32(cell_y), z - float32(cell_z)
        for part in range(2):
            offsets[0, 2 * j + part], offsets[1, 2 * j + part], offsets[2, 2 * j + part] = x, y, z
        cell = (cell_z * m + cell_y) * m + cell_x
        # Unsigned, so that no index is taken as counted from the end.
        corner = np.uint64(cell)
        beyond_x = np.uint64(cell + (-1 if x < middle else 2))
        beyond_y = np.uint64(cell + (-1 if y < middle else 2) * m)
        beyond_z = np.uint64(cell + (-1 if z < middle else 2) * m * m)
        one = np.uint64(1)
        for i, start in enumerate((corner, corner + step_y, corner + step_z, corner + step_y + step_z)):
            samples[2 * i, j], samples[2 * i + 1, j] = flat[start], flat[start + one]
        for i, start in enumerate((beyond_x, beyond_x + step_y, beyond_x + step_z, beyond_x + step_y + step_z)):
            samples[8 + i, j] = flat[start]
        for i, start in enumerate((beyond_y, beyond_y + step_z, beyond_z, beyond_z + step_y)):
            samples[12 + 2 * i, j], samples[13 + 2 * i, j] = flat[start], flat[start + one]


@_inlined
def _between(low: float32, high: float32, position: float32) -> float32:
    return low + position * (high - low)


@_inlined
def _slope(low: float32, high: float32, beyond: float32, position: float32) -> float32:
    """Derivative between two samples, from their difference and that with the nearest sample beyond: continuous."""
    within, middle = high - low, float32(0.5)
    outside = low - beyond if position < middle else beyond - high
    return within + abs(position - middle) * (outside - within)


@_inlined
def _interpolate(count: int, s: _Array, offsets: _Array, sampled: _Array) -> None:
    """Slice and its derivatives along x, y, z from the samples; real and imaginary parts in turn, as samples are."""
    for j in range(2 * count):
        x, y, z = offsets[0, j], offsets[1, j], offsets[2, j]
        # Along x: lines by (y, z) of the cell, then those beyond it in y and in z.
        v00, v10 = _between(s[0, j], s[1, j], x), _between(s[2, j], s[3, j], x)
        v01, v11 = _between(s[4, j], s[5, j], x), _between(s[6, j], s[7, j], x)
        beyond_y = _between(_between(s[12, j], s[13, j], x), _between(s[14, j], s[15, j], x), z)
        beyond_z = _between(_between(s[16, j], s[17, j], x), _between(s[18, j], s[19, j], x), y)
        slope_0 = _between(_slope(s[0, j], s[1, j], s[8, j], x), _slope(s[2, j], s[3, j], s[9, j], x), y)
        slope_1 = _between(_slope(s[4, j], s[5, j], s[10, j], x), _slope(s[6, j], s[7, j], s[11, j], x), y)
        low, high = _between(v00, v10, y), _between(v01, v11, y)
        sampled[0, j] = _between(low, high, z)
        sampled[1, j] = _between(slope_0, slope_1, z)
        sampled[2, j] = _slope(_between(v00, v01, z), _between(v10, v11, z), beyond_y, y)
        sampled[3, j] = _slope(low, high, beyond_z, z)


@_inlined
def _turn_gradient(line: _Array, rotation: _Array, scale: float32, sampled: _Array, turned: _Array) -> None:
    """Slice, derivative along the view, and by a turn in the plane: real parts, then imaginary parts, of each."""
    for j in range(line[1]):
        kx, ky = scale * float32(line[2] + j), scale * float32(line[3])
        turn_x = ky * rotation[0, 0] - kx * rotation[1, 0]
        turn_y = ky * rotation[0, 1] - kx * rotation[1, 1]
        turn_z = ky * rotation[0, 2] - kx * rotation[1, 2]
        for part in range(2):
            x, y, z = sampled[1, 2 * j + part], sampled[2, 2 * j + part], sampled[3, 2 * j + part]
            turned[part, j] = sampled[0, 2 * j + part]
            turned[2 + part, j] = scale * (rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z)
            turned[4 + part, j] = turn_x * x + turn_y * y + turn_z * z


@_inlined
def _centre(line: _Array, image: _Array, phases: _Array, phase: _Array, centred: _Array) -> None:
    """A line of the image times its phases: one for each kx, one for the line."""
    start = line[2] + phases.shape[1] // 2
    for j in range(line[1]):
        cosine = phases[0, start + j] * phase[0] - phases[1, start + j] * phase[1]
        sine = phases[0, start + j] * phase[1] + phases[1, start + j] * phase[0]
        centred[0, j] = image[2 * j] * cosine - image[2 * j + 1] * sine
        centred[1, j] = image[2 * j] * sine + image[2 * j + 1] * cosine


@_inlined
def _add_gradient(line: _Array, centred: _Array, precision: _Array, sampled: _Array, sums: _Array) -> None:
    """Value and gradient of a line."""
    count, first, ky = line[1], line[2], float32(line[3])
    value = view_0 = view_1 = turned = shift_0 = shift_1 = float32(0)
    for j in range(count):
        kx = float32(first + j)
        real = centred[0, j] - precision[j] * sampled[0, j]
        imag = centred[1, j] - precision[j] * sampled[1, j]
        value += sampled[0, j] * (centred[0, j] + real) + sampled[1, j] * (centred[1, j] + imag)
        view = sampled[2, j] * real + sampled[3, j] * imag
        shift = sampled[0, j] * imag - sampled[1, j] * real
        view_0 += view
        view_1 += kx * view
        turned += sampled[4, j] * real + sampled[5, j] * imag
        shift_0 += shift
        shift_1 += kx * shift
    sums[0] += value / 2
    sums[1] -= ky * view_0
    sums[2] += view_1
    sums[3] += turned
    sums[4] += shift_1
    sums[5] += ky * shift_0


@_inlined
def _add_curvature(line: _Array, precision: _Array, sampled: _Array, sums: _Array) -> None:
    """Curvature of a line, from products of the derivatives along the view, by a turn, and of the slice itself."""
    count, first, ky = line[1], line[2], float32(line[3])
    vv_0 = vv_1 = vv_2 = vt_0 = vt_1 = tt = vs_0 = vs_1 = vs_2 = ts_0 = ts_1 = ss_0 = ss_1 = ss_2 = float32(0)
    for j in range(count):
        kx = float32(first + j)
        slice_real, slice_imag = precision[j] * sampled[0, j], precision[j] * sampled[1, j]
        view_real, view_imag, turn_real, turn_imag = sampled[2, j], sampled[3, j], sampled[4, j], sampled[5, j]
        vv = precision[j] * (view_real * view_real + view_imag * view_imag)
        vt = precision[j] * (view_real * turn_real + view_imag * turn_imag)
        vs = view_imag * slice_real - view_real * slice_imag
        ts = turn_imag * slice_real - turn_real * slice_imag
        ss = slice_real * sampled[0, j] + slice_imag * sampled[1, j]
        tt += precision[j] * (turn_real * turn_real + turn_imag * turn_imag)
        vv_0, vv_1, vv_2 = vv_0 + vv, vv_1 + kx * vv, vv_2 + kx * kx * vv
        vt_0, vt_1 = vt_0 + vt, vt_1 + kx * vt
        vs_0, vs_1, vs_2 = vs_0 + vs, vs_1 + kx * vs, vs_2 + kx * kx * vs
        ts_0, ts_1 = ts_0 + ts, ts_1 + kx * ts
        ss_0, ss_1, ss_2 = ss_0 + ss, ss_1 + kx * ss, ss_2 + kx * kx * ss
    sums[6] += ky * ky * vv_0
    sums[7] -= ky * vv_1
    sums[8] -= ky * vt_0
    sums[9] -= ky * vs_1
    sums[10] -= ky * ky * vs_0
    sums[11] += vv_2
    sums[12] += vt_1
    sums[13] += vs_2
    sums[14] += ky * vs_1
    sums[15] += tt
    sums[16] += ts_1
    sums[17] += ky * ts_0
    sums[18] += ss_2
    sums[19] += ky * ss_1
    sums[20] += ky * ky * ss_0


@_inlined
def _evaluate(
    observed: tuple[_Array, _Array],
    padded: _Array,
    pose: tuple[_Array, _Array],
    plane: tuple[_Array, int],
    sigma_px: float,
    sums: _Array,
) -> None:
    """Normal equations of one image at its pose of rotation and shift, as value, gradient and upper triangle."""
    (image, precision), (rotation, shift_px), (lines, n) = observed, pose, plane
    scale, radians = float32(len(padded) / n), float32(2 * math.pi / n)
    samples, offsets = np.empty((20, _MAX_LINE), np.float64), np.empty((3, 2 * _MAX_LINE), float32)
    sampled, turned = np.empty((4, 2 * _MAX_LINE), float32), np.empty((6, _MAX_LINE), float32)
    centred, phases, phase = np.empty((2, _MAX_LINE), float32), np.empty((2, n), float32), np.empty(2, float32)
    sums[:] = 0
    for j in range(n):
        angle = -radians * float32(j - n // 2) * shift_px[0]
        phases[0, j], phases[1, j] = math.cos(angle), math.sin(angle)
    for line in lines:
        weights = precision[line[0] : line[0] + line[1]]
        angle = -radians * float32(line[3]) * shift_px[1]
        phase[0], phase[1] = math.cos(angle), math.sin(angle)
        _centre(line, image[2 * line[0] :], phases, phase, centred)
        _gather(line, rotation, scale, padded, offsets, samples)
        _interpolate(line[1], samples.view(float32), offsets, sampled)
        _turn_gradient(line, rotation, scale, sampled, turned)
        _add_gradient(line, centred, weights, turned, sums)
        _add_curvature(line, weights, turned, sums)
    # A shift by one pixel turns phases by 2 pi k / n.
    sums[4:6] *= radians
    for j in (9, 10, 13, 14, 16, 17):
        sums[j] *= radians
    sums[18:] *= radians * radians
    if sigma_px > 0:
        tightness = 1 / (sigma_px * sigma_px)
        sums[0] -= 0.5 * tightness * (shift_px[0] * shift_px[0] + shift_px[1] * shift_px[1])
        sums[4] -= tightness * shift_px[0]
        sums[5] -= tightness * shift_px[1]
        sums[18] += tightness
        sums[20] += tightness


@_inlined
def _solve(sums: _Array, damping: float, free: int, step: _Array) -> None:
    """The damped step over the first free parameters, by elimination: the matrix is positive definite."""
    matrix, right = np.zeros((5, 5)), sums[1:6].copy()
    k = 6
    for i in range(5):
        for j in range(i, 5):
            matrix[i, j] = matrix[j, i] = sums[k]
            k += 1
        matrix[i, i] += damping * matrix[i, i] + 1e-6
    for i in range(free):
        for j in range(i + 1, free):
            factor = matrix[j, i] / matrix[i, i]
            matrix[j] -= factor * matrix[i]
            right[j] -= factor * right[i]
    step[:] = 0
    for i in range(free - 1, -1, -1):
        step[i] = (right[i] - np.sum(matrix[i, i + 1 : free] * step[i + 1 : free])) / matrix[i, i]


@_inlined
def _shorten(step: _Array, max_rad: float, max_px: float) -> None:
    """Keep rotation and shift of a step short."""
    angle = math.sqrt(step[0] * step[0] + step[1] * step[1] + step[2] * step[2])
    step[:3] *= max_rad / max(angle, max_rad)
    for i in range(3, 5):
        step[i] = min(max(step[i], -max_px), max_px)


@_inlined
def _predicted_gain(sums: _Array, step: _Array) -> float:
    """What a step gains, were the likelihood as its curvature says."""
    gain, k = 0.0, 6
    for i in range(5):
        gain += sums[1 + i] * step[i]
        for j in range(i, 5):
            gain -= step[i] * step[j] * (sums[k] / 2 if i == j else sums[k])
            k += 1
    return gain


@_inlined
def _turned(rotation: _Array, vector: _Array) -> _Array:
    """A rotation after another, given by axis times angle (Rodrigues)."""
    x, y, z = vector[0], vector[1], vector[2]
    angle = math.sqrt(x * x + y * y + z * z)
    first = math.sin(angle) / angle if angle > 0 else 1.0
    second = 0.5 * (math.sin(angle / 2) / (angle / 2)) ** 2 if angle > 0 else 0.5
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned = np.zeros((3, 3), float32)
    for i in range(3):
        for j in range(3):
            total = float(rotation[i, j])
            for k in range(3):
                twice = cross[i, 0] * cross[0, k] + cross[i, 1] * cross[1, k] + cross[i, 2] * cross[2, k]
                total += (first * cross[i, k] + second * twice) * rotation[k, j]
            turned[i, j] = total
    return turned


@_compiled
def _refine_images(
    observed: tuple[_Array, _Array],
    padded: _Array,
    poses: tuple[_Array, _Array],
    plane: tuple[_Array, int],
    settings: tuple[float, int, float, float, float, float],
    sums: _Array,
) -> None:
    """Damped Gauss-Newton steps of each image, whose rotation and shift are replaced, and the sums where they end."""
    (images, precision), (rotations, shifts_px) = observed, poses
    sigma_px, steps, first_damping, max_rad, max_px, min_gain = settings
    step, there, free = np.empty(5), np.empty(_N_SUMS), 5 if sigma_px > 0 else 3
    for i in range(len(images)):
        image, here, damping = (images[i], precision[i]), sums[i], first_damping
        _evaluate(image, padded, (rotations[i], shifts_px[i]), plane, sigma_px, here)
        for _ in range(steps):
            _solve(here, damping, free, step)
            _shorten(step, max_rad, max_px)
            if not _predicted_gain(here, step) >= min_gain:
                break
            rotation, shift_px = _turned(rotations[i], step), shifts_px[i] + step[3:].astype(float32)
            _evaluate(image, padded, (rotation, shift_px), plane, sigma_px, there)
            damping *= 8
            if there[0] > here[0]:
                rotations[i], shifts_px[i], here[:] = rotation, shift_px, there
                damping *= 0.3 / 8
