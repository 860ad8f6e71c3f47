"""Images of a stack as it comes, before the noise: particles, neighbours, and what is no particle."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import apply_optics
from cryoeq.simulation.broken import KEPT_SHARE, project_part
from cryoeq.simulation.contaminants import draw_contaminants, image_contaminants, middle
from cryoeq.simulation.contents import Contents, JunkKind
from cryoeq.simulation.particles import NoiseFreeStack


@dataclass(frozen=True)
class StackImages:
    """Noise-free images with whatever they show; particles are those of a ``NoiseFreeStack``.

    Args:
        whole: image of the molecule in the middle, for each row.
        volumes: the molecules.
        contents: what each image shows; on the device of the molecules.
        signal_deviation: standard deviation of the particles' signal, which contaminants are measured by.
    """

    whole: NoiseFreeStack
    volumes: tuple[Volume, ...]
    contents: Contents
    signal_deviation: float

    def images(
        self, rows: slice, whole: Float[Tensor, "batch n n"], generator: torch.Generator
    ) -> Float[Tensor, "batch n n"]:
        """The images of some rows.

        Args:
            rows: which.
            whole: images of the molecules in the middle.
            generator: random number generator of contaminants and of planes of breakage, on the CPU.
        """
        numbers = torch.arange(rows.start, rows.stop, device=self.contents.junk.device)
        contents = self.contents.rows(numbers)
        strength = contents.scale * contents.has_whole
        images = whole * strength[:, None, None]
        ctf = None if self.whole.ctf is None else self.whole.ctf[rows]

        def add(chosen: Int[Tensor, " chosen"], found: Float[Tensor, "chosen n n"]) -> None:
            images.index_add_(0, chosen, found)

        seconds = contents.has_second.nonzero().squeeze(1)
        if len(seconds):
            add(seconds, self._seconds(contents.rows(seconds), self.whole.poses[numbers[seconds]], _of(ctf, seconds)))
        broken = (contents.junk == JunkKind.BROKEN).nonzero().squeeze(1)
        if len(broken):
            chosen = contents.rows(broken)
            add(broken, self._broken(chosen, self.whole.poses[numbers[broken]], _of(ctf, broken), generator))
        edges = (contents.junk == JunkKind.EDGE).nonzero().squeeze(1)
        if len(edges):
            objects = draw_contaminants(len(edges), images.shape[-1], generator).to(images.device)
            pixel_size = self.whole.pixel_size_angstrom
            add(edges, image_contaminants(objects, _of(ctf, edges), pixel_size, self.signal_deviation, generator))
        return images

    def _seconds(self, contents: Contents, first: Poses, ctf: CtfParameters | None) -> Float[Tensor, "chosen n n"]:
        """The second molecules, cut out of images of twice the side, lest they enter again on the other side."""
        pixel_size, n = self.whole.pixel_size_angstrom, self.whole.plane.box_size_px
        wide = HalfPlane.up_to(2 * n, n - 1, first.rotations.device)
        transforms = torch.zeros(len(contents), len(wide), dtype=torch.complex64, device=first.rotations.device)
        for number, sampler in enumerate(self.whole.samplers):
            chosen = (contents.second_model_index == number).nonzero().squeeze(1)
            for row in chosen.tolist():
                points = (wide.coords / 2) @ contents.second_rotations[row, :2]
                transforms[row] = sampler.at(points) / 2  # orthonormal in a box of twice the side
        transfer = None if ctf is None else image_transfer(ctf, wide.frequencies_per_angstrom(pixel_size))
        shifts_px = PoseSet.from_angstrom(first, pixel_size, n).shifts_px - contents.second_offsets_px
        images = middle(wide.images(apply_optics(transforms, shifts_px, transfer, wide)), n)
        return images * contents.second_scale[:, None, None]

    def _broken(
        self, contents: Contents, poses: Poses, ctf: CtfParameters | None, generator: torch.Generator
    ) -> Float[Tensor, "chosen n n"]:
        plane, pixel_size = self.whole.plane, self.whole.pixel_size_angstrom
        normals = random_rotations(len(contents), generator)[:, 2].to(poses.rotations)
        shares = KEPT_SHARE[0] + (KEPT_SHARE[1] - KEPT_SHARE[0]) * torch.rand(len(contents), generator=generator)
        projections = [
            project_part(self.volumes[model].values, rotation, normal, share)
            for model, rotation, normal, share in zip(
                contents.model_index.tolist(), poses.rotations, normals, shares.tolist(), strict=True
            )
        ]
        shifts_px = PoseSet.from_angstrom(poses, pixel_size, plane.box_size_px).shifts_px
        transfer = None if ctf is None else image_transfer(ctf, plane.frequencies_per_angstrom(pixel_size))
        transforms = plane.transform(torch.stack(projections))
        images = plane.images(apply_optics(transforms, shifts_px, transfer, plane))
        return images * contents.scale[:, None, None]


def _of(ctf: CtfParameters | None, rows: Int[Tensor, " rows"]) -> CtfParameters | None:
    return None if ctf is None else ctf[rows]
