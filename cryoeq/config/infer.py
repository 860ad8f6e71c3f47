"""Settings of ``cryoeq infer``."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class InferConfig(FrozenConfig):
    """Which particles an encoder poses, and where the poses go."""

    run: Path = Field(description="folder of a hybrid reconstruction, or its encoder.pt")
    particles: Path = Field(description="star file or stack of the particles")
    output: Path = Field(default=Path("poses.star"), description="star file for the poses")
    angpix: float | None = Field(
        default=None, gt=0, description="pixel size in Angstrom; fills in or overrides the file"
    )
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    contrast: Literal["auto", "keep", "invert"] = Field(
        default="auto", description="protein must be bright: decide from the images, keep them, or invert them"
    )
    batch_size: int = Field(default=1024, ge=1, description="particles in memory at a time")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    precision: Literal["fp32", "bf16", "int8"] = Field(
        default="fp32", description="numbers that the encoder computes with; int8: CPU, groups of quarter turns"
    )
