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
        "particles": "STAR|RUN", "class_number": "--class", "symmetry": "--sym",
        "json_file": "--json", "output": "-o/--output",
    }  # fmt: skip

    particles: Path = Field(description="star file with orientations, or the folder of a run")
    class_number: int | None = Field(
        default=None, ge=1, description="class whose orientations count; None for all particles"
    )
    symmetry: PointGroup | None = Field(
        default=None, description="point group of the particle; None for that of the run's folder, else C1"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the choice of 10,000 views for SCF*")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    json_file: Path | None = Field(default=None, description="JSON file for all numbers")
    output: Path | None = Field(
        default=None, description="folder for orientations.json, pictures and orientations.bild"
    )
