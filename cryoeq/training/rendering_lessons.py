"""A pose encoder learns from exactly labelled renderings of a map, made to look like the particles.

A rendering is a slice of the map at a random pose, times the squared CTF of a particle, with the noise that the map
leaves in the particles. Encoders see particles the same way: multiplied by their CTF, weighted shell by shell as
Wiener would, and cropped to the radius of the map. So no CTF is needed when the encoder looks, and turning or mirroring
an image does to its CTF what it does to the particle.

Shifts: a net with filters as large as the image would have to learn every view at every shift. Instead it is shown
each particle at trial shifts, a square lattice, which the group maps to itself. Every hypothesis at every trial counts
in one mixture, so the net learns poses of particles that a trial centres, and to doubt those that it does not. A lesson
shows each rendering at the trial nearest to its shift, and at another.

Learning from renderings: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.processes import BatchShare, add_gradients, over_all
from cryoeq.domain.randomness import Stream, sent, stream_generator
from cryoeq.equivariance import cost_of_degrees
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import shell_power
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.training.losses import mixture_loss, pose_cost
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.parallel import steps_per_reading

_WARMING = 50  # steps in which the learning rate rises
_TRIAL_SPACING = 0.3  # of trial shifts, times the box over the radius
_TRIAL_REACH = 2.5  # of the spread of the shifts
_MOST_PIXELS = 2**21  # of the images that the encoder sees at a time: 4,332 of 22 px
_LEAK = 0.02  # of the mean cost of all heads, so that none dies


@dataclass(frozen=True)
class EncoderView:
    """How an encoder sees particles.

    Args:
        plane: the coefficients, in the small box of the encoder.
        weights: what each is multiplied by.
        shift_scale: pixels of the particles' box per pixel of the encoder's.
        trials_px: shifts at which it is shown each particle, in pixels of the particles' box.
        is_centred: all shifts are 0.
    """

    plane: HalfPlane
    weights: Float[Tensor, " points"]
    shift_scale: float
    trials_px: Float[Tensor, "trials 2"]
    is_centred: bool

    @classmethod
    def of_map(
        cls, images: ObservedImages, volume: Float[Tensor, "n n n"], radius: int, shift_sigma_px: float
    ) -> "EncoderView":
        """Weights that make the expected images of a map the least wrong, scaled to unit variance.

        Args:
            images: the particles, at the map's box.
            volume: the map.
            radius: largest in use, in cycles per box.
            shift_sigma_px: spread of the shifts per axis; 0 for centred particles.
        """
        box, n = encoder_box_px(radius), images.plane.box_size_px
        part = images.within(radius, n)
        precision, signal = _spectra(images, volume, part)
        weights = precision * signal.sqrt() / (1 + part.power.mean() * signal * precision)
        variance = (part.matched * weights).abs().square().mean()
        trials = _trial_shifts(_TRIAL_SPACING * n / radius, _TRIAL_REACH * shift_sigma_px, volume.device)
        plane = HalfPlane.up_to(box, radius, volume.device)
        return cls(plane, weights / variance.sqrt(), n / box, trials, shift_sigma_px == 0)

    def images(self, matched: Complex[Tensor, "batch points"]) -> Float[Tensor, "batch m m"]:
        """What the encoder is shown.

        Args:
            matched: coefficients of particles times their CTF, up to the radius of the view.
        """
        return self.plane.images(matched * self.weights)

    def images_at_trials(
        self, matched: Complex[Tensor, "batch points"], trials: Int[Tensor, "batch tried"]
    ) -> Float[Tensor, "looks m m"]:
        """What it is shown of each particle at some trial shifts, one look per pair.

        Args:
            matched: as for ``images``.
            trials: indices of the trial shifts.
        """
        moves = self.trials_px[trials.flatten()] / self.shift_scale
        phases = shift_phases(-moves, self.plane.coords, self.plane.box_size_px)
        return self.images(matched.repeat_interleave(trials.shape[1], 0) * phases)

    def nearest_trials(self, shifts_px: Float[Tensor, "batch 2"]) -> Int[Tensor, " batch"]:
        """Index of the trial shift nearest to each shift."""
        return torch.cdist(shifts_px, self.trials_px).argmin(1)

    @property
    def looks_per_lesson(self) -> int:
        """Trial shifts at which a lesson shows each rendering."""
        return 2 if len(self.trials_px) > 1 else 1


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
    def slices(self, count: int, generator: torch.Generator) -> Float[Tensor, "count m m"]:
        """Clean images of random poses with the mean CTF, as an encoder sees them: filters to begin with.

        Args:
            count: how many.
            generator: of the poses.
        """
        rotations = random_rotations(count, generator, self.padded.device)
        return self.view.images(extract_slices(self.padded, rotations, self.plane) * self.power.mean(0))

    @torch.no_grad()
    def render(self, count: int, generator: torch.Generator, *, level: float = 1.0) -> "Renderings":
        """The map at random poses.

        Args:
            count: how many.
            generator: of poses, noise, and whose CTFs they get.
            level: amplitude of the noise, 1 for that of the particles.
        """
        device = self.padded.device
        rotations = random_rotations(count, generator, device)
        shifts = sent(torch.randn(count, 2, generator=generator) * self.shift_sigma_px, device)
        lenders = sent(torch.randint(len(self.power), (count,), generator=generator), device)
        power = self.power[lenders]
        noise = sent(torch.randn(count, len(self.plane), 2, generator=generator), device) / math.sqrt(2)
        phases = shift_phases(shifts, self.plane.coords, self.plane.box_size_px)
        clean = extract_slices(self.padded, rotations, self.plane) * phases * power
        noisy = clean + torch.view_as_complex(noise) * power.sqrt() * (level * self.sigma)
        return Renderings(noisy, rotations, shifts, None if self.condition is None else self.condition[lenders])


class Renderings(NamedTuple):
    """Images with exact labels.

    Args:
        matched: coefficients times their CTF, with noise.
        rotations: of the poses.
        shifts_px: in pixels of the particles' box.
        condition: what a conditioned encoder is told of their CTFs, None without.
    """

    matched: Complex[Tensor, "count points"]
    rotations: Float[Tensor, "count 3 3"]
    shifts_px: Float[Tensor, "count 2"]
    condition: Float[Tensor, "count 3"] | None

    def rows(self, rows: slice | Int[Tensor, " rows"]) -> "Renderings":
        """Some of them."""
        condition = None if self.condition is None else self.condition[rows]
        return Renderings(self.matched[rows], self.rotations[rows], self.shifts_px[rows], condition)


@dataclass(frozen=True)
class LessonSettings:
    """How to learn.

    Args:
        steps: of the optimizer.
        batch_size: images per step, half as many renderings where each is shown at two trial shifts.
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
    kept: int = 8,
) -> PoseProposals:
    """The encoder's most probable hypotheses over all trial shifts, shifts in pixels of the particles' box.

    Args:
        encoder: the pose encoder.
        matched: coefficients of particles times their CTF, up to the radius of the view.
        view: of the encoder.
        condition: of the particles' CTFs.
        kept: hypotheses per particle, at most; their logits are logarithms of probabilities among all.
    """
    trials = torch.arange(len(view.trials_px), device=matched.device)
    parts = []
    most = max(1, _MOST_PIXELS // (view.plane.box_size_px**2 * len(trials)))
    for rows in torch.arange(len(matched), device=matched.device).split(most):
        told = None if condition is None else condition[rows]
        every = propose_at_trials(encoder, matched[rows], view, trials.expand(len(rows), -1), told)
        logits, chosen = every.logits.log_softmax(1).topk(min(kept, every.logits.shape[1]))
        row = torch.arange(len(rows), device=chosen.device)[:, None]
        parts.append(PoseProposals(every.rotations[row, chosen], every.shifts_px[row, chosen], logits))
    return PoseProposals.join(parts)


def propose_at_trials(
    encoder: torch.nn.Module,
    matched: Complex[Tensor, "batch points"],
    view: EncoderView,
    trials: Int[Tensor, "batch tried"],
    condition: Float[Tensor, "batch 3"] | None = None,
) -> PoseProposals:
    """All hypotheses at some trial shifts of each particle, those of one trial after those of another.

    Args:
        encoder: the pose encoder.
        matched: coefficients of particles times their CTF, up to the radius of the view.
        view: of the encoder.
        trials: indices of the trial shifts.
        condition: of the particles' CTFs.
    """
    batch, tried = trials.shape
    told = None if condition is None else condition.repeat_interleave(tried, 0)
    found: PoseProposals = encoder(view.images_at_trials(matched, trials), told)
    shifts = (
        found.shifts_px * (0.0 if view.is_centred else view.shift_scale) + view.trials_px[trials.flatten()][:, None]
    )
    return PoseProposals(
        found.rotations.reshape(batch, -1, 3, 3), shifts.reshape(batch, -1, 2), found.logits.reshape(batch, -1)
    )


def learn(
    encoder: torch.nn.Module, lessons: Lessons, settings: LessonSettings, *, seed: int, course: int = 0
) -> Iterator[Progress]:
    """Train the encoder on fresh renderings; it is left in evaluation mode.

    There is an event after each step on a CPU. A GPU is waited for only at an event, where figures are read.

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
    every, unread = steps_per_reading(lessons.padded.device), list[Tensor]()
    encoder.train()
    for step in range(settings.steps):
        rate = min(1.0, (step + 1) / _WARMING) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate
        level = min(1.0, settings.first_noise + (1 - settings.first_noise) * 2 * step / settings.steps)
        loss, figures = _look(encoder, lessons, settings, generator, level)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        add_gradients(list(encoder.parameters()))
        optimizer.step()
        unread.append(figures)
        if len(unread) == every or step + 1 == settings.steps:
            error_rad = _read(unread, step + 1)
            figures_deg = {"rendered_error_deg": math.degrees(error_rad)}
            yield Progress("teaching the encoder", step + 1, settings.steps, figures_deg)
    encoder.eval()


def _look(
    encoder: torch.nn.Module, lessons: Lessons, settings: LessonSettings, generator: torch.Generator, level: float
) -> tuple[Float[Tensor, ""], Float[Tensor, " figures"]]:
    """The loss over this process's share of fresh renderings; that over all, and their median error in radians."""
    view = lessons.view
    count = settings.batch_size // view.looks_per_lesson
    drawn = lessons.render(count, generator, level=level)
    share, trials = BatchShare.of(count), choose_trials(view, drawn.shifts_px, generator)
    shown = drawn.rows(share.places)
    proposals = propose_at_trials(encoder, shown.matched, view, trials[share.places], shown.condition)
    costs = pose_cost(proposals, shown.rotations, shown.shifts_px, lessons.shift_sigma_px)
    of_poses = mixture_loss(proposals.logits, costs, settings.sharpness) + _LEAK * costs.mean()
    loss = share.weight * (of_poses + cost_of_degrees(encoder).to(of_poses))
    errors_rad = rotation_angle_rad(best_hypotheses(proposals)[0].detach(), shown.rotations)
    return loss, torch.stack([over_all(loss.detach()), share.gather(errors_rad).median()])


def _read(unread: list[Tensor], done: int) -> float:
    """Wait for the device; the error of the last step, in radians."""
    steps = torch.stack(unread).tolist()
    unread.clear()
    for step, (whole, _) in enumerate(steps, done - len(steps)):
        if not math.isfinite(whole):
            raise DivergedError(
                f"step {step} of the encoder's training: the loss is {whole}",
                "a finite number is needed to go on",
                "Lower hybrid.rate with --set, or try another --seed",
            )
    return float(steps[-1][1])


def best_hypotheses(proposals: PoseProposals) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"]]:
    """Rotation and shift that the encoder itself prefers, for each image."""
    rows = torch.arange(len(proposals), device=proposals.logits.device)
    head = proposals.logits.argmax(1)
    return proposals.rotations[rows, head], proposals.shifts_px[rows, head]


def _trial_shifts(spacing_px: float, reach_px: float, device: torch.device) -> Float[Tensor, "trials 2"]:
    """A square lattice over a disk, the origin among its points."""
    steps = torch.arange(-int(reach_px / spacing_px), int(reach_px / spacing_px) + 1, device=device) * spacing_px
    lattice = torch.cartesian_prod(steps, steps)
    return lattice[lattice.norm(dim=1) <= reach_px + 1e-6]


def choose_trials(
    view: EncoderView, shifts_px: Float[Tensor, "batch 2"], generator: torch.Generator
) -> Int[Tensor, "batch looks"]:
    """The trial nearest to each shift, and a random other where there are any."""
    nearest, others = view.nearest_trials(shifts_px), view.looks_per_lesson - 1
    drawn = torch.randint(max(1, len(view.trials_px) - 1), (len(nearest), others), generator=generator)
    drawn = sent(drawn, nearest.device)
    return torch.cat([nearest[:, None], drawn + (drawn >= nearest[:, None])], 1)


def _spectra(
    images: ObservedImages, volume: Float[Tensor, "n n n"], part: ObservedImages
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Inverse variance of the noise, and power of the map, for each coefficient of ``part``."""
    power = shell_power(volume)
    shells = part.plane.shells
    return images.noise_variance(power[images.plane.shells]).reciprocal()[shells], power[shells]
