"""Batch norm and nonlinearity on fields that are functions on the group, as values or as Fourier coefficients."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, sampling_matrix
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.sampling import Frames
from cryoeq.runtime.distributed import mean_over_rows


class FieldActivation(nn.Module):
    """Batch norm per field, then ReLU, both on the values of each field on the elements of the group.

    Mean and variance of a field are taken over batch, pixels and group elements, so they are invariant. The regular and
    quotient fields of a discrete group are their values already (as in escnn's InnerBatchNorm and ReLU); band-limited
    ones are sampled on a uniform grid of the group and transformed back (as in escnn's FourierPointwise). That is exact
    for the elements of the grid, quarter turns among them, and approximate between them, because ReLU has no band
    limit.

    For groups with elements that do not map the pixel grid to itself, maps are also windowed to a disc: the bias in
    their corners would show the next layer a square, which does not rotate.

    Args:
        group: symmetry group of the layer.
        fields: number of fields of the maps.
        kind: kind of the fields: values on the group or a quotient, or Fourier coefficients.
        samples: number of rotations of the grid for so2 and o2; None for the default of ``sampling_matrix``, 0 where
            each call brings its samples.
        momentum: weight of a new batch in the running mean and variance that evaluation uses.
        epsilon: number added to the variance.
    """

    running_mean: Tensor
    running_variance: Tensor
    synthesis: Tensor | None
    analysis: Tensor | None

    def __init__(
        self,
        group: PlaneGroup,
        fields: int,
        *,
        kind: FieldKind = "hidden",
        samples: int | None = None,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.is_windowed = not group.is_grid_exact
        self.fields, self.momentum, self.epsilon = fields, momentum, epsilon
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_variance", torch.ones(fields))
        sampling = None if samples == 0 else sampling_matrix(group.name, kind, samples)
        self.register_buffer("synthesis", _per_field(sampling, fields), persistent=False)
        inverse = None if sampling is None else torch.linalg.pinv(sampling)
        self.register_buffer("analysis", _per_field(inverse, fields), persistent=False)

    def forward(
        self, maps: Float[Tensor, "batch channels h w"], frames: Frames | None = None
    ) -> Float[Tensor, "batch channels h w"]:
        """The activated fields, in the same layout.

        Args:
            maps: fields to activate.
            frames: samples of the group at each pixel; None for the grid.
        """
        batch, channels, height, width = maps.shape
        if frames is not None:
            activated = self._at_frames(maps, frames)
        else:
            rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
            values = rows if self.synthesis is None else F.linear(rows, self.synthesis)
            values = self.on_values(values)
            rows = values if self.analysis is None else F.linear(values, self.analysis)
            activated = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return activated * disc(height, activated) if self.is_windowed and height > 1 else activated

    def _at_frames(self, maps: Tensor, frames: Frames) -> Tensor:
        """Activation on each pixel's own samples of the group."""
        values = torch.einsum("nschw,ncfhw->nhwsf", frames.synthesis, maps.unflatten(1, (-1, self.fields)))
        rows = self.on_values(values.reshape(-1, values.shape[-2] * self.fields))
        return torch.einsum("ncshw,nhwsf->ncfhw", frames.analysis, rows.view_as(values)).flatten(1, 2)

    def on_values(self, values: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
        """The activated values of functions on the group, fields fastest; batch statistics in training.

        Sums over a batch need float32, also where the products around them are in bf16.
        """
        values = values.to(self.weight.dtype)
        if self.training:
            with torch.autocast(values.device.type, enabled=False):
                activated, mean, variance = _norm_relu(values, self.weight, self.bias, self.epsilon)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_variance.lerp_(variance, self.momentum)
            return activated
        scale, shift = self.scale_and_shift()
        repeats = values.shape[1] // self.fields
        return torch.addcmul(shift.repeat(repeats), values, scale.repeat(repeats)).relu()

    def scale_and_shift(self) -> tuple[Float[Tensor, " fields"], Float[Tensor, " fields"]]:
        """Factor and term of the batch norm on each field in evaluation."""
        scale = self.weight * (self.running_variance + self.epsilon).rsqrt()
        return scale, self.bias - self.running_mean * scale


def _per_field(matrix: Tensor | None, fields: int) -> Tensor | None:
    """A matrix on the components of one field, as one on all channels (component, field)."""
    return None if matrix is None else torch.kron(matrix.contiguous(), torch.eye(fields, dtype=matrix.dtype))


def disc(size: int, like: Tensor) -> Float[Tensor, "size size"]:
    """1 inside the circle that touches the edges of a square map, 0 outside, with a soft edge of about a pixel."""
    offset = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    radius = (offset[:, None].square() + offset.square()).sqrt()
    return torch.sigmoid(((size - 2) / 2 - radius) / 0.4)


class _NormRelu(torch.autograd.Function):
    """ReLU(weight (x - mean) / sd + bias) with mean and sd per field, over rows and components.

    torch's own batch norm takes one statistic per channel. On (rows x components, fields) it has so few channels that
    it runs ten times slower than this, which sums over rows by matrix products and over components afterwards. Where
    processes share a batch, means are over all of it; gradients of weight and bias are this process's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        means = torch.stack([_field_mean(x, len(weight)), _field_mean(x.square(), len(weight))])
        mean, square = mean_over_rows(means, len(x))
        variance = (square - mean.square()).clamp(min=0)
        inverse_sd = (variance + epsilon).rsqrt()
        repeats = x.shape[1] // len(weight)
        scale = weight * inverse_sd
        y = torch.addcmul((bias - mean * scale).repeat(repeats), x, scale.repeat(repeats)).relu_()
        ctx.save_for_backward(x, y, mean, inverse_sd, weight)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, y, mean, inverse_sd, weight = ctx.saved_tensors
        fields, repeats = len(weight), x.shape[1] // len(weight)
        passed = torch.ops.aten.threshold_backward(gradients[0], y, 0)
        local = torch.stack([_field_mean(passed, fields), _field_mean(passed * x, fields)])
        local[1] = inverse_sd * (local[1] - mean * local[0])  # of the gradient times the normalised input
        first, second = mean_over_rows(local, len(x))
        # dx = weight / sd (dy - first - normalised x second), written as one affine map of x and dy.
        scale = weight * inverse_sd
        slope = -scale * inverse_sd * second
        offset = -scale * first - slope * mean
        dx = torch.addcmul(offset.repeat(repeats), x, slope.repeat(repeats)).addcmul_(passed, scale.repeat(repeats))
        count = x.numel() / fields
        return dx, local[1] * count, local[0] * count, None


def _norm_relu(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Activated values, and the mean and variance of each field."""
    result: tuple[Tensor, Tensor, Tensor] = _NormRelu.apply(x, weight, bias, epsilon)  # type: ignore[no-untyped-call]
    return result


def _field_mean(values: Tensor, fields: int) -> Tensor:
    """Mean of each field over rows and components."""
    ones = values.new_full((1, len(values)), 1 / len(values))
    return (ones @ values).view(-1, fields).mean(0)
