"""Labelled particles of a known map for benchmarks of view networks, and the scores of logits over views.

Centred projections at uniform rotations; each has a CTF of its own (defocus 1 to 2.5 um, U - V of 300 Angstrom) and
white noise, over all pixels ten times the variance of the signal. A network sees what that of the hybrid mode does:
images times their CTF, weighted shell by shell as a Wiener filter would, here inside a soft circle.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark_sets import DATA
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.model import read_atoms
from cryoeq.models.view_head import nearness, smoothed_views, view_spacing_rad
from cryoeq.physics.ctf import image_transfer, matched_filter
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, transforms_of_matched
from cryoeq.reconstruction.view_likelihood import ViewLikelihood, inplane_rotations
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.field_of_view import FieldOfView
from cryoeq.simulation.particles import DefocusRange, draw_ctf, draw_poses
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.network_input import NetworkInput

SNR, DEFOCUS = 0.1, DefocusRange(1e4, 2.5e4, 300.0)
KEPT, NEAR_DEG = 8, 7.5
SMOOTHING = 0.5  # width of a target, in spacings of the views
MASK_RADIUS, EDGE_PX = 0.45, 2.0  # of the circle, of the box
SAMPLE = Path(__file__).parents[2] / "data_samples" / "1wcm_ca.pdb.gz"
C1 = torch.eye(3)[None]
_AT_A_TIME = 1000  # images of one random stream: the first of many are the few
MARGIN_PX = 7  # about an image that is sheared
_OWN = (10**9, 0)  # random numbers of the scene itself
_FEW = 50


@dataclass(frozen=True)
class Images(ParticleRows):
    """Labelled images.

    Args:
        images: as a network sees them.
        rotations: true RELION's matrices A.
        condition: conditioning vectors of the CTFs.
    """

    images: Float[Tensor, "count n n"]
    rotations: Float[Tensor, "count 3 3"]
    condition: Float[Tensor, "count 3"]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Scene:
    """A map, its views, and what turns particles into a network's images.

    Args:
        encoder: the product's view encoder of the true map, untrained: views and harmonic products.
        volume: the map, its projections of variance 1 / SNR of the noise's.
        pixel_angstrom: pixel size.
        weights: of each coefficient.
    """

    encoder: ViewEncoder
    volume: Float[Tensor, "n n n"]
    pixel_angstrom: float
    weights: Float[Tensor, " points"]

    @classmethod
    def build(cls, model: str, box_px: int) -> "Scene":
        """The scene of a model.

        Args:
            model: "1wcm", or the name of a file among the reference models.
            box_px: side of the images.

        Raises:
            FileNotFoundError: the reference data are not there.
        """
        path = SAMPLE if model == "1wcm" else next((DATA / "models").glob(f"{model}.*"), None)
        if path is None:
            raise FileNotFoundError(f"no {model} in {DATA}; CRYOEQ_REFERENCE_DATA names the folder of reference data")
        atoms = read_atoms(path).centred()
        pixel = FieldOfView.around_molecule(2 * atoms.radius_angstrom, box_px, None).pixel_size_angstrom
        volume, plane = sample_atoms(atoms, box_px, pixel).values.float(), HalfPlane.up_to(box_px, box_px / 2 - 1)
        clean = _Clean.draw(volume, plane, pixel, _OWN).transforms
        volume = volume * math.sqrt(SNR) / float(plane.images(clean).std())
        particles = _Clean.draw(volume, plane, pixel, _OWN).observed(plane, pixel)
        seen = NetworkInput.from_map(particles, volume, plane.last_shell, torch.zeros(1, 2), torch.zeros(1))
        encoder = ViewEncoder.build(volume, particles, ViewSettings(0.0, MASK_RADIUS, C1))
        return cls(encoder, volume, pixel, seen.weights)

    @property
    def directions(self) -> Float[Tensor, "views 3"]:
        """The views that logits are of."""
        return self.encoder.directions

    @property
    def plane(self) -> HalfPlane:
        """Coefficients of the images."""
        return HalfPlane.up_to(len(self.volume), len(self.volume) / 2 - 1)

    def draw(self, count: int, seed: int) -> tuple[Images, ParticleTransforms]:
        """Images that no other seed gives, the first of many being the few; and the last thousand's transforms.

        Args:
            count: how many, a multiple of 1,000.
            seed: of their random numbers.
        """
        parts = []
        for first in range(0, count, _AT_A_TIME):
            clean = _Clean.draw(self.volume, self.plane, self.pixel_angstrom, (seed, first))
            particles = clean.observed(self.plane, self.pixel_angstrom)
            parts.append(Images(self.seen(particles.ctf_multiplied), clean.rotations, given(particles.ctf_features)))
        return Images.cat(parts), particles

    def seen(self, ctf_multiplied: Complex[Tensor, "count points"]) -> Float[Tensor, "count n n"]:
        """Images as a network sees them.

        Args:
            ctf_multiplied: coefficients of images times their CTF.
        """
        return self.plane.images(ctf_multiplied * self.weights) * soft_circle(len(self.volume))

    def targets(self, rotations: Float[Tensor, "count 3 3"]) -> Float[Tensor, "count views"]:
        """Probabilities of the views about true ones."""
        width = SMOOTHING * view_spacing_rad(len(self.directions))
        return smoothed_views(rotations[:, 2], self.directions, C1, width)

    def likelihoods(self, particles: ParticleTransforms) -> Float[Tensor, "count views"]:
        """Log-likelihood of each view up to the last shell: what no network of these shells should beat."""
        fine = self.encoder.fine
        whole = ViewLikelihood.build(
            self.encoder.reference, fine.views, fine.harmonics, shift_sigma_px=0.0, offset_step_px=1.0
        )
        small = particles.within(fine.harmonics.plane.last_radius, self.encoder.box_size_px)
        rows = torch.arange(len(particles)).split(_FEW)
        return torch.cat([whole(small.rows(some))[..., 0] for some in rows])

    def scores(
        self, logits: Float[Tensor, "count views"], particles: ParticleTransforms, rotations: Float[Tensor, "count 3 3"]
    ) -> dict[str, float]:
        """Recall of true views among the most probable ones, and errors of poses.

        Args:
            logits: of the views.
            particles: the particles.
            rotations: true ones.
        """
        likely = logits.topk(KEPT, 1).indices
        near = nearness(rotations[:, 2], self.directions, C1).gather(1, likely) > math.cos(math.radians(NEAR_DEG)) ** 2
        poses, value = self._poses(particles, likely)
        rows = torch.arange(len(poses))
        errors = [
            torch.rad2deg(rotation_angle_rad(poses[rows, chosen], rotations))
            for chosen in (torch.zeros_like(rows), value.argmax(1))
        ]
        of_first, of_best = (float(each.median()) for each in errors)
        return {
            "recall_8": round(float(near.any(1).double().mean()), 4),
            "recall_1": round(float(near[:, 0].double().mean()), 4),
            "first_median_deg": round(of_first, 3),
            "best_median_deg": round(of_best, 3),
            "best_beyond_30": round(float((errors[1] > 30).double().mean()), 4),
        }

    def _poses(
        self, particles: ParticleTransforms, views: Int[Tensor, "count kept"]
    ) -> tuple[Float[Tensor, "count kept 3 3"], Float[Tensor, "count kept"]]:
        """The most likely pose of each of some views, its angle between the angles tried, and its value."""
        fine, found, values = self.encoder.fine, [], []
        small = particles.within(fine.harmonics.plane.last_radius, self.encoder.box_size_px)
        for some in torch.arange(len(particles)).split(_FEW):
            products = fine.log_likelihoods(small.rows(some), views[some], torch.zeros(len(some), 1, 2))
            table = products[..., 0].permute(1, 2, 3, 0).flatten(2)  # (mirror, angle) last
            count = len(fine.inplane_rad)
            best = table.max(2)
            mirror, angle = best.indices // count, best.indices % count
            sides = [table.gather(2, (mirror * count + (angle + step) % count)[..., None])[..., 0] for step in (-1, 1)]
            bend = (2 * best.values - sides[0] - sides[1]).clamp(min=1e-6)
            steps = angle + (0.5 * (sides[1] - sides[0]) / bend).clamp(-1, 1)
            turn = fine.inplane_rad[0] + steps * (2 * math.pi / count)
            found.append(inplane_rotations(turn, mirror) @ fine.views[views[some]])
            values.append(best.values)
        return torch.cat(found), torch.cat(values)


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " batch"]]:
    """Rows, each once before any comes again.

    Args:
        count: number of images.
        size: rows of a batch.
        generator: source of chance.
    """
    rows = torch.empty(0, dtype=torch.long)
    while True:
        while len(rows) < size:
            rows = torch.cat([rows, torch.randperm(count, generator=generator)])
        yield rows[:size]
        rows = rows[size:]


@cache
def open_scene(name: str) -> Scene:
    """The scene of a name such as 1wcm-32."""
    model, _, box = name.partition("-")
    return Scene.build(model, int(box))


def soft_circle(box_px: int) -> Float[Tensor, "n n"]:
    """1 inside a circle about pixel n // 2, 0 outside, a cosine between.

    Args:
        box_px: n.
    """
    axis = torch.arange(box_px) - box_px // 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    return 0.5 + 0.5 * (((radius - MASK_RADIUS * box_px) / EDGE_PX + 0.5).clamp(0, 1) * math.pi).cos()


def turned(
    images: Float[Tensor, "batch n n"], angle_rad: Float[Tensor, " batch"], is_mirrored: Bool[Tensor, " batch"]
) -> Float[Tensor, "batch n n"]:
    """Images of even n mirrored, then turned from x to y, about pixel n // 2: quarter turns, and three exact shears.

    Shears by Fourier interpolation keep white noise white. Row 0 and column 0, which networks do not see, become 0.
    """
    square = images[:, 1:, 1:]
    square = torch.where(is_mirrored[:, None, None], square.flip(2), square)
    quarters = (angle_rad / (math.pi / 2)).round()
    square = torch.where((quarters.remainder(2) == 1)[:, None, None], square.transpose(1, 2).flip(2), square)
    square = torch.where((quarters.remainder(4) >= 2)[:, None, None], square.flip(1, 2), square)
    rest = angle_rad - quarters * (math.pi / 2)
    wide = F.pad(square, (MARGIN_PX,) * 4)
    for axis, slope in ((2, -(rest / 2).tan()), (1, rest.sin()), (2, -(rest / 2).tan())):
        wide = _sheared(wide, slope, axis)
    return F.pad(wide[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX], (1, 0, 1, 0))


def _sheared(images: Float[Tensor, "batch n n"], slope: Float[Tensor, " batch"], axis: int) -> Tensor:
    """Lines along an axis moved in proportion to their distance from the middle one."""
    n = images.shape[-1]
    moves = slope[:, None] * (torch.arange(n, device=images.device) - n // 2)
    angles = -2 * math.pi * moves[:, :, None] * torch.fft.rfftfreq(n, device=images.device)
    phases = torch.polar(torch.ones_like(angles), angles)
    phases = phases if axis == 2 else phases.transpose(1, 2)
    sheared: Tensor = torch.fft.irfft(torch.fft.rfft(images, dim=axis) * phases, n, dim=axis)
    return sheared


def given(features: Float[Tensor, "count 3"] | None) -> Float[Tensor, "count 3"]:
    """Conditioning vectors of particles that have CTFs."""
    if features is None:
        raise ValueError("particles without a CTF")
    return features


@dataclass(frozen=True)
class _Clean:
    """A thousand particles before noise, and the random numbers that come next."""

    transforms: Complex[Tensor, "count points"]
    ctf: CtfParameters
    rotations: Float[Tensor, "count 3 3"]
    generator: torch.Generator

    @classmethod
    def draw(
        cls, volume: Float[Tensor, "n n n"], plane: HalfPlane, pixel_angstrom: float, key: tuple[int, int]
    ) -> "_Clean":
        generator = torch.Generator().manual_seed(key[0] * 1_000_003 + key[1])
        rotations = draw_poses(_AT_A_TIME, "uniform", 0.0, generator).rotations.float()
        ctf = draw_ctf(_AT_A_TIME, Optics("one", pixel_angstrom, 300.0, 2.7, 0.1), DEFOCUS, generator)
        transfer = image_transfer(ctf, plane.frequencies_per_angstrom(pixel_angstrom))
        shifts = torch.zeros(_AT_A_TIME, 2)
        return cls(form_images(prepare_slices(volume), rotations, shifts, transfer, plane), ctf, rotations, generator)

    def observed(self, plane: HalfPlane, pixel_angstrom: float) -> ParticleTransforms:
        """With white noise of variance 1, times the CTF."""
        n = plane.box_size_px
        noisy = self.transforms + plane.transform(torch.randn(_AT_A_TIME, n, n, generator=self.generator))
        factor, squared = matched_filter(self.ctf, plane.frequencies_per_angstrom(pixel_angstrom))
        return transforms_of_matched(noisy * factor, squared, self.ctf, plane, pixel_angstrom)
