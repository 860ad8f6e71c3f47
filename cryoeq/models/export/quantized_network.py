"""Quantized view network: weights and activations in 8-bit integers, for the CPU.

For groups that map the pixel grid to itself, the trunk commutes with the group exactly, integer by integer. Rounding a
filter and its rotated copies one by one would lose that: they differ by rounding errors of the expansion, and are
rounded apart at a tie. So only the filters of the identity are rounded, and then rotated. All components of a field
share one scale. Low-passes too are computed by integer filters, each from the one before.

Activations have 8 bits and weights 7: processors without an int8 dot product (VNNI) add two products in 16 bits, and
255 x 63 x 2 just fits; so all give the same integers.

After Mohamed, Cesa, Cohen and Welling 2020 (arXiv 2004.09691). The integer kernels are oneDNN's, as shipped with torch.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from cryoeq.equivariance import PlaneGroup, learnt_degrees
from cryoeq.equivariance.orbits import filters_of_orbit
from cryoeq.models.export.exported_levels import ExportedLevels
from cryoeq.models.export.exported_network import (
    ExportedConv,
    ExportedNetwork,
    ExportedPerceptron,
    ExportedResidual,
    export_network,
)
from cryoeq.models.view_network import ViewNetwork

_MAX_WEIGHT = 63
_BLUR_REACH = 3  # taps to each side, about three standard deviations
_IMAGES_PER_BLUR = 32  # images that are blurred together, as channels
_QUANTILE = 0.9999  # of the activations, which the range of 8 bits covers
_MAX_SAMPLES = 2**18  # of the activations, from which the quantile is estimated


@dataclass(frozen=True)
class QuantizationParameters:
    """Affine quantization to 8 bits, as in torch: an integer q represents (q - zero_point) scale.

    Args:
        scale: difference of the values of two consecutive integers.
        zero_point: integer that represents 0: 0 or 128.
    """

    scale: float
    zero_point: int

    @classmethod
    def from_values(cls, values: Float[Tensor, "..."]) -> "QuantizationParameters":
        """Parameters whose range covers nearly all of some values; unsigned where none is negative."""
        flat = values.abs().flatten()
        flat = flat[:: max(1, len(flat) // _MAX_SAMPLES)]
        rank = max(1, round(_QUANTILE * len(flat)))
        largest = max(float(flat.kthvalue(rank).values), 1e-12)
        return cls(largest / 127, 128) if bool((values < 0).any()) else cls(largest / 255, 0)


class _Blur:
    """Integer filter from one low-pass to the next wider one; images take the place of channels, and share the filter.

    The filter is a Gaussian whose variance is the difference of the two, sampled at twice the standard deviation of the
    first low-pass. Rounding to integers narrows it, so the Gaussian is chosen whose rounded filter has the right width.
    """

    def __init__(self, before_px: float, after_px: float) -> None:
        spacing = max(1, round(2 * before_px))
        target = (after_px**2 - before_px**2) / spacing**2
        squared = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1).square()
        gaussians = [
            torch.exp(-0.5 * (squared + squared[:, None]) / variance)
            for variance in target * torch.linspace(0.9, 1.3, 81)
        ]
        filters = [(gaussian * _MAX_WEIGHT).round() for gaussian in gaussians]
        chosen = min(filters, key=lambda taps: abs(float((taps.sum(0) @ squared.float()) / taps.sum()) - target))
        self.weights, self.total = chosen.to(torch.int8).repeat(_IMAGES_PER_BLUR, 1, 1, 1), float(chosen.sum())
        self.geometry = ([1, 1], [_BLUR_REACH * spacing] * 2, [spacing, spacing], _IMAGES_PER_BLUR)


class QuantizedLevels(nn.Module):
    """The levels of a network in 8 bits, each low-pass computed from the one before by integers.

    Args:
        levels: input levels in single precision.
        qparams: quantization of all levels.
    """

    def __init__(self, levels: ExportedLevels, qparams: QuantizationParameters) -> None:
        super().__init__()
        self.levels, self.qparams = levels, qparams
        scale, shift = levels.scale.flatten().tolist(), levels.shift.flatten().tolist()
        widths = [0.0, *(math.sqrt(-0.5 / math.log(float(blur[0, 1] / blur[0, 0]))) for blur in levels.blurs)]
        self.blurs = []
        for k, blur in enumerate(_Blur(*pair) for pair in pairwise(widths)):
            image_scale = qparams.scale / scale[k]  # of the image, in the level before
            zero_point = min(255, max(0, qparams.zero_point + round(shift[k] / qparams.scale)))
            weight_scale = torch.full((_IMAGES_PER_BLUR,), scale[k + 1] / blur.total)
            packed = torch.ops.onednn.qconv_prepack(
                blur.weights, weight_scale, image_scale, zero_point, *blur.geometry, None
            )
            rounding = qparams.zero_point - zero_point + shift[k] / qparams.scale  # error of the rounded zero point
            bias = torch.full((_IMAGES_PER_BLUR,), shift[k + 1] - scale[k + 1] * rounding * image_scale)
            weight_zero_point = torch.zeros(_IMAGES_PER_BLUR, dtype=torch.int32)
            self.blurs.append((image_scale, zero_point, packed, weight_scale, weight_zero_point, bias, *blur.geometry))

    def forward(self, images: Float[Tensor, "batch n n"]) -> UInt8[Tensor, "batch levels m m"]:
        """The levels, channels last."""
        scale, zero_point = self.qparams.scale, self.qparams.zero_point
        factor, shift = self.levels.scale.flatten()[0] / scale, self.levels.shift.flatten()[0] / scale
        values = (self.levels.padded(images) * factor).add_(shift + zero_point + 0.5).clamp_(0, 255.5)
        integers = values.to(torch.uint8)  # truncated after adding 0.5, so rounded
        if not self.blurs:
            return integers[:, None].contiguous(memory_format=torch.channels_last)
        integers = F.pad(integers, (0, 0, 0, 0, 0, -len(images) % _IMAGES_PER_BLUR))
        level = integers.unflatten(0, (-1, _IMAGES_PER_BLUR)).contiguous(memory_format=torch.channels_last)
        levels = [level]
        for blur in self.blurs:
            level = torch.ops.onednn.qconv2d_pointwise(level, *blur, scale, zero_point, torch.uint8, "none", [], "")
            levels.append(level)
        stacked = torch.stack([level.permute(0, 2, 3, 1) for level in levels], -1)  # (group, y, x, image, level)
        return stacked.permute(0, 3, 1, 2, 4).flatten(0, 1)[: len(images)].permute(0, 3, 1, 2)


class QuantizedConv(nn.Module):
    """A convolution, and ReLU where it had one, between integers.

    Args:
        conv: convolution in single precision.
        weights: filters in integers.
        scales: scale of the filters of each output channel.
        before: quantization of the input.
        after: quantization of the output.
    """

    def __init__(
        self,
        conv: ExportedConv,
        weights: Int8[Tensor, "out in size size"],
        scales: Float[Tensor, " out"],
        *,
        before: QuantizationParameters,
        after: QuantizationParameters,
    ) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.weights, self.scales, self.bias = weights, scales.float(), conv.bias.float()
        self.zero_points = torch.zeros(len(scales), dtype=torch.int32)
        self.is_whole, self.relu = conv.is_whole, "relu" if conv.is_rectified else "none"
        size = weights.shape[-1]
        self.strides, self.padding, self.dilation = [conv.stride] * 2, [size // 2] * 2, [1, 1]
        self.groups = len(weights) if conv.fields else 1
        if self.is_whole:
            columns = weights.permute(0, 2, 3, 1).flatten(1).contiguous()
            self.packed = torch.ops.onednn.qlinear_prepack(columns, None)
        else:
            self.packed = torch.ops.onednn.qconv_prepack(
                weights, self.scales, before.scale, before.zero_point, *self._geometry(), None
            )

    def forward(self, maps: UInt8[Tensor, "batch in h w"]) -> UInt8[Tensor, "batch out h2 w2"]:
        """The filtered maps, channels last."""
        inputs = (self.before.scale, self.before.zero_point, self.packed, self.scales, self.zero_points)
        outputs = (self.after.scale, self.after.zero_point, torch.uint8)
        if self.is_whole:
            rows = maps.permute(0, 2, 3, 1).flatten(1)
            products: Tensor = torch.ops.onednn.qlinear_pointwise(rows, *inputs, self.bias, *outputs, self.relu, [], "")
            return products[:, :, None, None]
        filtered: Tensor = torch.ops.onednn.qconv2d_pointwise(
            maps, *inputs, self.bias, *self._geometry(), *outputs, self.relu, [], ""
        )
        return filtered

    def added_to(
        self,
        shortcut: UInt8[Tensor, "batch out h w"],
        qparams: QuantizationParameters,
        maps: UInt8[Tensor, "batch in h w"],
    ) -> UInt8[Tensor, "batch out h w"]:
        """The filtered maps plus a shortcut, added before rounding.

        Args:
            shortcut: maps to add.
            qparams: quantization of the shortcut.
            maps: input of the convolution, channels last.
        """
        summed: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            maps, self.before.scale, self.before.zero_point, self.packed, self.scales, self.zero_points, shortcut,
            self.bias, *self._geometry(), self.after.scale, self.after.zero_point, torch.uint8, qparams.scale,
            qparams.zero_point, "sum", 1.0, self.relu, [], "",
        )  # fmt: skip
        return summed

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return self.strides, self.padding, self.dilation, self.groups


class QuantizedResidual(nn.Module):
    """The input plus the output of some layers, between integers.

    Args:
        layers: all layers but the last.
        last: last layer, a convolution without ReLU.
        before: quantization of the input.
    """

    def __init__(self, layers: nn.Module, last: QuantizedConv, before: QuantizationParameters) -> None:
        super().__init__()
        self.layers, self.last, self.before = layers, last, before

    def forward(self, maps: UInt8[Tensor, "batch channels h w"]) -> UInt8[Tensor, "batch channels h w"]:
        """The sum of input and output, rounded once."""
        return self.last.added_to(maps, self.before, self.layers(maps))


class Dequantized(nn.Module):
    """Integers converted to the numbers that they represent.

    Args:
        qparams: quantization of the integers.
    """

    def __init__(self, qparams: QuantizationParameters) -> None:
        super().__init__()
        self.qparams = qparams

    def forward(self, maps: UInt8[Tensor, "batch channels 1 1"]) -> Float[Tensor, "batch channels 1 1"]:
        """The dequantized maps."""
        return (maps.float() - self.qparams.zero_point) * self.qparams.scale


@torch.no_grad()
def quantize_network(network: ViewNetwork, images: Float[Tensor, "batch n n"]) -> ExportedNetwork:
    """The network in 8 bits; invariants and head, one matrix, stay in single precision.

    Args:
        network: trained network in evaluation mode, on the CPU; not changed.
        images: some hundred typical inputs, for the ranges of the activations.

    Raises:
        ValueError: its group does not map the pixel grid to itself, its filters are not fixed, or torch has no integer
            kernels for this processor.
    """
    group = network.group
    if not group.is_grid_exact:
        raise ValueError(f"{group.name} does not map the pixel grid to itself: quantization would break the symmetry")
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise ValueError("torch has no integer kernels (oneDNN) for this processor")
    if learnt_degrees(network):
        raise ValueError("layers with a learnt degree are not equivariant, nor would their integers be")
    exported = export_network(network)
    plain_levels, trunk, *head = exported.network.children()
    levels = cast(ExportedLevels, plain_levels)
    if isinstance(trunk, ExportedPerceptron):
        trunk = trunk.as_convolutions()
    inputs = levels(images)
    first = QuantizationParameters(QuantizationParameters.from_values(torch.cat([inputs, -inputs])).scale, 128)
    layers, last = _in_integers(trunk, group, _calibrate(trunk, inputs), first, is_first=True)
    return ExportedNetwork(
        exported.box_size_px, nn.Sequential(QuantizedLevels(levels, first), layers, Dequantized(last), *head)
    ).eval()


def _calibrate(trunk: nn.Module, levels: Tensor) -> dict[nn.Module, QuantizationParameters]:
    """Quantization of the output of each layer, from the range of its activations."""
    qparams: dict[nn.Module, QuantizationParameters] = {}

    def observe(layer: nn.Module, _inputs: object, activations: Tensor) -> None:
        qparams[layer] = QuantizationParameters.from_values(activations)

    layers = [layer for layer in trunk.modules() if isinstance(layer, ExportedConv | ExportedResidual)]
    hooks = [layer.register_forward_hook(observe) for layer in layers]
    trunk(levels)
    for hook in hooks:
        hook.remove()
    return qparams


def _in_integers(
    layer: nn.Module,
    group: PlaneGroup,
    qparams: dict[nn.Module, QuantizationParameters],
    before: QuantizationParameters,
    *,
    is_first: bool = False,
) -> tuple[nn.Module, QuantizationParameters]:
    """A layer between integers, and the quantization of its output."""
    if isinstance(layer, ExportedConv):
        in_dim, after = 1 if is_first or layer.fields else group.dim("hidden"), qparams[layer]
        return QuantizedConv(layer, *integer_filters(group, layer.filters, in_dim), before=before, after=after), after
    if isinstance(layer, ExportedResidual):
        *others, child = layer.layers.children()
        last = cast(ExportedConv, child)
        inside, between = _in_integers(nn.Sequential(*others), group, qparams, before)
        filters, after = integer_filters(group, last.filters, group.dim("hidden")), qparams[layer]
        conv = QuantizedConv(last, *filters, before=between, after=after)
        return QuantizedResidual(inside, conv, before), after
    layers = []
    for number, child in enumerate(layer.children()):
        quantized, before = _in_integers(child, group, qparams, before, is_first=is_first and number == 0)
        layers.append(quantized)
    return nn.Sequential(*layers), before


def integer_filters(
    group: PlaneGroup, filters: Float[Tensor, "channels in size size"], in_dim: int
) -> tuple[Int8[Tensor, "channels in size size"], Float[Tensor, " channels"]]:
    """Integer filters to hidden fields that commute with the group exactly, and the scale of each.

    Args:
        group: a group that maps the pixel grid to itself.
        filters: expanded filters in floating point.
        in_dim: components of an input field: 1 for scalars and depthwise filters, the group's order for hidden ones.
    """
    order = group.dim("hidden")
    of_identity = filters[: len(filters) // order]
    scales = of_identity.abs().amax((1, 2, 3)).clamp(min=1e-12) / _MAX_WEIGHT
    integers = (of_identity / scales[:, None, None, None]).round().to(torch.int8)
    return filters_of_orbit(group, integers, in_dim), scales.repeat(order)
