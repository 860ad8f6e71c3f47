"""Settings of ``cryoeq infer``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from cryoeq.config.choices import InferencePrecision
from cryoeq.config.frozen import FrozenConfig


class InferConfig(FrozenConfig):
    """Which particles an encoder poses, and where the poses go."""

    options: ClassVar[Mapping[str, str]] = {
        "run": "RUN", "particles": "NEW.star", "output": "-o/--output", "contrast": "--invert-data/--uninvert-data",
        "batch_size": "-b/--batch-size",
        "refine": "--refine/--no-refine", "min_confidence": "--min-confidence",
    }  # fmt: skip

    run: Path = Field(description="folder of a finished reconstruction, or encoder.pt of a hybrid one")
    particles: Path = Field(description="star file or stack of the particles")
    output: Path = Field(default=Path("poses.star"), description="star file for the poses")
    angpix: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size in Å; fills in or overrides the file"
    )
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    contrast: Literal["auto", "keep", "invert"] = Field(
        default="auto", description="protein must be bright: decide from the images, keep them, or invert them"
    )
    batch_size: int = Field(default=1024, ge=1, le=10**6, description="particles in memory at a time")
    refine: bool = Field(
        default=True,
        description="refine poses, search those of low confidence, and tell junk; with an encoder of views only",
    )
    min_confidence: float = Field(
        default=0.9, ge=0, lt=1, description="probability of a pose below which a particle is searched over all poses"
    )
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    precision: InferencePrecision = Field(
        default="fp32", description="numbers that the encoder computes with; int8: CPU, groups of quarter turns"
    )
