"""A pose encoder learns from exactly labelled renderings of a map, made to look like the particles.

A rendering is a slice of the map at a random pose, times the squared CTF of a particle, with the noise that the map
leaves in the particles. Encoders see particles the same way: multiplied by their CTF, weighted shell by shell as
Wiener would, and cropped to the radius of the map. So no CTF is needed when the encoder looks, and turning or mirroring
an image does to its CTF what it does to the particle.

Learning from renderings: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import shell_power
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.training.losses import mixture_loss, pose_cost
from cryoeq.training.observed_images import ObservedImages

_WARMING = 50  # steps in which the learning rate rises
_LEAK = 0.02  # of the mean cost of all heads, so that none dies


@dataclass(frozen=True)
class EncoderView:
    """How an encoder sees particles.

    Args:
        plane: the coefficients, in the small box of the encoder.
        weights: what each is multiplied by.
        shift_scale: pixels of the particles' box per pixel of the encoder's.
    """

    plane: HalfPlane
    weights: Float[Tensor, " points"]
    shift_scale: float

    @classmethod
    def of_map(cls, images: ObservedImages, volume: Float[Tensor, "n n n"], radius: int) -> "EncoderView":
        """Weights that make the expected images of a map the least wrong, scaled to unit variance.

        Args:
            images: the particles, at the map's box.
            volume: the map.
            radius: largest in use, in cycles per box.
        """
        box, n = encoder_box_px(radius), images.plane.box_size_px
        part = images.within(radius, n)
        precision, signal = _spectra(images, volume, part)
        weights = precision * signal.sqrt() / (1 + part.power.mean() * signal * precision)
        variance = (part.matched * weights).abs().square().mean()
        return cls(HalfPlane.up_to(box, radius, volume.device), weights / variance.sqrt(), n / box)

    def images(self, matched: Complex[Tensor, "batch points"]) -> Float[Tensor, "batch m m"]:
        """What the encoder is shown.

        Args:
            matched: coefficients of particles times their CTF, up to the radius of the view.
        """
        return self.plane.images(matched * self.weights)


@dataclass(frozen=True)
class Lessons:
    """What renderings are made of.

    Args:
        padded: oversampled transform of the map.
        plane: the coefficients, in the particles' box.
        power: CTF squared of particles that lend it.
        sigma: standard deviation of the noise per coefficient.
        view: of the encoder.
        shift_sigma_px: spread of the shifts; 0 for centred particles.
        condition: what a conditioned encoder is told of the CTFs of the same particles, None without.
    """

    padded: Complex[Tensor, "m m m"]
    plane: HalfPlane
    power: Float[Tensor, "particles points"]
    sigma: Float[Tensor, " points"]
    view: EncoderView
    shift_sigma_px: float
    condition: Float[Tensor, "particles 3"] | None = None

    @classmethod
    def of_map(
        cls, images: ObservedImages, volume: Float[Tensor, "n n n"], view: EncoderView, shift_sigma_px: float
    ) -> "Lessons":
        """Renderings of a map that look like given particles."""
        part = images.within(float(view.plane.radii.max()), images.plane.box_size_px)
        precision, _ = _spectra(images, volume, part)
        return cls(
            prepare_slices(volume), part.plane, part.power, precision.rsqrt(), view, shift_sigma_px, images.condition
        )

    @torch.no_grad()
    def render(
        self, count: int, generator: torch.Generator, *, level: float = 1.0
    ) -> tuple[
        Complex[Tensor, "count points"], Float[Tensor, "count 3 3"], Float[Tensor, "count 2"],
        Float[Tensor, "count 3"] | None,
    ]:  # fmt: skip
        """Renderings at random poses, times their CTF; rotations; shifts in pixels of their box; what their CTFs are.

        Args:
            count: how many.
            generator: of poses, noise, and whose CTFs they get.
            level: amplitude of the noise, 1 for that of the particles.
        """
        device = self.padded.device
        rotations = random_rotations(count, generator, device)
        shifts = (torch.randn(count, 2, generator=generator) * self.shift_sigma_px).to(device)
        lenders = torch.randint(len(self.power), (count,), generator=generator).to(device)
        power = self.power[lenders]
        noise = torch.randn(count, len(self.plane), 2, generator=generator).to(device) / math.sqrt(2)
        phases = shift_phases(shifts, self.plane.coords, self.plane.box_size_px)
        clean = extract_slices(self.padded, rotations, self.plane) * phases * power
        noisy = clean + torch.view_as_complex(noise) * power.sqrt() * (level * self.sigma)
        return noisy, rotations, shifts, None if self.condition is None else self.condition[lenders]


@dataclass(frozen=True)
class LessonSettings:
    """How to learn.

    Args:
        steps: of the optimizer.
        batch_size: renderings per step.
        rate: highest learning rate; it falls to 0 as a cosine.
        sharpness: of the heads' bells, for the squared chordal distance.
        first_noise: amplitude of the noise at the start; it rises to that of the particles in the first half. A net
            that first learns from clearer renderings is past its plateau sooner.
    """

    steps: int
    batch_size: int
    rate: float
    sharpness: float
    first_noise: float = 1.0


def encoder_box_px(radius: int) -> int:
    """Side of the images that just hold a radius, in the encoder's pixels."""
    return 2 * (radius + 1)


def propose_poses(
    encoder: torch.nn.Module,
    matched: Complex[Tensor, "batch points"],
    view: EncoderView,
    condition: Float[Tensor, "batch 3"] | None = None,
    *,
    centred: bool,
) -> PoseProposals:
    """The encoder's hypotheses, shifts in pixels of the particles' box.

    Args:
        encoder: the pose encoder.
        matched: coefficients of particles times their CTF, up to the radius of the view.
        view: of the encoder.
        condition: of the particles' CTFs.
        centred: all shifts are 0.
    """
    found: PoseProposals = encoder(view.images(matched), condition)
    return PoseProposals(found.rotations, found.shifts_px * (0.0 if centred else view.shift_scale), found.logits)


def learn(
    encoder: torch.nn.Module, lessons: Lessons, settings: LessonSettings, *, seed: int, course: int = 0
) -> Iterator[Progress]:
    """Train the encoder on fresh renderings, one event a step; it is left in evaluation mode.

    Args:
        encoder: changed in place.
        lessons: what to render.
        settings: how to learn.
        seed: of the run.
        course: number of the course; each has its own renderings.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    generator = stream_generator(seed, Stream.LESSONS, course)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=settings.rate, betas=(0.9, 0.99))
    encoder.train()
    for step in range(settings.steps):
        rate = min(1.0, (step + 1) / _WARMING) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate
        level = min(1.0, settings.first_noise + (1 - settings.first_noise) * 2 * step / settings.steps)
        matched, rotations, shifts, condition = lessons.render(settings.batch_size, generator, level=level)
        proposals = propose_poses(encoder, matched, lessons.view, condition, centred=lessons.shift_sigma_px == 0)
        costs = pose_cost(proposals, rotations, shifts, lessons.shift_sigma_px)
        loss = mixture_loss(proposals.logits, costs, settings.sharpness) + _LEAK * costs.mean()
        if not torch.isfinite(loss):
            raise DivergedError(
                f"step {step} of the encoder's training: the loss is {float(loss.detach())}",
                "a finite number is needed to go on",
                "Lower hybrid.rate with --set, or try another --seed",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        preferred = best_hypotheses(proposals)[0].detach()
        error_deg = math.degrees(float(rotation_angle_rad(preferred, rotations).median()))
        yield Progress("teaching the encoder", step + 1, settings.steps, {"rendered_error_deg": error_deg})
    encoder.eval()


def best_hypotheses(proposals: PoseProposals) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"]]:
    """Rotation and shift that the encoder itself prefers, for each image."""
    rows = torch.arange(len(proposals), device=proposals.logits.device)
    head = proposals.logits.argmax(1)
    return proposals.rotations[rows, head], proposals.shifts_px[rows, head]


def _spectra(
    images: ObservedImages, volume: Float[Tensor, "n n n"], part: ObservedImages
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Inverse variance of the noise, and power of the map, for each coefficient of ``part``."""
    power = shell_power(volume)
    shells = part.plane.shells
    return images.noise_variance(power[images.plane.shells]).reciprocal()[shells], power[shells]
