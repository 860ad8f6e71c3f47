"""Settings of ``--pose-inference hybrid``: a search that leaves an encoder."""

from typing import Literal

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig

UNUSED_BY_POSTERIOR = {
    "slices": (
        "encoder", "hybrid.max_shell", "hybrid.batch_size", "hybrid.learning_rate",
        "hybrid.initial_noise_scale",
    ),
    "network": ("hybrid.projections", "encoder.heads", "encoder.compiled"),
}  # fmt: skip
"""Settings that a posterior of each kind does not use."""


class HybridConfig(FrozenConfig):
    """A search that leaves encoders of views, learnt from its half maps."""

    posterior: Literal["slices", "network"] = Field(
        default="slices",
        description="what gives the posterior over views: likelihoods of slices of the half map, or an equivariant "
        "network (encoder.*), which is less accurate; angle, mirror and offset follow from products with the half map",
    )
    projections: int = Field(
        default=12_000, ge=100, le=10**7, description="synthetic projections of the training with slices"
    )
    held_out: float = Field(default=0.1, ge=0, le=0.5, description="fraction of the particles that are never searched")
    max_shell: int = Field(default=10, ge=4, description="resolution of the network's input, in cycles per box")
    training_steps: int | None = Field(
        default=None, ge=1, description="training steps; None for 700. A network takes new projections in each"
    )
    batch_size: int = Field(default=256, ge=2, le=10**6, description="images per training step")
    learning_rate: float = Field(default=1e-2, gt=0, description="learning rate")
    initial_noise_scale: float = Field(
        default=0.2, ge=0, le=1, description="noise of the first training projections, relative to the particles'"
    )
