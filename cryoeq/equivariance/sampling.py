"""Samplers of a continuous group, on which nonlinearities of band-limited functions are evaluated: uniform, adaptive.

The nonlinearity acts on the samples A f of a function with coefficients f::

    f' = A^+ sigma(A f)        on a fixed grid
    f' = A^T sigma(A f) / N    on N adaptive samples

The first is equivariant only up to the fineness of the grid. The rows of an adaptive A rotate with the image, so A f is
invariant and the second is equivariant exactly, for any N.

Inal and Cesa 2024, Adaptive sampling for continuous group equivariant neural networks (arXiv 2409.08741), section 3.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.convolution import SteerableConv
from cryoeq.equivariance.fields import FieldKind, sampling_matrix
from cryoeq.equivariance.groups import PlaneGroup


@dataclass(frozen=True)
class Frames:
    """Samples of the group at each pixel.

    Args:
        synthesis: matrices A, from a field's coefficients to its values.
        analysis: matrices from values back to coefficients.
    """

    synthesis: Float[Tensor, "batch samples components h w"]
    analysis: Float[Tensor, "batch components samples h w"]

    def at(self, size: int) -> "Frames":
        """The samples at every 2nd, 4th, ... pixel, for maps after strides of 2, or at the central pixel."""
        side = self.synthesis.shape[-1]
        if size == side:
            return self
        if size == 1:
            middle = slice(side // 2, side // 2 + 1)
            return Frames(self.synthesis[..., middle, middle], self.analysis[..., middle, middle])
        step = (side - 1) // (size - 1)
        return Frames(self.synthesis[..., ::step, ::step], self.analysis[..., ::step, ::step])


@runtime_checkable
class GroupSampler(Protocol):
    """Samples of a group for a batch of features, used by every later nonlinearity."""

    def __call__(self, maps: Float[Tensor, "batch channels h w"]) -> Frames:
        """The samples for these features."""
        ...


class UniformSampler(nn.Module):
    """A uniform grid of the group, the same at every pixel, and the pseudo-inverse of its sampling matrix.

    Args:
        group: a continuous group, so2 or o2.
        samples: number of rotations of the grid (and of mirrors for o2); None for the default of ``sampling_matrix``.
        kind: kind of the fields to sample.
    """

    synthesis: Tensor
    analysis: Tensor

    def __init__(self, group: PlaneGroup, samples: int | None = None, *, kind: FieldKind = "hidden") -> None:
        super().__init__()
        values = sampling_matrix(group.name, kind, samples)
        if values is None:
            raise ValueError(f"a field of {kind} of {group.name} holds values: there is nothing to sample")
        self.register_buffer("synthesis", values, persistent=False)
        self.register_buffer("analysis", torch.linalg.pinv(values), persistent=False)

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Frames:
        """The grid; of the features only the shape matters."""
        batch, _, height, width = maps.shape
        return Frames(*(m[None, ..., None, None].expand(batch, -1, -1, height, width) for m in self._matrices()))

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self.synthesis, self.analysis


class AdaptiveSampler(nn.Module):
    """Rows of A predicted by an equivariant layer from the features themselves: A(g.x) = A(x) rho(g)^T.

    Rows have the norm of a uniform grid's, so that A^T A / N is about the identity where they are evenly distributed.

    Args:
        group: a continuous group, so2 or o2.
        in_fields: number and kind of the fields from which rows are predicted.
        samples: number of rows of A.
        kind: kind of the fields to sample.
    """

    def __init__(
        self, group: PlaneGroup, in_fields: tuple[int, FieldKind], samples: int, *, kind: FieldKind = "hidden"
    ) -> None:
        super().__init__()
        self.samples, self.components = samples, group.dim(kind)
        self.branch = SteerableConv(group, in_fields, (samples, kind))

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Frames:
        """One sampling matrix per pixel; zero where the features are."""
        rows = self.branch(maps).unflatten(1, (self.components, self.samples)).transpose(1, 2)
        rows = nn.functional.normalize(rows, dim=2) * self.components**0.5
        return Frames(rows, rows.transpose(1, 2) / self.samples)
