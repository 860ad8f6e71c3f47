"""Convolutions whose filters are combinations of steerable kernels.

Channels of a feature map are ordered (component, field), the field fastest, and maps are kept channels-last: that makes
convolutions fast on a CPU, and statistics per field are sums down the columns of a contiguous matrix.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.kernels import AnalyticBasis, KernelBasis


class SteerableConv(nn.Module):
    """A convolution that commutes with a group: f(g.I) = rho(g) f(I).

    Only the coefficients are parameters, and those of the basis where it has any; the filters are expanded in each
    call, so that training and evaluation have the same state.

    Args:
        group: symmetry group of the layer.
        in_fields: number and kind of the input's fields.
        out_fields: number and kind of the output's fields.
        kernel_size: odd side of the filters in pixels.
        stride: step of the filter in pixels, 1 or 2; with 2 the input must have an odd side.
        bias: whether to add a bias along the invariant components.
        basis: kernels that the filters are combinations of, for these kinds and this size; None for the analytic ones,
            which for c1 are single pixels.
    """

    basis: KernelBasis | None
    bias_basis: Tensor

    def __init__(
        self,
        group: PlaneGroup,
        in_fields: tuple[int, FieldKind],
        out_fields: tuple[int, FieldKind],
        kernel_size: int = 1,
        *,
        stride: int = 1,
        bias: bool = False,
        basis: KernelBasis | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel size {kernel_size} is even: a steerable filter needs a central pixel")
        self.in_count, in_kind = in_fields
        self.out_count, out_kind = out_fields
        self.out_kind: FieldKind = out_kind
        self.in_dim, self.out_dim = group.dim(in_kind), group.dim(out_kind)
        self.kernel_size, self.stride = kernel_size, stride
        if basis is None and not group.is_trivial:
            basis = AnalyticBasis(group, in_kind, out_kind, kernel_size)
        self.basis = basis
        count = kernel_size**2 * self.in_dim * self.out_dim if basis is None else basis.count
        fan = max(1, self.in_count * (count if basis is not None else kernel_size**2 * self.in_dim))
        self.weight = nn.Parameter(torch.randn(self.out_count, self.in_count, count) / math.sqrt(fan))
        invariants = group.invariants(out_kind)
        self.register_buffer("bias_basis", invariants, persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.out_count, len(invariants))) if bias and len(invariants) else None

    def filters(self) -> Float[Tensor, "out in size size"]:
        """The filters, expanded in the kernel basis."""
        size = self.kernel_size
        flat = self.weight if self.basis is None else self.weight @ self.basis().flatten(1)
        blocks = flat.view(self.out_count, self.in_count, self.out_dim, self.in_dim, size, size)
        return blocks.permute(2, 0, 3, 1, 4, 5).reshape(
            self.out_dim * self.out_count, self.in_dim * self.in_count, size, size
        )

    def channel_bias(self) -> Float[Tensor, " out"] | None:
        """The bias of each output channel; None without one."""
        if self.bias is None:
            return None
        return (self.bias @ self.bias_basis).t().flatten()

    def forward(self, maps: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h2 w2"]:
        """The filtered maps, zero beyond their edges.

        Raises:
            ValueError: stride 2 on maps of even side, whose samples would not rotate about the centre.
        """
        if self.stride == 2 and maps.shape[-1] % 2 == 0:
            raise ValueError(f"a map of {maps.shape[-1]} px under stride 2 loses equivariance: its side must be odd")
        filters = self.filters().contiguous(memory_format=torch.channels_last)
        return F.conv2d(maps, filters, self.channel_bias(), stride=self.stride, padding=self.kernel_size // 2)


class FullMapConv(SteerableConv):
    """A steerable convolution with a filter as large as the map, evaluated at the central pixel only."""

    def forward(self, maps: Float[Tensor, "batch in size size"]) -> Float[Tensor, "batch out 1 1"]:
        """The value at the centre, as one matrix product: several times faster than a convolution of one pixel."""
        columns = self.filters().permute(0, 2, 3, 1).flatten(1)
        return F.linear(maps.permute(0, 2, 3, 1).flatten(1), columns, self.channel_bias())[:, :, None, None]
