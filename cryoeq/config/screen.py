"""Settings of ``cryoeq screen``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.choices import Scorer
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup


class ScreenConfig(FrozenConfig):
    """Whose particles and views to look at, and how."""

    options: ClassVar[Mapping[str, str]] = {"run": "RUN", "output": "-o/--output", "symmetry": "--sym"}

    run: Path = Field(description="folder of a reconstruction; or a star file with orientations, for the views alone")
    output: Path | None = Field(default=None, description="folder for all files; by default screening/ in the run")
    scorer: Scorer = Field(
        default="knn",
        description="what scores particles: reconstruction error, nearest neighbours, a network on the graph of views,"
        " the same on its sheaf",
    )
    symmetry: PointGroup | None = Field(default=None, description="point group; that of the run if not given")
    hole_deg: float | None = Field(
        default=None, gt=0, le=90, description="radius of a gap between views from which on it is a hole"
    )
    mirrored: bool = Field(default=False, description="take a view and its mirror image for one")
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="random seed of the synthetic junk and of the network's first weights"
    )
