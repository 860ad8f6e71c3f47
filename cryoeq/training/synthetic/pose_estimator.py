"""Pose estimator: a trained encoder with its preprocessing, as ``encoder.pt`` keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.export.exported_encoder import export_encoder
from cryoeq.models.export.quantized_encoder import quantize_encoder
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.ctf import ctf_features, matched_filter
from cryoeq.training.synthetic.encoder_input import (
    SAME_POSE_RAD,
    EncoderInput,
    best_hypotheses,
    encoder_box_px,
    propose_poses,
)

Precision = Literal["fp32", "bf16", "int8"]

ENCODER_FILE = "encoder.pt"


class _InBfloat16(nn.Module):
    """A network in bf16 with inputs and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch out"]:
        outputs: Tensor = self.network(images.to(torch.bfloat16))
        return outputs.float()


@dataclass(frozen=True)
class PoseEstimator:
    """Particles to poses by one forward pass.

    Args:
        encoder: trained pose encoder in evaluation mode.
        encoder_input: preprocessing of particles for the encoder.
        radius: largest spatial frequency of its input, in cycles per box.
        box_size_px: box of the particles of the training.
        pixel_size_angstrom: pixel size of the particles of the training.
        has_ctf: whether the particles of the training have a CTF.
        exported: network that runs in the encoder's place; None for the encoder itself.
        particle_diameter_angstrom: diameter by which the background of the particles was told; None where the box did.
    """

    encoder: PoseEncoder
    encoder_input: EncoderInput
    radius: int
    box_size_px: int
    pixel_size_angstrom: float
    has_ctf: bool
    exported: nn.Module | None = None
    particle_diameter_angstrom: float | None = None

    @torch.no_grad()
    def propose(self, batch: ParticleBatch) -> PoseProposals:
        """Hypotheses for particles of the training's box and pixel size, shifts in their pixels."""
        ctf_multiplied, features = self.transform(batch)
        return propose_poses(self.exported or self.encoder, ctf_multiplied, self.encoder_input, features)

    @torch.no_grad()
    def in_precision(self, precision: Precision, sample: ParticleBatch) -> "PoseEstimator":
        """The same encoder as plain tensors, which run faster, and in fewer bits.

        Args:
            precision: "fp32"; "bf16" pays on processors and devices that multiply it, "int8" on CPUs.
            sample: some hundred typical particles, for the ranges of 8 bits.

        Raises:
            ValueError: this encoder cannot run in that precision; see ``export_encoder`` and ``quantize_encoder``.
        """
        if precision == "int8":
            ctf_multiplied, _ = self.transform(sample)
            count = len(self.encoder_input.offsets_px)
            offsets = torch.arange(len(ctf_multiplied), device=ctf_multiplied.device)[:, None] % count
            images = self.encoder_input.shifted_images(ctf_multiplied, offsets)
            return replace(self, exported=quantize_encoder(self.encoder, images))
        exported = export_encoder(self.encoder)
        if precision == "bf16":
            exported.network = _InBfloat16(exported.network.to(torch.bfloat16))
        return replace(self, exported=exported)

    def transform(
        self, batch: ParticleBatch
    ) -> tuple[Complex[Tensor, "batch points"], Float[Tensor, "batch 3"] | None]:
        """Coefficients times CTF up to the radius, and conditioning vectors of the CTFs."""
        plane = HalfPlane.up_to(self.box_size_px, self.radius, batch.images.device)
        coefficients = plane.transform(batch.images)
        if batch.ctf is None:
            return coefficients, None
        factor, _ = matched_filter(batch.ctf, plane.frequencies_per_angstrom(self.pixel_size_angstrom))
        return coefficients * factor, ctf_features(batch.ctf)

    def pose(self, batch: ParticleBatch) -> tuple[Poses, torch.Tensor]:
        """The preferred pose of each particle, and the probability of the hypotheses that agree with it.

        Args:
            batch: particles on the encoder's device.
        """
        proposals = self.propose(batch)
        rotations, shifts_px = best_hypotheses(proposals)
        agrees = (
            rotation_angle_rad(proposals.rotations, rotations[:, None].expand_as(proposals.rotations)) < SAME_POSE_RAD
        )
        probability = (proposals.logits.exp() * agrees).sum(1)
        poses = PoseSet(rotations, shifts_px, self.box_size_px)
        return poses.to_angstrom(self.pixel_size_angstrom), probability

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values for ``encoder.pt``."""
        encoder = self.encoder
        return {
            "encoder": encoder.state_dict(),
            "architecture": encoder.architecture,
            "radius": self.radius,
            "weights": self.encoder_input.weights.cpu(),
            "box_size_px": self.box_size_px,
            "pixel_size_angstrom": self.pixel_size_angstrom,
            "offsets_px": self.encoder_input.offsets_px.cpu(),
            "is_centred": self.encoder_input.is_centred,
            "has_ctf": self.has_ctf,
            "particle_diameter_angstrom": self.particle_diameter_angstrom,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "PoseEstimator":
        """The estimator of a state that ``to_state`` gave, on a device.

        Raises:
            KeyError: something is missing.
            RuntimeError: the weights do not fit the architecture.
            ValueError: the encoder is of a design that this version does not have.
        """
        radius, box = state["radius"], state["box_size_px"]
        small = encoder_box_px(radius)
        encoder = PoseEncoder(box_size_px=small, **_current_architecture(state["architecture"]))
        encoder.load_state_dict(state["encoder"])
        offsets = state["offsets_px"] if "offsets_px" in state else state["trials_px"]  # the latter in version 0.1
        plane, weights = HalfPlane.up_to(small, radius, device), state["weights"].to(device)
        encoder_input = EncoderInput(plane, weights, box / small, offsets.to(device), state["is_centred"])
        return cls(
            encoder.to(device).eval(),
            encoder_input,
            radius,
            box,
            state["pixel_size_angstrom"],
            state["has_ctf"],
            particle_diameter_angstrom=state.get("particle_diameter_angstrom"),  # of older versions: None
        )


def _current_architecture(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``PoseEncoder``, from a file of this version or of version 0.1, whose heads were of two kinds."""
    head = architecture.get("head", "rows")
    if head != "rows":
        raise ValueError(f"encoder.head={head} of version 0.1 is gone")
    return {key: value for key, value in architecture.items() if key != "head"}
