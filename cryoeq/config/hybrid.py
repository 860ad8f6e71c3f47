"""Settings of ``--pose-inference hybrid``: a search that leaves an encoder."""

from typing import Literal

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig

UNUSED_BY_HEAD = {
    "views": (
        "encoder", "hybrid.max_shell", "hybrid.training_steps", "hybrid.final_training_steps", "hybrid.batch_size",
        "hybrid.learning_rate", "hybrid.concentration", "hybrid.initial_noise_scale", "hybrid.min_confidence",
        "hybrid.local_iterations",
    ),
    "regression": ("hybrid.projections",),
}  # fmt: skip
"""Settings that an encoder of each head does not use."""


class HybridConfig(FrozenConfig):
    """A search that leaves an encoder: of views, learnt from the half maps, or by regression of poses."""

    head: Literal["views", "regression"] = Field(
        default="views",
        description="what the encoder gives: a posterior over views, whose poses follow from products with the half "
        "maps; or poses, by a network that replaces the later global searches",
    )
    projections: int = Field(
        default=12_000, ge=100, le=10**7, description="synthetic projections of the view encoder's training"
    )
    held_out: float = Field(default=0.1, ge=0, le=0.5, description="fraction of the particles that are never searched")
    max_shell: int = Field(default=10, ge=4, description="resolution of the encoder's input, in cycles per box")
    training_steps: int | None = Field(
        default=None,
        ge=1,
        description="training steps on projections of the consensus map; None for 800, or 1,400 with offsets",
    )
    final_training_steps: int = Field(
        default=300, ge=0, description="training steps on projections of the final map, for encoder.pt"
    )
    batch_size: int = Field(default=256, ge=2, le=10**6, description="images per training step")
    learning_rate: float = Field(default=1e-2, gt=0, description="learning rate")
    concentration: float = Field(
        default=2.0, gt=0, description="inverse temperature of the hypotheses, for the squared distance of rotations"
    )
    initial_noise_scale: float = Field(
        default=0.2, ge=0, le=1, description="noise of the first training projections, relative to the particles'"
    )
    min_confidence: float = Field(
        default=0.9,
        ge=0.5,
        lt=1,
        description="probability of a refined pose below which the particle is searched again",
    )
    local_iterations: int = Field(
        default=5, ge=1, description="local iterations of the half sets, where the exhaustive search does not reach"
    )
