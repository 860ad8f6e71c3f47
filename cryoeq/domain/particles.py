"""Particle tables without pixels, and batches of particles with them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
        stack_paths: distinct image files.
        stack_index: index into ``stack_paths`` of each particle's image.
        slice_index: index of each particle's image in its file, from 0.
        box_size_px: side of the square images.
        pixel_size_angstrom: pixel size of the images.
        optics: optics groups.
        optics_index: index into ``optics`` of each particle's group.
        ctf: CTF parameters of the particles; None without a CTF (``--no-ctf``, or a stack that has none).
        poses: poses of the file; None unless they were requested: inference never sees them.
        half_set: half set of each particle, 1 or 2 (rlnRandomSubset); None unless requested.
        micrograph_index: number of each particle's micrograph, from 0; None where the file names none.
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
    micrograph_index: Int[Tensor, " particles"] | None = None

    def __len__(self) -> int:
        return len(self.slice_index)

    def rows(self, rows: Int[Tensor, " rows"]) -> "ParticleTable":
        """Some of the particles, in the given order."""
        given = {name: getattr(self, name) for name in ("ctf", "poses", "half_set", "micrograph_index")}
        return replace(
            self,
            stack_index=self.stack_index[rows],
            slice_index=self.slice_index[rows],
            optics_index=self.optics_index[rows],
            **{name: values[rows] for name, values in given.items() if values is not None},
        )


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
