"""A trained pose encoder as plain torch layers: filters expanded once, batch norms folded into them.

What comes out holds tensors only, none of which is trained any more: it can be compiled, exported by torch, and
quantized. Its numbers are those of the encoder in evaluation, up to rounding.
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
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.models.pose_head import HeadOutputs, PoseHead, PoseProposals


class ExportedConv(nn.Module):
    """A convolution with a bias, and ReLU behind it.

    Args:
        filters: expanded, batch norm included.
        offsets: of each output channel.
        stride: 1 or 2.
        fields: number of fields, each filtered by itself; 0 where all mix.
        is_whole: the filter is as large as the map.
        is_rectified: ReLU follows.
        is_windowed: maps are zero outside a disc.
    """

    filters: Tensor
    offsets: Tensor

    def __init__(
        self,
        filters: Float[Tensor, "out in size size"],
        offsets: Float[Tensor, " out"],
        *,
        stride: int = 1,
        fields: int = 0,
        is_whole: bool = False,
        is_rectified: bool = False,
        is_windowed: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("filters", filters.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("offsets", offsets.detach().clone())
        self.stride, self.fields = stride, fields
        self.is_whole, self.is_rectified, self.is_windowed = is_whole, is_rectified, is_windowed

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        """The filtered maps, zero beyond their edges."""
        if self.is_whole:
            columns = self.filters.permute(0, 2, 3, 1).flatten(1)
            filtered = F.linear(maps.permute(0, 2, 3, 1).flatten(1), columns, self.offsets)[:, :, None, None]
        elif self.fields:
            filtered = depthwise(maps, self.filters, self.fields, self.stride, self.offsets)
        else:
            padding = self.filters.shape[-1] // 2
            filtered = F.conv2d(maps, self.filters, self.offsets, stride=self.stride, padding=padding)
            filtered = filtered.contiguous(memory_format=torch.channels_last)  # of one channel torch cannot tell
        activated = filtered.relu_() if self.is_rectified else filtered
        return activated * disc(activated.shape[-1], maps) if self.is_windowed else activated


class ExportedLinear(nn.Module):
    """A matrix and a bias.

    Args:
        matrix: of the map.
        offsets: of each output channel.
    """

    matrix: Tensor
    offsets: Tensor

    def __init__(self, matrix: Float[Tensor, "out in"], offsets: Float[Tensor, " out"]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.detach().clone())
        self.register_buffer("offsets", offsets.detach().clone())

    def forward(self, features: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """All outputs of each image."""
        return F.linear(features, self.matrix, self.offsets)


class ExportedResidual(nn.Module):
    """The input, and what some layers make of it.

    Args:
        layers: whose output is as large as their input.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Their sum."""
        return maps + self.layers(maps)


class ExportedPerceptron(nn.Module):
    """A steerable perceptron whose batch norms are part of its linear maps.

    Args:
        trunk: in evaluation mode.
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
        """The same as whole matrices, the first one on pixels: several times the products, but no sums around them."""
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


class ExportedEncoder(nn.Module):
    """Images to pose hypotheses, as ``PoseEncoder`` in evaluation.

    Args:
        box_size_px: side of the images.
        outputs: what the hypotheses are made of.
        network: from images to these values.
    """

    def __init__(self, box_size_px: int, outputs: HeadOutputs, network: nn.Module) -> None:
        super().__init__()
        self.box_size_px, self.outputs, self.network = box_size_px, outputs, network

    def forward(
        self, images: Float[Tensor, "batch n n"], _condition: Float[Tensor, "batch 3"] | None = None
    ) -> PoseProposals:
        """The hypotheses for each image; no exported encoder looks at a condition."""
        if images.shape[-1] != self.box_size_px:
            raise ValueError(f"images of {images.shape[-1]} px for an encoder of {self.box_size_px} px")
        return self.outputs.proposals(self.network(images).float())


@torch.no_grad()
def export_encoder(encoder: PoseEncoder) -> ExportedEncoder:
    """The encoder in evaluation as plain torch.

    Args:
        encoder: is not changed.

    Raises:
        ValueError: its filters or its samples depend on the particle.
    """
    if encoder.is_conditioned or encoder.sampler is not None:
        what = "filters depend on the CTF" if encoder.is_conditioned else "samples of the group depend on the image"
        raise ValueError(f"an encoder whose {what} has no fixed filters to export")
    levels = ExportedLevels(encoder.pyramid, encoder.plan.padded_px)
    if isinstance(encoder.trunk, SteerablePerceptron):
        trunk: nn.Module = ExportedPerceptron(encoder.trunk)
    else:
        trunk = nn.Sequential(*(_plain(block) for block in encoder.trunk.children()))
    network = nn.Sequential(levels, trunk, nn.Flatten(), _plain_head(encoder.head))
    return ExportedEncoder(encoder.box_size_px, encoder.head.outputs(), network).eval()


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
    rows, offsets = (part.repeat(values // len(scale)) for part in (scale, shift))
    is_whole = isinstance(conv, FullMapConv)
    return nn.Sequential(
        _plain_conv(conv),
        ExportedConv((rows[:, None] * activation.synthesis)[..., None, None], offsets, is_rectified=True),
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
    """A convolution, with the norm and ReLU behind it where they are given."""
    filters, is_whole = conv.filters(), isinstance(conv, FullMapConv)
    fields = conv.fields if isinstance(conv, DepthwiseConv) else 0
    offsets = _zeros(conv)
    if scale is not None and shift is not None:
        is_by_field = fields > 0 and filters.shape[1] > 1  # channels are (field, component) there
        spread = [
            part.repeat_interleave(len(filters) // len(scale))
            if is_by_field
            else part.repeat(len(filters) // len(scale))
            for part in (scale, shift)
        ]
        filters, offsets = filters * spread[0][:, None, None, None], spread[1]
    return ExportedConv(
        filters,
        offsets,
        stride=conv.stride,
        fields=fields,
        is_whole=is_whole,
        is_rectified=shift is not None,
        is_windowed=is_windowed and not is_whole,
    )


def _zeros(conv: SteerableConv | DepthwiseConv) -> Tensor:
    return conv.weight.new_zeros(len(conv.filters()))


def _plain_head(head: PoseHead) -> ExportedLinear:
    """All linear maps of a head, one below the other, in the order of ``HeadOutputs``."""
    maps = head.maps()
    matrix = torch.cat([conv.filters().flatten(1) for conv in maps])
    zeros = [matrix.new_zeros(conv.out_dim * conv.out_count) for conv in maps]
    biases = [zero if (own := conv.offsets()) is None else own for conv, zero in zip(maps, zeros, strict=True)]
    return ExportedLinear(matrix, torch.cat(biases))
