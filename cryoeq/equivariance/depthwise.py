"""Steerable depthwise convolutions, which filter each field by itself, and MobileNetV2's inverted residual block.

Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks (arXiv 1801.04381); with steerable layers
after Mohamed, Cesa, Cohen and Welling 2020 (arXiv 2004.09691).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.convolution import SteerableConv
from cryoeq.equivariance.groups import PlaneGroup, permute_pixels
from cryoeq.equivariance.kernels import KernelBasis
from cryoeq.equivariance.sampling import Frames


class DepthwiseConv(nn.Module):
    """A convolution of hidden fields that mixes no two of them.

    Where the group maps the pixel grid to itself, each field has one free filter k, rotated for the component of each
    element h::

        K_h(x) = k(h^-1 x)

    It takes as many products as a plain depthwise convolution. For other groups, and where a basis is given, the
    components of a field mix by steerable kernels.

    Args:
        group: symmetry group of the layer.
        fields: number of hidden fields of input and output.
        kernel_size: odd side of the filters in pixels.
        stride: step of the filters in pixels, 1 or 2; with 2 the input must have an odd side.
        basis: kernels between two hidden fields; None for one free filter, rotated.
    """

    basis: KernelBasis | None
    elements: Tensor

    def __init__(
        self, group: PlaneGroup, fields: int, kernel_size: int, *, stride: int = 1, basis: KernelBasis | None = None
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel size {kernel_size} is even: a steerable filter needs a central pixel")
        self.fields, self.kernel_size, self.stride, self.basis = fields, kernel_size, stride, basis
        self.dim = group.dim("hidden")
        if basis is None:
            self.elements = group.regular_representation().elements.round()
            self.weight = nn.Parameter(torch.randn(fields, kernel_size, kernel_size) / kernel_size)
        else:
            self.weight = nn.Parameter(torch.randn(fields, basis.count) / math.sqrt(basis.count))

    def filters(self) -> Float[Tensor, "channels in size size"]:
        """The filter of each channel: channels (component, field) without a basis, (field, component) with one."""
        if self.basis is None:
            return torch.cat([permute_pixels(self.weight, h) for h in self.elements])[:, None]
        size = self.kernel_size
        return (self.weight @ self.basis().flatten(1)).view(self.fields * self.dim, self.dim, size, size)

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The filtered maps, zero beyond their edges.

        Raises:
            ValueError: stride 2 on maps of even side, whose samples would not rotate about the centre.
        """
        if self.stride == 2 and maps.shape[-1] % 2 == 0:
            raise ValueError(f"a map of {maps.shape[-1]} px under stride 2 loses equivariance: its side must be odd")
        return depthwise(maps, self.filters(), self.fields, self.stride)


def depthwise(
    maps: Float[Tensor, "batch channels h w"],
    filters: Float[Tensor, "channels in size size"],
    fields: int,
    stride: int,
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch channels h2 w2"]:
    """Filter each field, or each channel, by itself.

    Args:
        maps: feature maps, channels ordered (component, field).
        filters: filter of each channel, ordered (component, field) where it has one input channel, else (field,
            component).
        fields: number of fields of the maps.
        stride: step of the filters in pixels, 1 or 2.
        bias: bias of each channel, in the order of the filters.
    """
    filters = filters.contiguous(memory_format=torch.channels_last)
    padding = filters.shape[-1] // 2
    if filters.shape[1] == 1:
        return F.conv2d(maps, filters, bias, stride=stride, padding=padding, groups=len(filters))
    by_field = maps.unflatten(1, (-1, fields)).transpose(1, 2).flatten(1, 2)
    by_field = by_field.contiguous(memory_format=torch.channels_last)
    filtered = F.conv2d(by_field, filters, bias, stride=stride, padding=padding, groups=fields)
    back = filtered.unflatten(1, (fields, -1)).transpose(1, 2).flatten(1, 2)
    return back.contiguous(memory_format=torch.channels_last)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expansion to more fields, depthwise filters, linear projection, and a shortcut.

    Args:
        expansion: block of 1 x 1 filters, to more fields.
        filtering: block of a depthwise convolution.
        projection: linear map to the output fields, without a norm, which the next block has.
        is_residual: whether to add the input, for stride 1 and equal numbers of fields.
    """

    def __init__(
        self, expansion: nn.Module, filtering: nn.Module, projection: SteerableConv, is_residual: bool
    ) -> None:
        super().__init__()
        self.expansion, self.filtering, self.projection = expansion, filtering, projection
        self.is_residual = is_residual

    def forward(
        self, maps: Float[Tensor, "batch in h w"], frames: Frames | None = None
    ) -> Float[Tensor, "batch out h2 w2"]:
        """The features of the next level.

        Args:
            maps: hidden fields of this level.
            frames: samples of the group, for nonlinearities that have none of their own.
        """
        projected: Tensor = self.projection(self.filtering(self.expansion(maps, frames), frames))
        return maps + projected if self.is_residual else projected
