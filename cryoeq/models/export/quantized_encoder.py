"""A trained pose encoder in 8-bit integers, weights and activations, for the CPU.

For groups that map the pixel grid to itself, the trunk commutes with the group exactly, integer by integer. Rounding a
filter and its turned copies one by one would lose that: they differ by rounding errors of the expansion, and at a tie
go different ways. So only the filters of the identity are rounded; the others are these, turned. A scale serves all
components of a field. Low-passes are made by integer filters too, each from the one before.

Activations have 8 bits and weights 7: processors without an int8 dot product (VNNI) add two products in 16 bits, and
255 x 63 x 2 just fits; so all give the same integers.

After Mohamed, Cesa, Cohen and Welling 2020 (arXiv 2004.09691). The integer kernels are oneDNN's, as torch brings them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from cryoeq.equivariance import PlaneGroup, degrees_of
from cryoeq.equivariance.orbits import filters_of_orbit
from cryoeq.models.export.exported_encoder import (
    ExportedConv,
    ExportedEncoder,
    ExportedPerceptron,
    ExportedResidual,
    export_encoder,
)
from cryoeq.models.export.exported_levels import ExportedLevels
from cryoeq.models.pose_encoder import PoseEncoder

_LARGEST_WEIGHT = 63
_BLUR_REACH = 3  # taps to each side, about three widths
_SIDE_BY_SIDE = 32  # images that are blurred together
_KEPT = 0.9999
"""Share of the activations that are not cut off."""
_SAMPLED = 2**18


@dataclass(frozen=True)
class Grid:
    """What 8 bits stand for: (q - zero) x step.

    Args:
        step: between two values.
        zero: the integer that stands for 0; 0 or 128.
    """

    step: float
    zero: int

    @classmethod
    def of(cls, values: Float[Tensor, "..."]) -> "Grid":
        """One that holds nearly all of some values; unsigned where none is negative."""
        flat = values.abs().flatten()
        flat = flat[:: max(1, len(flat) // _SAMPLED)]
        rank = max(1, round(_KEPT * len(flat)))
        largest = max(float(flat.kthvalue(rank).values), 1e-12)
        return cls(largest / 127, 128) if bool((values < 0).any()) else cls(largest / 255, 0)


class _Blur:
    """From one low-pass to the next wider one, images in the place of channels: one integer filter serves all.

    The filter is the Gaussian that is missing, at every second pixel of the width that the first low-pass has already;
    rounding to integers narrows it, so one is taken that is as wide as it should be then.
    """

    def __init__(self, before_px: float, after_px: float) -> None:
        spacing = max(1, round(2 * before_px))
        wanted = (after_px**2 - before_px**2) / spacing**2
        squared = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1).square()
        gaussians = [
            torch.exp(-0.5 * (squared + squared[:, None]) / variance)
            for variance in wanted * torch.linspace(0.9, 1.3, 81)
        ]
        filters = [(gaussian * _LARGEST_WEIGHT).round() for gaussian in gaussians]
        chosen = min(filters, key=lambda found: abs(float((found.sum(0) @ squared.float()) / found.sum()) - wanted))
        self.weights, self.total = chosen.to(torch.int8).repeat(_SIDE_BY_SIDE, 1, 1, 1), float(chosen.sum())
        self.geometry = ([1, 1], [_BLUR_REACH * spacing] * 2, [spacing, spacing], _SIDE_BY_SIDE)


class QuantizedLevels(nn.Module):
    """The levels of an encoder in 8 bits, each low-pass made from the one before by integers.

    Args:
        levels: in single precision.
        grid: of the levels.
    """

    def __init__(self, levels: ExportedLevels, grid: Grid) -> None:
        super().__init__()
        self.levels, self.grid = levels, grid
        scale, shift = levels.scale.flatten().tolist(), levels.shift.flatten().tolist()
        widths = [0.0, *(math.sqrt(-0.5 / math.log(float(blur[0, 1] / blur[0, 0]))) for blur in levels.blurs)]
        self.steps = []
        for k, blur in enumerate(_Blur(*pair) for pair in pairwise(widths)):
            unit = grid.step / scale[k]  # of the image, in the level before
            zero = min(255, max(0, grid.zero + round(shift[k] / grid.step)))
            weight_step = torch.full((_SIDE_BY_SIDE,), scale[k + 1] / blur.total)
            packed = torch.ops.onednn.qconv_prepack(blur.weights, weight_step, unit, zero, *blur.geometry, None)
            lost = grid.zero - zero + shift[k] / grid.step  # of zero, rounded
            offset = torch.full((_SIDE_BY_SIDE,), shift[k + 1] - scale[k + 1] * lost * unit)
            self.steps.append((unit, zero, packed, weight_step, torch.zeros(_SIDE_BY_SIDE, dtype=torch.int32), offset,
                               *blur.geometry))  # fmt: skip

    def forward(self, images: Float[Tensor, "batch n n"]) -> UInt8[Tensor, "batch levels m m"]:
        """The levels, channels last."""
        step, zero = self.grid.step, self.grid.zero
        scale, shift = self.levels.scale.flatten()[0] / step, self.levels.shift.flatten()[0] / step
        values = (self.levels.padded(images) * scale).add_(shift + zero + 0.5).clamp_(0, 255.5)
        whole = values.to(torch.uint8)  # cut off, so rounded
        if not self.steps:
            return whole[:, None].contiguous(memory_format=torch.channels_last)
        whole = F.pad(whole, (0, 0, 0, 0, 0, -len(images) % _SIDE_BY_SIDE))
        level = whole.unflatten(0, (-1, _SIDE_BY_SIDE)).contiguous(memory_format=torch.channels_last)
        found = [level]
        for inputs in self.steps:
            level = torch.ops.onednn.qconv2d_pointwise(level, *inputs, step, zero, torch.uint8, "none", [], "")
            found.append(level)
        last = torch.stack([level.permute(0, 2, 3, 1) for level in found], -1)  # (group, y, x, image, level)
        return last.permute(0, 3, 1, 2, 4).flatten(0, 1)[: len(images)].permute(0, 3, 1, 2)


class QuantizedConv(nn.Module):
    """A convolution, and ReLU where it had one, between integers.

    Args:
        conv: in single precision.
        weights: its filters in integers.
        steps: what 1 stands for in the filters of each output channel.
        grids: of input and output.
    """

    def __init__(
        self,
        conv: ExportedConv,
        weights: Int8[Tensor, "out in size size"],
        steps: Float[Tensor, " out"],
        grids: tuple[Grid, Grid],
    ) -> None:
        super().__init__()
        self.before, self.after = grids
        self.weights, self.steps, self.offsets = weights, steps.float(), conv.offsets.float()
        self.zeros = torch.zeros(len(steps), dtype=torch.int32)
        self.is_whole, self.relu = conv.is_whole, "relu" if conv.is_rectified else "none"
        size = weights.shape[-1]
        self.strides, self.padding, self.dilation = [conv.stride] * 2, [size // 2] * 2, [1, 1]
        self.groups = len(weights) if conv.fields else 1
        if self.is_whole:
            columns = weights.permute(0, 2, 3, 1).flatten(1).contiguous()
            self.packed = torch.ops.onednn.qlinear_prepack(columns, None)
        else:
            self.packed = torch.ops.onednn.qconv_prepack(
                weights, self.steps, self.before.step, self.before.zero, *self._geometry(), None
            )

    def forward(self, maps: UInt8[Tensor, "batch in h w"]) -> UInt8[Tensor, "batch out h2 w2"]:
        """The filtered maps, channels last."""
        inputs = (self.before.step, self.before.zero, self.packed, self.steps, self.zeros)
        outputs = (self.after.step, self.after.zero, torch.uint8)
        if self.is_whole:
            rows = maps.permute(0, 2, 3, 1).flatten(1)
            found: Tensor = torch.ops.onednn.qlinear_pointwise(rows, *inputs, self.offsets, *outputs, self.relu, [], "")
            return found[:, :, None, None]
        filtered: Tensor = torch.ops.onednn.qconv2d_pointwise(
            maps, *inputs, self.offsets, *self._geometry(), *outputs, self.relu, [], ""
        )
        return filtered

    def added_to(
        self, beside: UInt8[Tensor, "batch out h w"], grid: Grid, maps: UInt8[Tensor, "batch in h w"]
    ) -> UInt8[Tensor, "batch out h w"]:
        """The filtered maps and others, added before rounding.

        Args:
            beside: what is added.
            grid: of these.
            maps: on the grid that the convolution was made for, channels last.
        """
        found: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            maps, self.before.step, self.before.zero, self.packed, self.steps, self.zeros, beside, self.offsets,
            *self._geometry(), self.after.step, self.after.zero, torch.uint8, grid.step, grid.zero,
            "sum", 1.0, self.relu, [], "",
        )  # fmt: skip
        return found

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return self.strides, self.padding, self.dilation, self.groups


class QuantizedResidual(nn.Module):
    """The input, and what some layers make of it, between integers.

    Args:
        layers: all but the last.
        last: a convolution.
        before: grid of the input.
    """

    def __init__(self, layers: nn.Module, last: QuantizedConv, before: Grid) -> None:
        super().__init__()
        self.layers, self.last, self.before = layers, last, before

    def forward(self, maps: UInt8[Tensor, "batch channels h w"]) -> UInt8[Tensor, "batch channels h w"]:
        """Their sum, rounded once."""
        return self.last.added_to(maps, self.before, self.layers(maps))


class Dequantized(nn.Module):
    """Integers as numbers again.

    Args:
        grid: of the integers.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, maps: UInt8[Tensor, "batch channels 1 1"]) -> Float[Tensor, "batch channels 1 1"]:
        """What they stand for."""
        return (maps.float() - self.grid.zero) * self.grid.step


@torch.no_grad()
def quantize_encoder(encoder: PoseEncoder, images: Float[Tensor, "batch n n"]) -> ExportedEncoder:
    """The encoder in 8 bits; its head, one small matrix, stays in single precision.

    Args:
        encoder: in evaluation mode, on the CPU; is not changed.
        images: such as it will see, some hundreds: they say how large activations become.

    Raises:
        ValueError: its group is not one that maps the pixel grid to itself, its filters are not fixed, or torch has no
            integer kernels for this processor.
    """
    group = encoder.group
    if not group.is_grid_exact:
        raise ValueError(f"{group.name} does not map the pixel grid to itself: its integers would not turn with it")
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise ValueError("torch has no integer kernels (oneDNN) for this processor")
    if degrees_of(encoder):
        raise ValueError("layers with a learnt degree do not turn with the image, nor would their integers")
    exported = export_encoder(encoder)
    plain_levels, trunk, flatten, head = exported.network.children()
    levels = cast(ExportedLevels, plain_levels)
    if isinstance(trunk, ExportedPerceptron):
        trunk = trunk.as_convolutions()
    seen = levels(images)
    first, grids = Grid(Grid.of(torch.cat([seen, -seen])).step, 128), _grids(trunk, seen)
    layers, last = _in_integers(trunk, group, grids, first, is_main_process=True)
    network = nn.Sequential(QuantizedLevels(levels, first), layers, Dequantized(last), flatten, head)
    return ExportedEncoder(exported.box_size_px, exported.outputs, network).eval()


def _grids(trunk: nn.Module, levels: Tensor) -> dict[nn.Module, Grid]:
    """What 8 bits are to stand for behind each layer."""
    grids: dict[nn.Module, Grid] = {}

    def look(layer: nn.Module, _inputs: object, found: Tensor) -> None:
        grids[layer] = Grid.of(found)

    layers = [layer for layer in trunk.modules() if isinstance(layer, ExportedConv | ExportedResidual)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    trunk(levels)
    for hook in hooks:
        hook.remove()
    return grids


def _in_integers(
    layer: nn.Module, group: PlaneGroup, grids: dict[nn.Module, Grid], before: Grid, *, is_main_process: bool = False
) -> tuple[nn.Module, Grid]:
    """A layer between integers, and the grid of its output."""
    if isinstance(layer, ExportedConv):
        in_dim = 1 if is_main_process or layer.fields else group.dim("hidden")
        return QuantizedConv(layer, *integer_filters(group, layer.filters, in_dim), (before, grids[layer])), grids[
            layer
        ]
    if isinstance(layer, ExportedResidual):
        *others, child = layer.layers.children()
        last = cast(ExportedConv, child)
        inside, between = _in_integers(nn.Sequential(*others), group, grids, before)
        after = grids[layer]
        conv = QuantizedConv(last, *integer_filters(group, last.filters, group.dim("hidden")), (between, after))
        return QuantizedResidual(inside, conv, before), after
    layers = []
    for number, child in enumerate(layer.children()):
        made, before = _in_integers(child, group, grids, before, is_main_process=is_main_process and number == 0)
        layers.append(made)
    return nn.Sequential(*layers), before


def integer_filters(
    group: PlaneGroup, filters: Float[Tensor, "channels in size size"], in_dim: int
) -> tuple[Int8[Tensor, "channels in size size"], Float[Tensor, " channels"]]:
    """Filters to hidden fields in integers that commute with the group exactly, and what 1 stands for in each.

    Args:
        group: one that maps the pixel grid to itself.
        filters: expanded.
        in_dim: as of ``filters_of_orbit``.
    """
    order = group.dim("hidden")
    own = filters[: len(filters) // order]
    steps = own.abs().amax((1, 2, 3)).clamp(min=1e-12) / _LARGEST_WEIGHT
    whole = (own / steps[:, None, None, None]).round().to(torch.int8)
    return filters_of_orbit(group, whole, in_dim), steps.repeat(order)
