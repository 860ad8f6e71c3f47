"""Decoys: particles and junk synthesised from a map that was found, with the optics, noise and views of the stack.

Each decoy takes the CTF, the noise group, the half set, the class and the pose of a particle of the stack. What it
shows is a projection of the mean of the half maps, alone or beside a neighbour at the edge of the box; noise alone; a
contaminant; two projections, one upon the other; or the part of the map on one side of a plane: the kinds of junk of
``cryoeq.simulation``. Made from the map, decoys know nothing of other molecules or of other shapes of the same one.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.evaluation.junk_amplitudes import Amplitudes
from cryoeq.evaluation.junk_comparison import Comparison, MatchedImages, PosedRows
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.simulation.broken import KEPT_SHARE, project_part
from cryoeq.simulation.contaminants import draw_contaminants, image_contaminants
from cryoeq.simulation.contents import NEIGHBOUR_DISTANCE, OVERLAP_DISTANCE

KINDS = ("particle", "neighbour", "empty", "edge", "overlap", "broken")
_PARTICLE, _NEIGHBOUR, _, _EDGE, _OVERLAP, _BROKEN = range(len(KINDS))
N_GOOD = 2  # of these kinds are no junk
_COUNTS = 320, 80, 60, 60, 100, 140  # broken particles and overlaps are the hardest to tell


@dataclass(frozen=True)
class Decoys(ParticleRows):
    """Decoys, not yet posed.

    Args:
        kind: index into ``KINDS``.
        images: the images.
        source: particle of the stack whose optics, half set and class each decoy has.
        posed: pose of that particle.
    """

    kind: Int[Tensor, " decoys"]
    images: MatchedImages
    source: Int[Tensor, " decoys"]
    posed: PosedRows

    def __len__(self) -> int:
        return len(self.kind)


def draw_decoys(
    comparison: Comparison,
    ctf: CtfParameters | None,
    posed: PosedRows,
    amplitudes: Amplitudes,
    generator: torch.Generator,
) -> Decoys:
    """Draw decoys of every kind.

    Args:
        comparison: the maps, and the noise.
        ctf: CTF of all particles of the stack; None without one.
        posed: poses of all particles, in any box.
        amplitudes: of the particles.
        generator: random number generator on the CPU.
    """
    kind = torch.repeat_interleave(torch.arange(len(KINDS)), torch.tensor(_COUNTS))
    rows = torch.randint(len(posed.half_set), (len(kind),), generator=generator)
    there = posed.rows(rows)
    there = PosedRows(
        there.poses.in_box(comparison.plane.box_size_px),
        there.half_set,
        there.class_index,
    )
    maker = _Maker(comparison, None if ctf is None else ctf[rows], there, rows, generator)
    signal = maker.signal(kind, amplitudes)
    images = maker.matched(signal, amplitudes.noise_spread)
    return Decoys(kind, images, rows, there)


@dataclass(frozen=True)
class _Maker:
    """Makes the images of decoys.

    Args:
        comparison: the maps, and the noise.
        ctf: CTF of each decoy; None without one.
        posed: pose of each.
        rows: particle of the stack that each takes the place of.
        generator: random number generator on the CPU.
    """

    comparison: Comparison
    ctf: CtfParameters | None
    posed: PosedRows
    rows: Int[Tensor, " decoys"]
    generator: torch.Generator

    @property
    def plane(self) -> HalfPlane:
        return self.comparison.plane

    def transfer(self) -> Float[Tensor, "decoys points"]:
        """Transfer of the signal in stored images."""
        if self.ctf is None:
            return torch.ones(len(self.rows), len(self.plane))
        return image_transfer(
            self.ctf,
            self.plane.frequencies_per_angstrom(self.comparison.pixel_size_angstrom),
        )

    def signal(self, kind: Int[Tensor, " decoys"], amplitudes: Amplitudes) -> Complex[Tensor, "decoys points"]:
        """CTF-multiplied signal of each decoy, before the noise."""
        count, draw = len(kind), self.generator
        factor, squared = self.comparison.optics(self.ctf, len(self.rows))
        mean, spread = (values[self.posed.class_index] for values in (amplitudes.centre, amplitudes.spread))
        first, second = (mean * torch.exp(spread * torch.randn(count, generator=draw)) for _ in range(2))
        ramps = shift_phases(
            self.posed.poses.shifts_px.float(),
            self.plane.coords,
            self.plane.box_size_px,
        )
        whole = self.projections(torch.arange(count)) * first[:, None] * ramps
        signal = torch.where(
            torch.isin(kind, torch.tensor([_PARTICLE, _NEIGHBOUR, _OVERLAP]))[:, None],
            whole,
            torch.zeros_like(whole),
        )
        beside = torch.isin(kind, torch.tensor([_NEIGHBOUR, _OVERLAP])).nonzero().squeeze(1)
        signal[beside] += self.seconds(beside, kind[beside] == _NEIGHBOUR) * second[beside, None] * ramps[beside]
        broken = (kind == _BROKEN).nonzero().squeeze(1)
        signal[broken] = self.parts(broken) * first[broken, None] * ramps[broken]
        signal = signal * squared
        edges = (kind == _EDGE).nonzero().squeeze(1)
        deviation = float(self.plane.images(whole * self.transfer()).square().mean().sqrt())
        signal[edges] = self.contaminants(edges, deviation) * factor[edges]
        return signal

    def projections(self, partners: Int[Tensor, " some"]) -> Complex[Tensor, "some points"]:
        """Projections of the mean map of each class at the poses of some decoys."""
        found = torch.empty(len(partners), len(self.plane), dtype=torch.complex64)
        for number, reference in enumerate(self.comparison.references):
            chosen = (self.posed.class_index[partners] == number).nonzero().squeeze(1)
            if len(chosen):
                rotations = self.posed.poses.rotations[partners[chosen]].float()
                found[chosen] = extract_slices(prepare_slices(reference.mean), rotations, self.plane)
        return found

    def seconds(self, chosen: Int[Tensor, " some"], is_neighbour: Tensor) -> Complex[Tensor, "some points"]:
        """Second particles, cut off at the edge of the box, for a first one in its middle."""
        n, draw = self.plane.box_size_px, self.generator
        partners = torch.randint(len(self.rows), (len(chosen),), generator=draw)
        uniform, angle = torch.rand(2, len(chosen), generator=draw)
        nearest, farthest = torch.where(
            is_neighbour,
            torch.tensor(NEIGHBOUR_DISTANCE)[:, None],
            torch.tensor(OVERLAP_DISTANCE)[:, None],
        )
        distance, angle = (
            n * (nearest + (farthest - nearest) * uniform),
            2 * math.pi * angle,
        )
        images = torch.nn.functional.pad(self.plane.images(self.projections(partners)), (n, n, n, n))
        moves = torch.stack([distance * angle.sin(), distance * angle.cos()], -1).round().long().tolist()
        moved = [image[n - y : 2 * n - y, n - x : 2 * n - x] for image, (y, x) in zip(images, moves, strict=True)]
        return self.plane.transform(torch.stack(moved))

    def parts(self, chosen: Int[Tensor, " some"]) -> Complex[Tensor, "some points"]:
        """Broken particles."""
        normals = random_rotations(len(chosen), self.generator)[:, 2]
        shares = KEPT_SHARE[0] + (KEPT_SHARE[1] - KEPT_SHARE[0]) * torch.rand(len(chosen), generator=self.generator)
        means = [reference.mean for reference in self.comparison.references]
        projections = [
            project_part(means[number], rotation.float(), normal, share)
            for number, rotation, normal, share in zip(
                self.posed.class_index[chosen].tolist(),
                self.posed.poses.rotations[chosen],
                normals,
                shares.tolist(),
                strict=True,
            )
        ]
        return self.plane.transform(torch.stack(projections))

    def contaminants(self, chosen: Int[Tensor, " some"], deviation: float) -> Complex[Tensor, "some points"]:
        """Edges of carbon and pieces of ice, in stored images."""
        objects = draw_contaminants(len(chosen), self.plane.box_size_px, self.generator)
        ctf = None if self.ctf is None else self.ctf[chosen]
        pixel_size = self.comparison.pixel_size_angstrom
        return self.plane.transform(image_contaminants(objects, ctf, pixel_size, deviation, self.generator))

    def matched(self, signal: Complex[Tensor, "decoys points"], spread: float) -> MatchedImages:
        """The images with noise, whose level differs from image to image."""
        comparison, shells = self.comparison, self.plane.shells
        _, squared = comparison.optics(self.ctf, len(self.rows))
        group = comparison.group[self.rows]
        variance = squared * (comparison.shot[group][:, shells] + comparison.structure[group][:, shells] * squared)
        variance = variance * torch.exp(spread * torch.randn(len(signal), 1, generator=self.generator))
        noise = torch.randn(*signal.shape, 2, generator=self.generator) * (variance / 2).sqrt()[..., None]
        precision = comparison.relative_precision(self.rows, squared)
        return MatchedImages((signal + torch.view_as_complex(noise)) * precision, squared * precision)
