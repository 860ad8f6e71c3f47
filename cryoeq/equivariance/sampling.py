"""Where on a continuous group a band-limited function is evaluated before a nonlinearity: a grid, or learnt places.

On a fixed grid f' = A^+ sigma(A f) turns with f only as far as the grid is fine. With rows of A that turn with the
image, f' = A^T sigma(A f) / N does so exactly, for any number N of them: A f is invariant.

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
        synthesis: A, from a field's coefficients to its values.
        analysis: from values back to coefficients.
    """

    synthesis: Float[Tensor, "batch samples components h w"]
    analysis: Float[Tensor, "batch components samples h w"]

    def at(self, size: int) -> "Frames":
        """Those of every 2nd, 4th, ... pixel, as strides of 2 leave them, or of the central pixel."""
        have = self.synthesis.shape[-1]
        if size == have:
            return self
        if size == 1:
            middle = slice(have // 2, have // 2 + 1)
            return Frames(self.synthesis[..., middle, middle], self.analysis[..., middle, middle])
        step = (have - 1) // (size - 1)
        return Frames(self.synthesis[..., ::step, ::step], self.analysis[..., ::step, ::step])


@runtime_checkable
class GroupSampler(Protocol):
    """Chooses the samples of a group once; every later nonlinearity uses them."""

    def __call__(self, maps: Float[Tensor, "batch channels h w"]) -> Frames:
        """The samples for these features."""
        ...


class UniformSampler(nn.Module):
    """The same uniform grid of the group at every pixel, and the pseudo-inverse.

    Args:
        group: a continuous group.
        samples: rotations of the grid (and as many mirrors for o2).
        kind: of the fields to sample.
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
        """The grid, whatever the features."""
        batch, _, height, width = maps.shape
        return Frames(*(m[None, ..., None, None].expand(batch, -1, -1, height, width) for m in self._matrices()))

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self.synthesis, self.analysis


class AdaptiveSampler(nn.Module):
    """Rows of A predicted by an equivariant layer from the features themselves: A(g.x) = A(x) rho(g)^T.

    Rows are brought to the norm of a uniform grid's, so that A^T A / N is about the identity where they spread evenly.

    Args:
        group: a continuous group.
        in_fields: number and kind of the fields that it looks at.
        samples: number of rows.
        kind: of the fields to sample.
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
