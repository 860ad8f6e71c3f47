"""What each image of a stack shows: which molecule, at what contrast, beside which other one, or no particle at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import Poses
from cryoeq.simulation.particles import Views, draw_poses

OVERLAP_DISTANCE = 0.1, 0.25  # between the centres of two particles that overlap, in boxes
NEIGHBOUR_DISTANCE = 0.4, 0.65  # of a neighbour from the middle, in boxes: it reaches into the image


class JunkKind(IntEnum):
    """Kind of an image that is no particle."""

    NONE = 0  # a particle
    EMPTY = 1  # noise only
    EDGE = 2  # the edge of the carbon film, or a piece of crystalline ice
    OVERLAP = 3  # two particles, one upon the other
    BROKEN = 4  # a part of the molecule


@dataclass(frozen=True)
class StackShares:
    """How much of a stack is what.

    Args:
        models: share of each molecule; they add up to 1.
        junk: share of all images that are no particles, in equal parts of each kind.
        neighbours: share of all images that are particles with another one beside them.
        scale_sd: standard deviation of the particles' contrast, whose mean is 1.
    """

    models: Sequence[float] = (1.0,)
    junk: float = 0.0
    neighbours: float = 0.0
    scale_sd: float = 0.0


@dataclass(frozen=True)
class Contents(ParticleRows):
    """What each image shows.

    Args:
        model_index: index of the molecule in the middle.
        junk: number of its ``JunkKind``.
        has_neighbour: whether it is a particle with another one at its edge.
        scale: factor on the contrast of the molecule in the middle.
        second_model_index: index of the molecule that is not in the middle; without a meaning where there is none.
        second_rotations: its rotation, RELION's matrix A.
        second_offsets_px: place (x, y) of its centre from that of the first, in pixels.
        second_scale: factor on its contrast.
    """

    model_index: Int[Tensor, " particles"]
    junk: Int[Tensor, " particles"]
    has_neighbour: Bool[Tensor, " particles"]
    scale: Float[Tensor, " particles"]
    second_model_index: Int[Tensor, " particles"]
    second_rotations: Float[Tensor, "particles 3 3"]
    second_offsets_px: Float[Tensor, "particles 2"]
    second_scale: Float[Tensor, " particles"]

    def __len__(self) -> int:
        return len(self.junk)

    @property
    def is_particle(self) -> Bool[Tensor, " particles"]:
        """Whether the image shows one whole molecule in its middle."""
        return self.junk == JunkKind.NONE

    @property
    def has_whole(self) -> Bool[Tensor, " particles"]:
        """Whether a whole molecule is in the middle, alone or not."""
        return self.is_particle | (self.junk == JunkKind.OVERLAP)

    @property
    def has_second(self) -> Bool[Tensor, " particles"]:
        """Whether there is a second molecule."""
        return self.has_neighbour | (self.junk == JunkKind.OVERLAP)

    @property
    def class_number(self) -> Int[Tensor, " particles"]:
        """Class of the particle, from 1 in the order of the models; 0 for junk (rlnClassNumber)."""
        return (self.model_index + 1) * self.is_particle


def draw_contents(
    count: int, shares: StackShares, views: Views, box_size_px: int, generator: torch.Generator
) -> Contents:
    """What each image shows; shares are kept as exactly as whole images allow, in random order.

    Args:
        count: number of images.
        shares: how much of the stack is what.
        views: distribution of the second particles' views.
        box_size_px: side of the images.
        generator: random number generator on the CPU.
    """
    model_index = _in_shares(count, shares.models, generator)
    kinds = len(JunkKind) - 1
    junk = _in_shares(count, [1 - shares.junk, *[shares.junk / kinds] * kinds], generator)
    order = torch.randperm(count, generator=generator)
    beside = order[junk[order] == JunkKind.NONE][: round(shares.neighbours * count)]
    has_neighbour = torch.zeros(count, dtype=torch.bool).index_fill(0, beside, value=True)
    scale, second_scale = _draw_scales(2 * count, shares.scale_sd, generator).split(count)
    second: Poses = draw_poses(count, views, 0.0, generator)
    uniform, angle = torch.rand(2, count, generator=generator)
    nearest, farthest = torch.where(
        has_neighbour, torch.tensor(NEIGHBOUR_DISTANCE)[:, None], torch.tensor(OVERLAP_DISTANCE)[:, None]
    )
    distance = box_size_px * (nearest + (farthest - nearest) * uniform)
    angle = 2 * math.pi * angle
    return Contents(
        model_index=model_index,
        junk=junk,
        has_neighbour=has_neighbour,
        scale=scale,
        second_model_index=model_index[torch.randperm(count, generator=generator)],
        second_rotations=second.rotations,
        second_offsets_px=torch.stack([distance * angle.cos(), distance * angle.sin()], -1),
        second_scale=second_scale,
    )


def _in_shares(count: int, shares: Sequence[float], generator: torch.Generator) -> Int[Tensor, " particles"]:
    """Index of each particle's share; the counts are those of the shares, rounded."""
    ends = (torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1] * count).round().long()
    index = torch.bucketize(torch.arange(count), ends, right=True)
    return index[torch.randperm(count, generator=generator)]


def _draw_scales(count: int, deviation: float, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Log-normal factors of mean 1."""
    sigma = math.sqrt(math.log1p(deviation**2))
    return torch.exp(sigma * torch.randn(count, generator=generator) - sigma**2 / 2)
