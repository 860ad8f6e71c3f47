"""Settings of ``cryoeq demo``."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class DemoConfig(FrozenConfig):
    """What the demo may vary."""

    output: Path = Field(description="folder for all that the demo makes")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the particles and of the training")
    quick: bool = Field(default=False, description="fewer particles and steps, for continuous integration")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
