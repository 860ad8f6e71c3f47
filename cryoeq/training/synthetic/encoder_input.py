"""Encoder input: particles as a pose encoder sees them, and the poses that it proposes for them.

A particle is multiplied by its CTF, weighted shell by shell as a Wiener filter would, and cropped to the radius of the
map. So the encoder needs no CTF, and rotating or mirroring an image does to its CTF what it does to the particle.

Offsets: a network with filters as large as the image would have to learn every view at every offset. Instead it gets
each particle at several offsets, a square lattice, which the in-plane group maps to itself. All hypotheses at all
offsets are components of one mixture.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.noise_model import noise_and_signal
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_OFFSET_STEP = 0.3  # of the wavelength at the encoder's radius
_REACH = 2.5  # radius of the offsets, over their standard deviation
SAME_POSE_RAD = math.radians(20.0)  # hypotheses within this are one pose
_MAX_PIXELS = 2**21  # in one forward pass: 4,332 images of 22 px


@dataclass(frozen=True)
class EncoderInput:
    """Preprocessing of particles for an encoder.

    Args:
        plane: the coefficients, in the small box of the encoder.
        weights: factor of each coefficient, a Wiener weight over the standard deviation.
        shift_scale: pixels of the particles' box per pixel of the encoder's.
        offsets_px: offsets at which the encoder gets each particle, in pixels of the particles' box.
        is_centred: whether particles are known to be centred, all shifts 0.
    """

    plane: HalfPlane
    weights: Float[Tensor, " points"]
    shift_scale: float
    offsets_px: Float[Tensor, "offsets 2"]
    is_centred: bool

    @classmethod
    def from_map(
        cls, particles: ParticleTransforms, volume: Float[Tensor, "n n n"], radius: int, shift_sigma_px: float
    ) -> "EncoderInput":
        """Wiener weights for the expected images of a map, scaled to unit variance.

        Args:
            particles: CTF-multiplied transforms, at the map's box.
            volume: map from which signal and noise are estimated.
            radius: largest spatial frequency, in cycles per box.
            shift_sigma_px: standard deviation of the shifts per axis; 0 for centred particles.
        """
        box, n = encoder_box_px(radius), particles.plane.box_size_px
        subset = particles.within(radius, n)
        precision, signal = noise_and_signal(particles, volume, subset)
        weights = precision * signal.sqrt() / (1 + subset.ctf_squared.mean() * signal * precision)
        variance = (subset.ctf_multiplied * weights).abs().square().mean()
        offsets = offset_lattice(_OFFSET_STEP * n / radius, _REACH * shift_sigma_px, volume.device)
        plane = HalfPlane.up_to(box, radius, volume.device)
        return cls(plane, weights / variance.sqrt(), n / box, offsets, shift_sigma_px == 0)

    def images(self, ctf_multiplied: Complex[Tensor, "batch points"]) -> Float[Tensor, "batch m m"]:
        """Images for the encoder.

        Args:
            ctf_multiplied: coefficients of particles times their CTF, up to the encoder's radius.
        """
        return self.plane.images(ctf_multiplied * self.weights)

    def shifted_images(
        self, ctf_multiplied: Complex[Tensor, "batch points"], offsets: Int[Tensor, "batch offsets"]
    ) -> Float[Tensor, "pairs m m"]:
        """Images of each particle at some offsets, one for each pair.

        Args:
            ctf_multiplied: coefficients of particles times their CTF, up to the encoder's radius.
            offsets: indices into ``offsets_px`` for each particle.
        """
        moves = self.offsets_px[offsets.flatten()] / self.shift_scale
        phases = shift_phases(-moves, self.plane.coords, self.plane.box_size_px)
        return self.images(ctf_multiplied.repeat_interleave(offsets.shape[1], 0) * phases)

    def nearest_offsets(self, shifts_px: Float[Tensor, "batch 2"]) -> Int[Tensor, " batch"]:
        """Index of the offset nearest to each shift."""
        return torch.cdist(shifts_px, self.offsets_px).argmin(1)

    @property
    def offsets_per_projection(self) -> int:
        """Offsets at which each training projection is used."""
        return 2 if len(self.offsets_px) > 1 else 1


def encoder_box_px(radius: int) -> int:
    """Side of the images that just hold a radius, in the encoder's pixels."""
    return 2 * (radius + 1)


def propose_poses(
    encoder: torch.nn.Module,
    ctf_multiplied: Complex[Tensor, "batch points"],
    encoder_input: EncoderInput,
    ctf_features: Float[Tensor, "batch 3"] | None = None,
    *,
    kept: int = 8,
) -> PoseProposals:
    """The encoder's most probable hypotheses over all offsets, shifts in pixels of the particles' box.

    Args:
        encoder: pose encoder for images of ``encoder_input``.
        ctf_multiplied: coefficients of particles times their CTF, up to the encoder's radius.
        encoder_input: preprocessing of the encoder.
        ctf_features: conditioning vectors of the CTFs; None without a CTF.
        kept: hypotheses per particle, at most; their logits are logarithms of probabilities among all.
    """
    offsets = torch.arange(len(encoder_input.offsets_px), device=ctf_multiplied.device)
    batches = []
    size = max(1, _MAX_PIXELS // (encoder_input.plane.box_size_px**2 * len(offsets)))
    for rows in torch.arange(len(ctf_multiplied), device=ctf_multiplied.device).split(size):
        features = None if ctf_features is None else ctf_features[rows]
        pairs = offsets.expand(len(rows), -1)
        proposals = propose_at_offsets(encoder, ctf_multiplied[rows], encoder_input, pairs, features)
        logits, chosen = proposals.logits.log_softmax(1).topk(min(kept, proposals.logits.shape[1]))
        row = torch.arange(len(rows), device=chosen.device)[:, None]
        batches.append(PoseProposals(proposals.rotations[row, chosen], proposals.shifts_px[row, chosen], logits))
    return PoseProposals.cat(batches)


def propose_at_offsets(
    encoder: torch.nn.Module,
    ctf_multiplied: Complex[Tensor, "batch points"],
    encoder_input: EncoderInput,
    offsets: Int[Tensor, "batch offsets"],
    ctf_features: Float[Tensor, "batch 3"] | None = None,
) -> PoseProposals:
    """All hypotheses at some offsets of each particle, those of one offset after those of another.

    Args:
        encoder: pose encoder for images of ``encoder_input``.
        ctf_multiplied: coefficients of particles times their CTF, up to the encoder's radius.
        encoder_input: preprocessing of the encoder.
        offsets: indices into ``offsets_px`` for each particle.
        ctf_features: conditioning vectors of the CTFs; None without a CTF.
    """
    batch, count = offsets.shape
    features = None if ctf_features is None else ctf_features.repeat_interleave(count, 0)
    proposals: PoseProposals = encoder(encoder_input.shifted_images(ctf_multiplied, offsets), features)
    scale = 0.0 if encoder_input.is_centred else encoder_input.shift_scale
    shifts = proposals.shifts_px * scale + encoder_input.offsets_px[offsets.flatten()][:, None]
    return PoseProposals(
        proposals.rotations.reshape(batch, -1, 3, 3),
        shifts.reshape(batch, -1, 2),
        proposals.logits.reshape(batch, -1),
    )


def best_hypotheses(proposals: PoseProposals) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"]]:
    """Rotation and shift of the highest logit, for each image."""
    rows = torch.arange(len(proposals), device=proposals.logits.device)
    head = proposals.logits.argmax(1)
    return proposals.rotations[rows, head], proposals.shifts_px[rows, head]


def offset_lattice(spacing_px: float, reach_px: float, device: torch.device) -> Float[Tensor, "offsets 2"]:
    """A square lattice over a disk, the origin among its points.

    Args:
        spacing_px: distance of neighbouring offsets in pixels.
        reach_px: radius of the disk in pixels.
        device: device of the result.
    """
    steps = torch.arange(-int(reach_px / spacing_px), int(reach_px / spacing_px) + 1, device=device) * spacing_px
    lattice = torch.cartesian_prod(steps, steps)
    return lattice[lattice.norm(dim=1) <= reach_px + 1e-6]
