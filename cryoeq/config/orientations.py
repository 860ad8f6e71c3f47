"""Settings of ``cryoeq orientations``."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class OrientationsConfig(FrozenConfig):
    """Whose orientations to look at, and where to write what."""

    particles: Path = Field(description="star file with orientations")
    symmetry: str = Field(default="C1", description="point group of the particle")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the choice of 10,000 views for SCF*")
    json_file: Path | None = Field(default=None, description="file for all figures")
    output: Path | None = Field(default=None, description="folder for figures, pictures and orientations.bild")
