"""Particle stacks: what is known of them without their pixels, and batches of them with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.pose import Poses


@dataclass(frozen=True)
class ParticleTable:
    """One row per particle, in the order of the input file; no pixels.

    Args:
        stack_paths: the distinct image files.
        stack_index: which of them holds each particle.
        slice_index: which image of that file, counted from 0.
        box_size_px: side of the square images.
        pixel_size_angstrom: of the images.
        optics: the optics groups.
        optics_index: which of them each particle belongs to, counted from 0.
        ctf: None without a CTF (``--no-ctf``, or a stack that has none).
        poses: None unless they were asked for: inference never sees them.
        half_set: 1 or 2 (rlnRandomSubset); None unless asked for.
    """

    stack_paths: tuple[Path, ...]
    stack_index: Int[Tensor, " particles"]
    slice_index: Int[Tensor, " particles"]
    box_size_px: int
    pixel_size_angstrom: float
    optics: tuple[Optics, ...]
    optics_index: Int[Tensor, " particles"]
    ctf: CtfParameters | None = None
    poses: Poses | None = None
    half_set: Int[Tensor, " particles"] | None = None

    def __len__(self) -> int:
        return len(self.slice_index)


@dataclass(frozen=True)
class ParticleBatch:
    """Some particles with their pixels.

    Args:
        indices: rows of the ParticleTable.
        images: real-space images (y, x), protein bright, background mean 0 and standard deviation 1.
        ctf: their CTF, None without.
    """

    indices: Int[Tensor, " batch"]
    images: Float[Tensor, "batch n n"]
    ctf: CtfParameters | None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> "ParticleBatch":
        """The same batch on another device."""
        return self.each(lambda values: values.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> "ParticleBatch":
        """The same batch after a change of each of its tensors that keeps what they mean."""
        return ParticleBatch(change(self.indices), change(self.images), self.ctf.each(change) if self.ctf else None)
