"""Steerable block: kernel basis x nonlinearity on a sampler, each chosen by name."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.convolution import FullMapConv, SteerableConv
from cryoeq.equivariance.degree import LearntDegree, RelaxedBasis
from cryoeq.equivariance.depthwise import DepthwiseConv, InvertedResidual
from cryoeq.equivariance.fields import FieldKind
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.implicit_kernels import ConditionedConv, ImplicitBasis
from cryoeq.equivariance.irrep_nonlinearity import IrrepActivation
from cryoeq.equivariance.kernels import AnalyticBasis, KernelBasis
from cryoeq.equivariance.nonlinearity import FieldActivation
from cryoeq.equivariance.sampling import AdaptiveSampler, Frames

KernelKind = Literal["analytic", "implicit", "implicit_ctf"]
SamplerKind = Literal["uniform", "adaptive"]
DegreeKind = Literal["strict", "learnt"]

_DEGREE_FREQUENCY = 2  # band limit of the log-likelihoods over the group
_ADAPTIVE_SAMPLES = 4
_EXPANSION = 4
"""Fields inside an inverted residual over those around it."""


class SteerableBlock(nn.Module):
    """Convolution, batch norm and nonlinearity.

    Args:
        conv: convolution whose output fields are those of the activation.
        activation: batch norm and nonlinearity on the output fields.
    """

    def __init__(self, conv: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(
        self,
        maps: Float[Tensor, "batch in h w"],
        frames: Frames | None = None,
        ctf_features: Float[Tensor, "batch 3"] | None = None,
    ) -> Float[Tensor, "batch out h2 w2"]:
        """The features of the next level.

        Args:
            maps: features of this level.
            frames: samples of the group, for a nonlinearity that has none of its own.
            ctf_features: conditioning vectors of the CTFs, for filters that depend on them.
        """
        convolved: Tensor = self.conv(maps) if ctf_features is None else self.conv(maps, ctf_features)
        if frames is None:
            activated: Tensor = self.activation(convolved)
        else:
            activated = self.activation(convolved, frames.at(convolved.shape[-1]))
        return activated


@dataclass(frozen=True)
class BlockDesign:
    """Design of all blocks of a network.

    Args:
        group: symmetry group of the network.
        kernel: "analytic", "implicit" (a perceptron of the position in the filter), or "implicit_ctf" (in the first
            block a perceptron also of each particle's CTF).
        sampler: "uniform" grid of so2 or o2, or "adaptive": samples predicted from the first block's features.
        samples: number of rotations of the grid, or of adaptive samples; None for 12 and 4.
        degree: "strict", or "learnt": each layer begins equivariant and learns how far to stay so.

    Raises:
        ValueError: an adaptive sampler for a finite group, whose nonlinearities are exact already; or a learnt degree
            of other kernels than the analytic ones.
    """

    group: PlaneGroup
    kernel: KernelKind = "analytic"
    sampler: SamplerKind = "uniform"
    samples: int | None = None
    degree: DegreeKind = "strict"

    def __post_init__(self) -> None:
        if self.degree == "learnt" and self.kernel != "analytic":
            raise ValueError(f"a learnt degree with kernel {self.kernel}: only analytic kernels have one")
        if not self.group.is_continuous and (self.is_adaptive or self.samples is not None):
            raise ValueError(
                f"sampler {self.sampler} with {self.samples or 'no'} samples: {self.group.name} is finite, its "
                "nonlinearities are evaluated on all elements; only so2 and o2 are sampled"
            )

    @property
    def is_adaptive(self) -> bool:
        """Whether samples of the group are predicted from features."""
        return self.sampler == "adaptive"

    def block(
        self,
        in_fields: tuple[int, FieldKind],
        fields: int,
        size: int,
        *,
        stride: int = 1,
        is_whole: bool = False,
        is_first: bool = False,
    ) -> SteerableBlock:
        """A block whose output is hidden fields.

        Args:
            in_fields: number and kind of the input's fields.
            fields: number of hidden fields of the output.
            size: odd side of the filters in pixels.
            stride: step of the filter in pixels, 1 or 2.
            is_whole: whether the filter is as large as the map, so that the output is one pixel.
            is_first: whether the block is the first one of the network.
        """
        out_fields: tuple[int, FieldKind] = (fields, "hidden")
        if is_first and self.kernel == "implicit_ctf":
            conv: nn.Module = ConditionedConv(
                self.group, in_fields, out_fields, size, stride=stride, is_whole=is_whole
            )  # fmt: skip
        else:
            kind = FullMapConv if is_whole else SteerableConv
            basis = self._basis(in_fields[1], size)
            conv = kind(self.group, in_fields, out_fields, size, stride=stride, basis=basis)
        return SteerableBlock(conv, self._activation(fields, is_first=is_first))

    def _basis(self, in_kind: FieldKind, size: int) -> KernelBasis | None:
        """Kernel basis of a convolution; None for the analytic one."""
        if self.kernel != "analytic":
            return ImplicitBasis(self.group, in_kind, "hidden", size)
        if self.degree == "learnt" and not self.group.is_trivial:
            degree = LearntDegree(self.group, _DEGREE_FREQUENCY)
            return RelaxedBasis(self.group, in_kind, "hidden", size, degree)
        return None

    def inverted_residual(self, in_fields: int, fields: int, size: int, *, stride: int = 1) -> InvertedResidual:
        """MobileNetV2's block between hidden fields; ``kernel`` concerns its depthwise filters.

        Args:
            in_fields: number of fields of the input.
            fields: number of fields of the output.
            size: odd side of the depthwise filters in pixels.
            stride: step of the depthwise filters in pixels, 1 or 2.
        """
        if self.degree == "learnt":
            raise ValueError("a learnt degree in an inverted residual: choose another trunk")
        wide = _EXPANSION * max(in_fields, fields)
        basis: KernelBasis | None = None
        if self.kernel != "analytic":
            basis = ImplicitBasis(self.group, "hidden", "hidden", size)
        elif not self.group.is_grid_exact:
            basis = AnalyticBasis(self.group, "hidden", "hidden", size)
        filtering = DepthwiseConv(self.group, wide, size, stride=stride, basis=basis)
        return InvertedResidual(
            SteerableBlock(SteerableConv(self.group, (in_fields, "hidden"), (wide, "hidden")), self._activation(wide)),
            SteerableBlock(filtering, self._activation(wide)),
            SteerableConv(self.group, (wide, "hidden"), (fields, "hidden")),
            is_residual=stride == 1 and in_fields == fields,
        )

    def frame_sampler(self, fields: int) -> AdaptiveSampler | None:
        """Predicts the samples of the group after the first block; None for a grid."""
        if not self.is_adaptive:
            return None
        return AdaptiveSampler(self.group, (fields, "hidden"), self.samples or _ADAPTIVE_SAMPLES)

    def _activation(self, fields: int, *, is_first: bool = False) -> nn.Module:
        """Activation of a block; gated in the first, before there are adaptive samples: exact for every group."""
        if self.is_adaptive and is_first:
            return IrrepActivation(self.group, fields, gate="gated")
        return FieldActivation(self.group, fields, samples=0 if self.is_adaptive else self.samples)
