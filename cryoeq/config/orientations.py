"""Settings of ``cryoeq orientations``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup


class OrientationsConfig(FrozenConfig):
    """Whose orientations to look at, and where to write what."""

    options: ClassVar[Mapping[str, str]] = {
        "particles": "STAR", "symmetry": "--sym", "json_file": "--json", "output": "-o/--output",
    }  # fmt: skip

    particles: Path = Field(description="star file with orientations")
    symmetry: PointGroup = Field(default="C1", description="point group of the particle")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the choice of 10,000 views for SCF*")
    json_file: Path | None = Field(default=None, description="JSON file for all numbers")
    output: Path | None = Field(
        default=None, description="folder for orientations.json, pictures and orientations.bild"
    )
