"""Settings of ``cryoeq demo``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class DemoConfig(FrozenConfig):
    """What the demo may vary."""

    options: ClassVar[Mapping[str, str]] = {"output": "-o/--output"}

    output: Path = Field(description="folder for all that the demo makes")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed")
    quick: bool = Field(default=False, description="fewer particles and steps, for continuous integration")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
