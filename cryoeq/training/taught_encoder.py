"""An encoder that has learnt a map, with all that posing particles by it takes; as one file keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.encoder import PoseEncoder
from cryoeq.models.exported_encoder import export_encoder
from cryoeq.models.pose_head import PoseProposals
from cryoeq.models.quantized_encoder import quantize_encoder
from cryoeq.physics.ctf import ctf_condition, matched_filter
from cryoeq.training.rendering_lessons import EncoderView, best_hypotheses, encoder_box_px, propose_poses

Precision = Literal["fp32", "bf16", "int8"]

ENCODER_FILE = "encoder.pt"
_SAME_RAD = math.radians(20.0)  # hypotheses within this are one


class _InHalf(nn.Module):
    """A network of 16-bit numbers between numbers of single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch out"]:
        found: Tensor = self.network(images.to(torch.bfloat16))
        return found.float()


@dataclass(frozen=True)
class TaughtEncoder:
    """Particles to poses by one forward pass.

    Args:
        encoder: in evaluation mode.
        view: how it sees particles.
        radius: largest spatial frequency that it sees, in cycles per box.
        box_size_px: of the particles that it was taught with.
        pixel_size_angstrom: of those.
        has_ctf: the particles had a CTF.
        exported: what runs in the encoder's place, None for itself.
    """

    encoder: PoseEncoder
    view: EncoderView
    radius: int
    box_size_px: int
    pixel_size_angstrom: float
    has_ctf: bool
    exported: nn.Module | None = None

    @torch.no_grad()
    def propose(self, batch: ParticleBatch) -> PoseProposals:
        """Hypotheses for particles of the box and pixel size that were learnt, shifts in their pixels."""
        matched, condition = self.matched(batch)
        return propose_poses(self.exported or self.encoder, matched, self.view, condition)

    @torch.no_grad()
    def in_precision(self, precision: Precision, sample: ParticleBatch) -> "TaughtEncoder":
        """The same encoder as plain tensors, which run faster, and in fewer bits.

        Args:
            precision: "fp32"; "bf16" pays on processors and devices that multiply it, "int8" on CPUs.
            sample: some hundred particles such as will come, for the ranges of 8 bits.

        Raises:
            ValueError: this encoder cannot be had in that precision; see ``export_encoder`` and ``quantize_encoder``.
        """
        if precision == "int8":
            matched, _ = self.matched(sample)
            trials = torch.arange(len(matched), device=matched.device)[:, None] % len(self.view.trials_px)
            return replace(self, exported=quantize_encoder(self.encoder, self.view.images_at_trials(matched, trials)))
        exported = export_encoder(self.encoder)
        if precision == "bf16":
            exported.network = _InHalf(exported.network.to(torch.bfloat16))
        return replace(self, exported=exported)

    def matched(self, batch: ParticleBatch) -> tuple[Complex[Tensor, "batch points"], Float[Tensor, "batch 3"] | None]:
        """Coefficients times CTF up to the radius, and what a conditioned encoder is told."""
        plane = HalfPlane.up_to(self.box_size_px, self.radius, batch.images.device)
        matched = plane.transform(batch.images)
        condition = None
        if batch.ctf is not None:
            condition = ctf_condition(batch.ctf)
            factor, _ = matched_filter(batch.ctf, plane.frequencies_per_angstrom(self.pixel_size_angstrom))
            matched = matched * factor
        return matched, condition

    def pose(self, batch: ParticleBatch) -> tuple[Poses, torch.Tensor]:
        """The preferred pose of each particle, and the probability of the hypotheses that agree with it.

        Args:
            batch: particles on the encoder's device.
        """
        proposals = self.propose(batch)
        rotations, shifts_px = best_hypotheses(proposals)
        agrees = rotation_angle_rad(proposals.rotations, rotations[:, None].expand_as(proposals.rotations)) < _SAME_RAD
        probability = (proposals.logits.exp() * agrees).sum(1)
        return Poses(rotations, shifts_px * self.pixel_size_angstrom), probability

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        encoder = self.encoder
        return {
            "encoder": encoder.state_dict(),
            "architecture": encoder.architecture,
            "radius": self.radius,
            "weights": self.view.weights.cpu(),
            "box_size_px": self.box_size_px,
            "pixel_size_angstrom": self.pixel_size_angstrom,
            "trials_px": self.view.trials_px.cpu(),
            "is_centred": self.view.is_centred,
            "has_ctf": self.has_ctf,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "TaughtEncoder":
        """What ``to_state`` gave, on a device.

        Raises:
            KeyError: something is missing.
            RuntimeError: the weights do not fit the architecture.
        """
        radius, box = state["radius"], state["box_size_px"]
        small = encoder_box_px(radius)
        encoder = PoseEncoder(box_size_px=small, **state["architecture"])
        encoder.load_state_dict(state["encoder"])
        weights, trials = (state[name].to(device) for name in ("weights", "trials_px"))
        view = EncoderView(HalfPlane.up_to(small, radius, device), weights, box / small, trials, state["is_centred"])
        return cls(
            encoder.to(device).eval(),
            view,
            radius,
            box,
            state["pixel_size_angstrom"],
            state["has_ctf"],
        )
