"""The pose encoder: an equivariant network from particle images to fields, and from these to pose hypotheses."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance import (
    BlockDesign,
    DegreeKind,
    Frames,
    KernelKind,
    SamplerKind,
    SteerableBlock,
    SteerablePerceptron,
    plane_group,
)
from cryoeq.models.pose_head import PoseHead, PoseProposals
from cryoeq.runtime.distributed import all_reduce, mean_over_rows, world_size

TrunkKind = Literal["conv", "dense", "mobilenet"]


@dataclass(frozen=True)
class EncoderDesign:
    """Design of the encoder's blocks; see ``BlockDesign``.

    Args:
        kernel: kind of kernels: "analytic", "implicit" or "implicit_ctf".
        sampler: sampler of so2 and o2: "uniform" or "adaptive".
        samples: number of samples of the group; None for the sampler's default.
        degree: degree of equivariance: "strict" or "learnt".
    """

    kernel: KernelKind = "analytic"
    sampler: SamplerKind = "uniform"
    samples: int | None = None
    degree: DegreeKind = "strict"


_MIN_BOX_PX = 9
_MOMENTUM = 0.1  # weight of a new batch in the pyramid's running statistics
_FINAL_SIZES_PX = (5, 7)
_SMOOTH_FINAL_SIZES_PX = (9, 11, 13)
"""Sides of the last map; larger for groups that are not grid-exact, whose error grows with each halving."""
_MAX_FULL_RESOLUTION_PX = 40
"""Side beyond which the first convolution has stride 2: structure of two pixels is noise there."""


@dataclass(frozen=True)
class SpatialPlan:
    """Sides of the feature maps.

    Args:
        padded_px: side that images are padded to; padded_px - 1 is a multiple of 2^halvings.
        halvings: number of convolutions of stride 2.
        first_stride: stride of the first convolution, 1 or 2.
    """

    padded_px: int
    halvings: int
    first_stride: int = 1

    @property
    def level_sizes_px(self) -> tuple[int, ...]:
        """Side of the feature maps of each level, the first convolution's output first."""
        first = 1 if self.first_stride == 2 else 0
        return tuple((self.padded_px - 1) // 2**k + 1 for k in range(first, self.halvings + 1))

    @classmethod
    def for_box(cls, box_size_px: int, *, is_grid_exact: bool = True) -> "SpatialPlan":
        """The plan that pads least and ends in a small map.

        Args:
            box_size_px: side of the images in pixels.
            is_grid_exact: whether the group maps the pixel grid to itself.

        Raises:
            ValueError: the box is too small.
        """
        if box_size_px < _MIN_BOX_PX:
            raise ValueError(f"a box of {box_size_px} px is too small: the encoder needs at least {_MIN_BOX_PX} px")
        odd = box_size_px - 1 + box_size_px % 2
        finals = _FINAL_SIZES_PX if is_grid_exact else _SMOOTH_FINAL_SIZES_PX
        sides = [(1 + (final - 1) * 2**k, k) for k in range(1, 12) for final in finals]
        padded, halvings = min((side, -k) for side, k in sides if side >= odd)
        return cls(padded, -halvings, 2 if padded > _MAX_FULL_RESOLUTION_PX else 1)

    def __post_init__(self) -> None:
        if (self.padded_px - 1) % 2**self.halvings or self.padded_px % 2 == 0:
            raise ValueError(
                f"a side of {self.padded_px} px does not stay odd under {self.halvings} strides of 2; that breaks "
                f"equivariance: side - 1 must be even and a multiple of {2**self.halvings}"
            )


class LowPassPyramid(nn.Module):
    """The images and their Gaussian low-passes, each normalised by its standard deviation over the batch.

    Low-passes show an encoder with small filters the shape of a particle under noise; being isotropic they commute with
    the group. The norm makes the first layer independent of the scale of the signal, from far below the noise to
    noise-free data.

    Args:
        size_px: side of the padded images in pixels.
        sigmas_px: standard deviations of the Gaussians in pixels.
    """

    blurs: Tensor

    def __init__(self, size_px: int, sigmas_px: tuple[float, ...]) -> None:
        super().__init__()
        x = torch.arange(size_px, dtype=torch.float64)
        distance = x[:, None] - x
        blurs = [torch.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) for sigma in sigmas_px]
        self.register_buffer(
            "blurs",
            torch.stack(blurs).to(torch.get_default_dtype()) if blurs else torch.zeros(0, size_px, size_px),
            persistent=False,
        )
        self.norm = nn.BatchNorm2d(1 + len(sigmas_px), eps=1e-12, momentum=_MOMENTUM, affine=False)

    def forward(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch levels n n"]:
        """The image and its low-passes, channels last."""
        levels = self.levels(images)
        is_shared = self.training and world_size() > 1
        normed: Tensor = self._norm_over_processes(levels) if is_shared else self.norm(levels)
        return normed.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _norm_over_processes(self, levels: Float[Tensor, "batch levels n n"]) -> Float[Tensor, "batch levels n n"]:
        """The norm in training over a batch that processes share; torch's SyncBatchNorm needs GPUs."""
        means = torch.stack([levels.mean((0, 2, 3)), levels.square().mean((0, 2, 3))])
        mean, square = mean_over_rows(means, len(levels))
        variance, pixels = square - mean.square(), all_reduce(mean.new_full((), levels[:, 0].numel()))
        buffers = dict(self.norm.named_buffers())
        buffers["running_mean"].lerp_(mean, _MOMENTUM)
        buffers["running_var"].lerp_(variance * pixels / (pixels - 1), _MOMENTUM)
        buffers["num_batches_tracked"].add_(1)
        return F.batch_norm(levels, mean, variance, eps=self.norm.eps)

    def levels(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch levels n n"]:
        """The image and its low-passes, not normalised."""
        return torch.cat([images[:, None], self.blurs @ images[:, None] @ self.blurs], 1)


class FieldEncoder(nn.Module):
    """Images to hidden fields at their centre, f(g.I) = rho(g) f(I) for every g of the group: what heads read.

    Args:
        group: name of the symmetry group: c1, c2, c4, c8, c16, d1, d2, d4, d8, d16, so2 or o2.
        box_size_px: side of the images; an even box loses row 0 and column 0, so that its centre is a pixel's.
        channels: width of the feature maps in channels (a hidden field of d4 takes 8 of them), from the first level to
            the last map, then that of the hidden layers behind it; by default ``default_channels``. A dense trunk has
            the last one only.
        trunk: "conv", or "dense": the first filter is as large as the image. On boxes of up to about 32 px the dense
            trunk is faster and, where labels are free, more accurate; its cost grows with the area of the box. Or
            "mobilenet": "conv" with the inverted residuals of MobileNetV2 in place of its convolutions but the first.
        low_passes: whether the trunk also gets low-passes of the images.
        design: kernels, samplers and degree of equivariance of the blocks.
        is_bf16: whether the trunk's products are in bf16; norms, low-passes and what follows are in float32. Not part
            of the architecture: weights are the same for both.
    """

    def __init__(
        self,
        group: str,
        box_size_px: int,
        channels: tuple[int, ...] | None = None,
        *,
        trunk: TrunkKind = "conv",
        low_passes: bool = True,
        design: EncoderDesign | Mapping[str, Any] | None = None,
        is_bf16: bool = False,
    ) -> None:
        super().__init__()
        self.is_bf16 = is_bf16
        self.box_size_px, self.low_passes = box_size_px, low_passes
        self.group = plane_group(group)
        chosen = EncoderDesign(**design) if isinstance(design, Mapping) else design or EncoderDesign()
        blocks = BlockDesign(self.group, chosen.kernel, chosen.sampler, chosen.samples, chosen.degree)
        self.is_conditioned = chosen.kernel == "implicit_ctf"
        self.plan = SpatialPlan.for_box(box_size_px, is_grid_exact=self.group.is_grid_exact)
        sizes = () if trunk == "dense" else self.plan.level_sizes_px
        widths = channels or default_channels(sizes)
        if len(widths) != len(sizes) + 1:
            raise ValueError(
                f"channels {widths}: a {trunk} trunk for a box of {box_size_px} px has maps of {sizes} px, each with a "
                "width, and one more width for the layers behind them"
            )
        self.architecture: dict[str, Any] = {
            "group": group, "channels": tuple(widths), "trunk": trunk, "low_passes": low_passes,
            "design": asdict(chosen),
        }  # fmt: skip
        fields = [max(1, round(width / self.group.dim("hidden"))) for width in widths]
        self.fields = fields[-1]
        sigmas = tuple(2.0**k for k in range(3 if box_size_px >= 32 else 2)) if low_passes else ()
        self.pyramid = LowPassPyramid(self.plan.padded_px, sigmas)
        self.trunk = _trunk(blocks, 1 + len(sigmas), fields, self.plan, is_mobile=trunk == "mobilenet")
        self.sampler = blocks.frame_sampler(fields[0])

    @property
    def n_template_filters(self) -> int:
        """Number of template images for ``init_filters_from``; 0 where filters are smaller than an image."""
        return self.trunk.fields if isinstance(self.trunk, SteerablePerceptron) and not self.low_passes else 0

    def init_filters_from(self, images: Float[Tensor, "fields n n"]) -> None:
        """Initialise the first layer with filters matched to images.

        Args:
            images: template of each filter, ``n_template_filters`` in all.

        Raises:
            ValueError: the filters are smaller than an image, or there is another number of them.
        """
        if not isinstance(self.trunk, SteerablePerceptron) or len(images) != self.n_template_filters:
            raise ValueError(f"{len(images)} images for {self.n_template_filters} filters as large as an image")
        self.trunk.init_filters_from(self.centre(images)[:, None])

    def features(
        self, images: Float[Tensor, "batch n n"], ctf_features: Float[Tensor, "batch 3"] | None = None
    ) -> Float[Tensor, "batch channels 1 1"]:
        """Input of a head: hidden fields at one pixel.

        Args:
            images: particle images of the encoder's box.
            ctf_features: conditioning vectors of the CTFs, which kernel "implicit_ctf" alone uses; None without a CTF.

        Raises:
            ValueError: the images are of another box.
        """
        if images.shape[-1] != self.box_size_px:
            raise ValueError(f"images of {images.shape[-1]} px for an encoder of {self.box_size_px} px")
        levels: Tensor = self.pyramid(self.centre(images))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.is_bf16):
            fields = self._through_trunk(levels, ctf_features)
        return fields.to(images.dtype)

    def _through_trunk(self, levels: Tensor, ctf_features: Tensor | None) -> Tensor:
        """Output of the trunk; adaptive samples of the group are predicted after the first block, for all others."""
        if isinstance(self.trunk, SteerablePerceptron):
            fields: Tensor = self.trunk(levels)
            return fields
        first, *others = self.trunk.children()
        given = None
        if self.is_conditioned:
            given = levels.new_zeros(len(levels), 3) if ctf_features is None else ctf_features
        features: Tensor = first(levels, ctf_features=given)
        frames: Frames | None = None if self.sampler is None else self.sampler(features)
        for block in others:
            features = block(features, frames)
        return features

    def centre(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch m m"]:
        """Odd images whose centre is the particle's origin, padded to the plan's side."""
        even = 1 - images.shape[-1] % 2
        odd = images[:, even:, even:]
        margin = (self.plan.padded_px - odd.shape[-1]) // 2
        return F.pad(odd, (margin,) * 4)


class PoseEncoder(FieldEncoder):
    """Images to pose hypotheses, f(g.I) = rho(g) f(I) for every g of the group.

    Args:
        group: name of the symmetry group.
        box_size_px: side of the images.
        n_heads: number of hypotheses per image.
        channels: as in ``FieldEncoder``, and so are the others.
        trunk: "conv", "dense" or "mobilenet".
        low_passes: whether the trunk also gets low-passes of the images.
        design: kernels, samplers and degree of equivariance of the blocks.
        is_bf16: whether the trunk's products are in bf16.
    """

    def __init__(
        self,
        group: str,
        box_size_px: int,
        n_heads: int = 1,
        channels: tuple[int, ...] | None = None,
        *,
        trunk: TrunkKind = "conv",
        low_passes: bool = True,
        design: EncoderDesign | Mapping[str, Any] | None = None,
        is_bf16: bool = False,
    ) -> None:
        super().__init__(
            group, box_size_px, channels, trunk=trunk, low_passes=low_passes, design=design, is_bf16=is_bf16
        )  # fmt: skip
        self.architecture["n_heads"] = n_heads
        self.head = PoseHead(self.group, self.fields, n_heads, shift_scale_px=box_size_px / 64)

    def forward(
        self, images: Float[Tensor, "batch n n"], ctf_features: Float[Tensor, "batch 3"] | None = None
    ) -> PoseProposals:
        """The hypotheses for each image.

        Args:
            images: particle images of the encoder's box.
            ctf_features: conditioning vectors of the CTFs, which kernel "implicit_ctf" alone uses; None without a CTF.
        """
        proposals: PoseProposals = self.head(self.features(images, ctf_features))
        return proposals


def default_channels(level_sizes_px: tuple[int, ...]) -> tuple[int, ...]:
    """Widths for about 10^5 parameters with d4: narrow where maps are large, and 512 behind the last map."""
    return (*(16 if size > 24 else 32 if size > 12 else 64 for size in level_sizes_px), 512)


def _trunk(
    design: BlockDesign, in_channels: int, fields: list[int], plan: SpatialPlan, *, is_mobile: bool
) -> nn.Module:
    """The trunk: levels at half the resolution each, a filter as large as the last map, and a layer at one pixel.

    Grid-exact groups have small filters, two convolutions a level; the others have one, large and smooth.
    """
    is_exact = design.group.is_grid_exact
    first_size, down_size = (5, 3) if is_exact else (7, 7)
    *levels, last = fields
    if not levels:
        return _dense_trunk(design, in_channels, last, plan.padded_px)
    blocks: list[nn.Module] = [
        design.block((in_channels, "scalar"), levels[0], first_size, stride=plan.first_stride, is_first=True)
    ]
    for before, count in pairwise(levels):
        if is_mobile:
            blocks.append(design.inverted_residual(before, count, down_size, stride=2))
        else:
            blocks.append(design.block((before, "hidden"), count, down_size, stride=2))
        if is_exact:
            same = design.inverted_residual(count, count, 3) if is_mobile else design.block((count, "hidden"), count, 3)
            blocks.append(same)
    whole = design.block((levels[-1], "hidden"), last, plan.level_sizes_px[-1], is_whole=True)
    return nn.Sequential(*blocks, whole, _mixing(design, last))


def _dense_trunk(design: BlockDesign, in_channels: int, last: int, size_px: int) -> nn.Module:
    """One filter as large as the image, then two layers at one pixel: a steerable perceptron."""
    if design.group.is_grid_exact and design.kernel == "analytic" and design.degree == "strict":
        return SteerablePerceptron(design.group, in_channels, size_px, last)
    whole = design.block((in_channels, "scalar"), last, size_px, is_whole=True, is_first=True)
    return nn.Sequential(whole, _mixing(design, last), _mixing(design, last))


def _mixing(design: BlockDesign, fields: int) -> SteerableBlock:
    """A layer at one pixel, whose kernels are analytic: there a perceptron of the position would be constant."""
    analytic = replace(design, kernel="analytic")
    return analytic.block((fields, "hidden"), fields, 1, is_whole=True)
