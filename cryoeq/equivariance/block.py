"""One steerable block: kernel basis x nonlinearity on a sampler, each chosen by name."""

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

_DEGREE_FREQUENCY = 2  # highest of the likelihoods
_ADAPTIVE_SAMPLES = 4
_EXPANSION = 4
"""Fields inside an inverted residual over those around it."""


class SteerableBlock(nn.Module):
    """Convolution, batch norm and nonlinearity.

    Args:
        conv: the convolution; its output fields must be those of the activation.
        activation: batch norm and nonlinearity on them.
    """

    def __init__(self, conv: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(
        self,
        maps: Float[Tensor, "batch in h w"],
        frames: Frames | None = None,
        condition: Float[Tensor, "batch 3"] | None = None,
    ) -> Float[Tensor, "batch out h2 w2"]:
        """The features of the next level.

        Args:
            maps: the features of this level.
            frames: samples of the group for the nonlinearity, where it takes them from outside.
            condition: what the filters depend on, where they do.
        """
        convolved: Tensor = self.conv(maps) if condition is None else self.conv(maps, condition)
        if frames is None:
            activated: Tensor = self.activation(convolved)
        else:
            activated = self.activation(convolved, frames.at(convolved.shape[-1]))
        return activated


@dataclass(frozen=True)
class BlockDesign:
    """What all blocks of a network are made of.

    Args:
        group: the group.
        kernel: "analytic", "implicit" (a perceptron of the place), or "implicit_ctf" (the first block's also of each
            particle's CTF).
        sampler: "uniform" grid of so2 or o2, or "adaptive": places that the first block's features choose.
        samples: of the sampler; rotations of the grid, or number of places. None for 12 and 4.
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
        """Whether the network chooses its samples."""
        return self.sampler == "adaptive"

    def block(
        self,
        in_fields: tuple[int, FieldKind],
        fields: int,
        size: int,
        *,
        stride: int = 1,
        is_whole: bool = False,
        is_main_process: bool = False,
    ) -> SteerableBlock:
        """A block whose output is hidden fields.

        Args:
            in_fields: number and kind of the input's fields.
            fields: number of hidden fields.
            size: odd side of the filters in pixels.
            stride: 1 or 2.
            is_whole: the filter is as large as the map: one pixel comes out.
            is_main_process: of the network.
        """
        out_fields: tuple[int, FieldKind] = (fields, "hidden")
        if is_main_process and self.kernel == "implicit_ctf":
            conv: nn.Module = ConditionedConv(
                self.group, in_fields, out_fields, size, stride=stride, is_whole=is_whole
            )  # fmt: skip
        else:
            kind = FullMapConv if is_whole else SteerableConv
            basis = self._basis(in_fields[1], size)
            conv = kind(self.group, in_fields, out_fields, size, stride=stride, basis=basis)
        return SteerableBlock(conv, self._activation(fields, is_main_process=is_main_process))

    def _basis(self, in_kind: FieldKind, size: int) -> KernelBasis | None:
        """None for the analytic one."""
        if self.kernel != "analytic":
            return ImplicitBasis(self.group, in_kind, "hidden", size)
        if self.degree == "learnt" and not self.group.is_trivial:
            degree = LearntDegree(self.group, _DEGREE_FREQUENCY)
            return RelaxedBasis(self.group, in_kind, "hidden", size, degree)
        return None

    def inverted_residual(self, in_fields: int, fields: int, size: int, *, stride: int = 1) -> InvertedResidual:
        """MobileNetV2's block between hidden fields; kernels of a kind are those of its depthwise filters.

        Args:
            in_fields: number of fields that come in.
            fields: that go out.
            size: odd side of the depthwise filters in pixels.
            stride: 1 or 2.
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
        """What chooses the samples after the first block, None for a grid."""
        if not self.is_adaptive:
            return None
        return AdaptiveSampler(self.group, (fields, "hidden"), self.samples or _ADAPTIVE_SAMPLES)

    def _activation(self, fields: int, *, is_main_process: bool = False) -> nn.Module:
        """A gated one before there are places to sample at: exact, and an image alone has no direction to choose."""
        if self.is_adaptive and is_main_process:
            return IrrepActivation(self.group, fields, gate="gated")
        return FieldActivation(self.group, fields, samples=0 if self.is_adaptive else self.samples)
