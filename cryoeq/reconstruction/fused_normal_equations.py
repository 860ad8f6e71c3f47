"""Normal equations of images on a GPU in one Triton kernel: nothing between the images and the sums is stored.

A program takes up to 2,048 coefficients of one image, 128 at a time: gathers the 20 samples of the map around each, and
adds up value, gradient and curvature as ``normal_equations`` has them. Where an image has several programs, torch adds
up theirs. How it is cut depends on its coefficients alone, so that its sums do not depend on the batch.

Bytes of an evaluation of an image with N coefficients, in float32::

    12 N                         from memory: coefficient 8, precision 4
    16 N                         from the second cache: coordinates, the same for all images
    160 N                        from the caches and, where the map is larger, from memory: 20 samples of 8
    44 p + 248 p + 124           pose; 31 sums, written, read and written; p = ceil(N / 2048) programs

FLOPs: 330 N, and N sines and cosines: position 18, samples 186, turn into the frame of the image 36, shift 10, products
40, sums 40. Plain torch moves 4,360 N bytes in 78 kernels, by the sizes of what its operators read and write.

Triton: Tillet, Kung and Cox 2019, MAPL, 10-19. Where ``TRITON_INTERPRET=1`` is set before Triton is imported, its
interpreter runs the kernel on the CPU, for tests.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.reconstruction.normal_equations import PARAMETERS, NormalEquations, WeightedImages

_Function = Callable[..., object]
# Constants in the eyes of Triton: coefficients at a time, one for each thread of four warps, and how many times.
_BLOCK, _BLOCKS = tl.constexpr(128), tl.constexpr(16)
_N_SUMS = 1 + PARAMETERS + PARAMETERS**2


def _part(function: _Function) -> Any:
    """A function that Triton compiles, without the checks of shapes that tests put around it."""
    return triton.jit(inspect.unwrap(function), do_not_specialize=["points", "n", "m"])  # one kernel for all sizes


def fused_normal_equations(
    observed: WeightedImages,
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
) -> NormalEquations:
    """As ``normal_equations.plain_normal_equations``, computed in the precision of the map.

    Args:
        observed: the images.
        padded: oversampled transform of the map.
        rotations: RELION's matrices A.
        shifts_px: offsets that centre the images.
    """
    batch, points = observed.precision.shape
    samples = _as_real(padded)
    parts = triton.cdiv(points, _BLOCK.value * _BLOCKS.value)
    sums = samples.new_empty(batch, parts, _N_SUMS)
    coefficients = _as_real(observed.images), observed.precision.contiguous(), observed.plane.coords.contiguous()
    poses = rotations.contiguous(), shifts_px.contiguous()
    with torch.cuda.device_of(padded):
        _kernel[batch, parts]((*coefficients, *poses), samples, sums, points, observed.plane.box_size_px, len(padded))
    value, gradient, curvature = sums.sum(1).split([1, PARAMETERS, PARAMETERS**2], dim=1)
    return NormalEquations(value[:, 0], gradient, curvature.unflatten(1, (PARAMETERS, PARAMETERS)))


def _as_real(values: Complex[Tensor, "..."]) -> Float[Tensor, "... 2"]:
    return torch.view_as_real(values.resolve_conj().contiguous())


@_part
def _kernel(
    inputs: tl.tuple, padded: tl.tensor, sums: tl.tensor, points: tl.tensor, n: tl.tensor, m: tl.tensor
) -> None:
    """Value, gradient and curvature of one image over a part of its coefficients. Numbers of a tuple are in registers.

    ``inputs``: images, precision, coordinates, rotations, shifts. ``n``, ``m``: pixels of the box, samples of the map.
    """
    images, precisions, coords, rotations, shifts_px = inputs
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    real = padded.dtype.element_ty
    # In double precision here: a Python float, as an argument, would be single.
    scale = (m.to(tl.float64) / n.to(tl.float64)).to(real)
    radians = (6.283185307179586 / n.to(tl.float64)).to(real)  # a shift by one pixel turns phases by that times k
    rotation = _load_rotation(rotations + 9 * image, scale, real)
    shift_x = radians * tl.load(shifts_px + 2 * image).to(real)
    shift_y = radians * tl.load(shifts_px + 2 * image + 1).to(real)
    total = (tl.zeros([_BLOCK], real),) * 20
    first = part * (_BLOCK * _BLOCKS)
    for start in range(first, tl.minimum(first + _BLOCK * _BLOCKS, points), _BLOCK):
        point = start + tl.arange(0, _BLOCK)
        is_inside = point < points
        kx, ky = tl.split(_load_pairs(coords, point, is_inside).to(real))
        values = _load_pairs(images, image * points + point, is_inside).to(real)
        precision = tl.load(precisions + image * points + point, mask=is_inside, other=0.0).to(real)
        centred = _turned(values, -(kx * shift_x + ky * shift_y))
        sampled = _sample(padded, rotation, kx, ky, m)
        total = _plus(total, _products(kx, ky, centred, precision, sampled))
    _store(sums + (image * tl.num_programs(1) + part) * 31, total, radians)


@_part
def _load_rotation(rotation: tl.tensor, scale: tl.tensor, real: tl.constexpr) -> tl.tuple:
    """The nine numbers of a rotation, row by row, times a scale."""
    return (
        scale * tl.load(rotation).to(real), scale * tl.load(rotation + 1).to(real),
        scale * tl.load(rotation + 2).to(real), scale * tl.load(rotation + 3).to(real),
        scale * tl.load(rotation + 4).to(real), scale * tl.load(rotation + 5).to(real),
        scale * tl.load(rotation + 6).to(real), scale * tl.load(rotation + 7).to(real),
        scale * tl.load(rotation + 8).to(real),
    )  # fmt: skip


@_part
def _load_pairs(values: tl.tensor, index: tl.tensor, is_inside: tl.tensor) -> tl.tensor:
    """Two numbers that stand side by side, in one access; 0 outside."""
    return tl.load(values + (2 * index)[:, None] + tl.arange(0, 2)[None, :], mask=is_inside[:, None], other=0)


@_part
def _turned(values: tl.tensor, angle: tl.tensor) -> tl.tuple:
    """Real and imaginary part of complex numbers times exp(i angle)."""
    real, imag = tl.split(values)
    cosine, sine = tl.cos(angle), tl.sin(angle)
    return real * cosine - imag * sine, real * sine + imag * cosine


@_part
def _cell(position: tl.tensor, m: tl.tensor) -> tl.tuple:
    """First sample of the cell around a position on an axis, and the position in it.

    The cell has another one on either side; what lies beyond is seen from the last, and NaN from the first.
    """
    cell = tl.where(position > 1, position, 1.0)
    cell = tl.where(cell < m - 3, cell, m - 3).to(tl.int64)
    return cell, position - cell.to(position.dtype)


@_part
def _between(low: tl.tensor, high: tl.tensor, position: tl.tensor) -> tl.tensor:
    return low + position * (high - low)


@_part
def _slope(low: tl.tensor, high: tl.tensor, beyond: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Derivative between two samples, from their difference and that with the nearest sample beyond: continuous."""
    within = high - low
    outside = tl.where(position < 0.5, low - beyond, beyond - high)
    return within + tl.abs(position - 0.5) * (outside - within)


@_part
def _face(corner: tl.tensor, step_u: tl.tensor, step_v: tl.tensor, u: tl.tensor, v: tl.tensor) -> tl.tensor:
    """Bilinear interpolation between a sample and its neighbours."""
    near = _between(tl.load(corner), tl.load(corner + step_u), u)
    return _between(near, _between(tl.load(corner + step_v), tl.load(corner + step_v + step_u), u), v)


@_part
def _sample(padded: tl.tensor, rotation: tl.tuple, kx: tl.tensor, ky: tl.tensor, m: tl.tensor) -> tl.tuple:
    """Slice, and its derivatives along the view and by a turn in the plane: (real, imaginary) in the last axis."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation
    cell_x, x = _cell(kx * xx + ky * yx + m // 2, m)
    cell_y, y = _cell(kx * xy + ky * yy + m // 2, m)
    cell_z, z = _cell(kx * xz + ky * yz + m // 2, m)
    corner = padded + (2 * ((cell_z * m + cell_y) * m + cell_x))[:, None] + tl.arange(0, 2)[None, :]
    step_y, step_z = 2 * m, 2 * m * m
    beyond_x = corner + tl.where(x < 0.5, -2, 4)[:, None]
    beyond_y = corner + (tl.where(y < 0.5, -1, 2) * step_y)[:, None]
    beyond_z = corner + (tl.where(z < 0.5, -1, 2) * step_z)[:, None]
    x, y, z = x[:, None], y[:, None], z[:, None]
    s000, s100 = tl.load(corner), tl.load(corner + 2)
    s010, s110 = tl.load(corner + step_y), tl.load(corner + step_y + 2)
    s001, s101 = tl.load(corner + step_z), tl.load(corner + step_z + 2)
    s011, s111 = tl.load(corner + step_y + step_z), tl.load(corner + step_y + step_z + 2)
    slope_00 = _slope(s000, s100, tl.load(beyond_x), x)
    slope_10 = _slope(s010, s110, tl.load(beyond_x + step_y), x)
    slope_01 = _slope(s001, s101, tl.load(beyond_x + step_z), x)
    slope_11 = _slope(s011, s111, tl.load(beyond_x + step_y + step_z), x)
    v00, v10 = _between(s000, s100, x), _between(s010, s110, x)
    v01, v11 = _between(s001, s101, x), _between(s011, s111, x)
    low, high = _between(v00, v10, y), _between(v01, v11, y)
    along_x = _between(_between(slope_00, slope_10, y), _between(slope_01, slope_11, y), z)
    along_y = _slope(_between(v00, v01, z), _between(v10, v11, z), _face(beyond_y, 2, step_z, x, z), y)
    along_z = _slope(low, high, _face(beyond_z, 2, step_y, x, y), z)
    by_turn = ky[:, None] * (xx * along_x + xy * along_y + xz * along_z)
    by_turn -= kx[:, None] * (yx * along_x + yy * along_y + yz * along_z)
    return _between(low, high, z), zx * along_x + zy * along_y + zz * along_z, by_turn


@_part
def _products(kx: tl.tensor, ky: tl.tensor, centred: tl.tuple, precision: tl.tensor, sampled: tl.tuple) -> tl.tuple:
    """What is added up: value, gradient, and the products of derivatives times powers of kx and ky.

    Derivatives are those along the view (v), by a turn (t), and of the phases of a shift: the slice times i (s).
    """
    slice_real, slice_imag = tl.split(sampled[0])
    view_real, view_imag = tl.split(sampled[1])
    turn_real, turn_imag = tl.split(sampled[2])
    weighted_real, weighted_imag = precision * slice_real, precision * slice_imag
    residual_real, residual_imag = centred[0] - weighted_real, centred[1] - weighted_imag
    value = slice_real * (centred[0] + residual_real) + slice_imag * (centred[1] + residual_imag)
    view = view_real * residual_real + view_imag * residual_imag
    turn = turn_real * residual_real + turn_imag * residual_imag
    shift = slice_real * residual_imag - slice_imag * residual_real
    vv = precision * (view_real * view_real + view_imag * view_imag)
    vt = precision * (view_real * turn_real + view_imag * turn_imag)
    tt = precision * (turn_real * turn_real + turn_imag * turn_imag)
    vs = view_imag * weighted_real - view_real * weighted_imag
    ts = turn_imag * weighted_real - turn_real * weighted_imag
    ss = slice_real * weighted_real + slice_imag * weighted_imag
    xx, xy, yy = kx * kx, kx * ky, ky * ky
    return (
        0.5 * value, ky * view, kx * view, turn, kx * shift, ky * shift,
        xx * vv, xy * vv, yy * vv, xx * vs, xy * vs, yy * vs, xx * ss, xy * ss, yy * ss,
        kx * vt, ky * vt, tt, kx * ts, ky * ts,
    )  # fmt: skip


@_part
def _plus(a: tl.tuple, b: tl.tuple) -> tl.tuple:
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7],
        a[8] + b[8], a[9] + b[9], a[10] + b[10], a[11] + b[11], a[12] + b[12], a[13] + b[13], a[14] + b[14],
        a[15] + b[15], a[16] + b[16], a[17] + b[17], a[18] + b[18], a[19] + b[19],
    )  # fmt: skip


@_part
def _summed(each: tl.tuple) -> tl.tuple:
    return (
        tl.sum(each[0], 0), tl.sum(each[1], 0), tl.sum(each[2], 0), tl.sum(each[3], 0), tl.sum(each[4], 0),
        tl.sum(each[5], 0), tl.sum(each[6], 0), tl.sum(each[7], 0), tl.sum(each[8], 0), tl.sum(each[9], 0),
        tl.sum(each[10], 0), tl.sum(each[11], 0), tl.sum(each[12], 0), tl.sum(each[13], 0), tl.sum(each[14], 0),
        tl.sum(each[15], 0), tl.sum(each[16], 0), tl.sum(each[17], 0), tl.sum(each[18], 0), tl.sum(each[19], 0),
    )  # fmt: skip


@_part
def _store(sums: tl.tensor, total: tl.tuple, radians: tl.tensor) -> None:
    """Value, gradient, and the whole curvature, row by row."""
    (
        value, y_view, x_view, turn, x_shift, y_shift, xx_vv, xy_vv, yy_vv, xx_vs, xy_vs, yy_vs, xx_ss, xy_ss, yy_ss,
        x_vt, y_vt, tt, x_ts, y_ts,
    ) = _summed(total)  # fmt: skip
    r, rr = radians, radians * radians
    equations = (
        value,
        -y_view, x_view, turn, r * x_shift, r * y_shift,
        yy_vv, -xy_vv, -y_vt, -r * xy_vs, -r * yy_vs,
        -xy_vv, xx_vv, x_vt, r * xx_vs, r * xy_vs,
        -y_vt, x_vt, tt, r * x_ts, r * y_ts,
        -r * xy_vs, r * xx_vs, r * x_ts, rr * xx_ss, rr * xy_ss,
        -r * yy_vs, r * xy_vs, r * y_ts, rr * xy_ss, rr * yy_ss,
    )  # fmt: skip
    for i in tl.static_range(31):
        tl.store(sums + i, equations[i])
