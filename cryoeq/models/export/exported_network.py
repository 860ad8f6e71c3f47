"""Trained view network as plain torch layers: filters expanded once, batch norms folded into them.

The result holds constant tensors only: it can be compiled, exported by torch, and quantized. Its outputs are those of
the network in evaluation, up to rounding.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance import (
    DepthwiseConv,
    FieldActivation,
    FullMapConv,
    InvertedResidual,
    SteerableBlock,
    SteerableConv,
    SteerablePerceptron,
)
from cryoeq.equivariance.depthwise import depthwise
from cryoeq.equivariance.nonlinearity import disc
from cryoeq.equivariance.perceptron import GroupLinear
from cryoeq.models.export.exported_levels import ExportedLevels
from cryoeq.models.view_network import ViewNetwork


class ExportedConv(nn.Module):
    """A convolution with a bias, optionally followed by ReLU and a window.

    Args:
        filters: expanded filters, batch norm included.
        bias: bias of each output channel.
        stride: step of the filters in pixels, 1 or 2.
        fields: number of fields of a depthwise convolution; 0 for one that mixes all fields.
        is_whole: whether the filter is as large as the map.
        is_rectified: whether ReLU follows.
        is_windowed: whether maps are zero outside a disc.
    """

    filters: Tensor
    bias: Tensor

    def __init__(
        self,
        filters: Float[Tensor, "out in size size"],
        bias: Float[Tensor, " out"],
        *,
        stride: int = 1,
        fields: int = 0,
        is_whole: bool = False,
        is_rectified: bool = False,
        is_windowed: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("filters", filters.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach().clone())
        self.stride, self.fields = stride, fields
        self.is_whole, self.is_rectified, self.is_windowed = is_whole, is_rectified, is_windowed

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        """The filtered maps, zero beyond their edges."""
        if self.is_whole:
            columns = self.filters.permute(0, 2, 3, 1).flatten(1)
            filtered = F.linear(maps.permute(0, 2, 3, 1).flatten(1), columns, self.bias)[:, :, None, None]
        elif self.fields:
            filtered = depthwise(maps, self.filters, self.fields, self.stride, self.bias)
        else:
            padding = self.filters.shape[-1] // 2
            filtered = F.conv2d(maps, self.filters, self.bias, stride=self.stride, padding=padding)
            filtered = filtered.contiguous(
                memory_format=torch.channels_last
            )  # torch cannot infer the format from one channel
        activated = filtered.relu_() if self.is_rectified else filtered
        return activated * disc(activated.shape[-1], maps) if self.is_windowed else activated


class ExportedLinear(nn.Module):
    """A matrix and a bias.

    Args:
        matrix: matrix of the linear map.
        bias: bias of each output channel.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, matrix: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, features: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """All outputs of each image."""
        return F.linear(features, self.matrix, self.bias)


class ExportedResidual(nn.Module):
    """The input plus the output of some layers.

    Args:
        layers: layers whose output has the shape of their input.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The sum of input and output."""
        return maps + self.layers(maps)


class ExportedPerceptron(nn.Module):
    """A steerable perceptron whose batch norms are folded into its linear maps.

    Args:
        trunk: trained perceptron in evaluation mode.
    """

    def __init__(self, trunk: SteerablePerceptron) -> None:
        super().__init__()
        self.lift = copy.deepcopy(trunk.lift)
        self.linears = nn.ModuleList()
        for number, (linear, activation) in enumerate(trunk.blocks()):
            scale, shift = activation.scale_and_shift()
            folded = copy.deepcopy(linear)
            for weight in folded.parameters():
                weight.mul_(scale.repeat(weight.shape[1] // len(scale)))
            self.linears.append(folded.requires_grad_(False))
            self.register_buffer(f"shift{number}", shift)

    def forward(self, levels: Float[Tensor, "batch levels n n"]) -> Float[Tensor, "batch channels 1 1"]:
        """The fields, channels ordered (component, field)."""
        values: Tensor = self.lift(levels)
        for number, linear in enumerate(self.linears):
            values = linear(values).add_(self.get_buffer(f"shift{number}")).relu_()
        return values.transpose(0, 1).flatten(1)[:, :, None, None]

    def as_convolutions(self) -> nn.Sequential:
        """The same map as full matrices, the first one on pixels: several times the products, without extra sums."""
        size, pixels = self.lift.size_px, self.lift.pixels
        order, orbits = pixels.shape
        layers: list[nn.Module] = []
        for number, linear in enumerate(self.linears):
            matrix = cast(GroupLinear, linear).matrix()
            shift = self.get_buffer(f"shift{number}").repeat(order)
            if number == 0:
                on_orbits = (matrix.view(len(matrix), order, -1, orbits) * self.lift.weights).transpose(1, 2)
                on_pixels = matrix.new_zeros(len(matrix), on_orbits.shape[1], size**2)
                matrix = on_pixels.index_add(2, pixels.flatten(), on_orbits.flatten(2))
                filters = matrix.unflatten(2, (size, size))
            else:
                filters = matrix[..., None, None]
            layers.append(ExportedConv(filters, shift, is_whole=True, is_rectified=True))
        return nn.Sequential(*layers)


class ExportedNetwork(nn.Module):
    """Images to logits of views, as ``ViewNetwork`` in evaluation.

    Args:
        box_size_px: side of the images in pixels.
        network: plain layers from images to logits.
    """

    def __init__(self, box_size_px: int, network: nn.Module) -> None:
        super().__init__()
        self.box_size_px, self.network = box_size_px, network

    def forward(
        self, images: Float[Tensor, "batch n n"], _ctf_features: Float[Tensor, "batch 3"] | None = None
    ) -> Float[Tensor, "batch views"]:
        """Logits of the views of each image; exported networks do not depend on the CTF."""
        if images.shape[-1] != self.box_size_px:
            raise ValueError(f"images of {images.shape[-1]} px for a network of {self.box_size_px} px")
        logits: Tensor = self.network(images)
        return logits.float()


@torch.no_grad()
def export_network(network: ViewNetwork) -> ExportedNetwork:
    """The network in evaluation as plain torch layers.

    Args:
        network: trained network; not changed.

    Raises:
        ValueError: its filters or its samples of the group depend on the particle.
    """
    if network.is_conditioned or network.sampler is not None:
        what = "filters depend on the CTF" if network.is_conditioned else "samples of the group depend on the image"
        raise ValueError(f"a network whose {what} has no fixed filters to export")
    levels = ExportedLevels(network.pyramid, network.plan.padded_px)
    if isinstance(network.trunk, SteerablePerceptron):
        trunk: nn.Module = ExportedPerceptron(network.trunk)
    else:
        trunk = nn.Sequential(*(_plain(block) for block in network.trunk.children()))
    layers = nn.Sequential(levels, trunk, copy.deepcopy(network.invariants), _plain_head(network))
    return ExportedNetwork(network.box_size_px, layers).eval()


def _plain(block: nn.Module) -> nn.Module:
    """Plain layers in place of a block."""
    if isinstance(block, InvertedResidual):
        projection = ExportedConv(block.projection.filters(), _zeros(block.projection))
        layers = nn.Sequential(_plain(block.expansion), _plain(block.filtering), projection)
        return ExportedResidual(layers) if block.is_residual else layers
    if not isinstance(block, SteerableBlock) or not isinstance(block.activation, FieldActivation):
        raise ValueError(f"a {type(block).__name__} has no plain form")  # noqa: TRY004
    conv, activation = cast(SteerableConv | DepthwiseConv, block.conv), block.activation
    scale, shift = activation.scale_and_shift()
    if activation.synthesis is None or activation.analysis is None:
        return _plain_conv(conv, scale, shift, is_windowed=activation.is_windowed)
    values = len(activation.synthesis)
    factors, bias = (by_field.repeat(values // len(scale)) for by_field in (scale, shift))
    is_whole = isinstance(conv, FullMapConv)
    return nn.Sequential(
        _plain_conv(conv),
        ExportedConv((factors[:, None] * activation.synthesis)[..., None, None], bias, is_rectified=True),
        ExportedConv(
            activation.analysis[..., None, None],
            activation.analysis.new_zeros(len(activation.analysis)),
            is_windowed=activation.is_windowed and not is_whole,
        ),
    )


def _plain_conv(
    conv: SteerableConv | DepthwiseConv,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    is_windowed: bool = False,
) -> ExportedConv:
    """A convolution, with the batch norm and ReLU behind it where scale and shift are given."""
    filters, is_whole = conv.filters(), isinstance(conv, FullMapConv)
    fields = conv.fields if isinstance(conv, DepthwiseConv) else 0
    bias = _zeros(conv)
    if scale is not None and shift is not None:
        is_by_field = fields > 0 and filters.shape[1] > 1  # channels are (field, component) there
        repeats = len(filters) // len(scale)
        factors, bias = (
            by_field.repeat_interleave(repeats) if is_by_field else by_field.repeat(repeats)
            for by_field in (scale, shift)
        )
        filters = filters * factors[:, None, None, None]
    return ExportedConv(
        filters,
        bias,
        stride=conv.stride,
        fields=fields,
        is_whole=is_whole,
        is_rectified=shift is not None,
        is_windowed=is_windowed and not is_whole,
    )


def _zeros(conv: SteerableConv | DepthwiseConv) -> Tensor:
    return conv.weight.new_zeros(len(conv.filters()))


def _plain_head(network: ViewNetwork) -> ExportedLinear:
    """The linear map behind the invariants, with the norm before it."""
    scale, shift = network.scale_and_shift()
    matrix, bias = network.head.weight, network.head.bias
    return ExportedLinear(matrix * scale, bias + matrix @ shift)
