"""Settings of ``cryoeq screen``."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class ScreenConfig(FrozenConfig):
    """Whose particles and views to look at, and how."""

    run: Path = Field(description="folder of a reconstruction; or a star file with orientations, for the views alone")
    output: Path | None = Field(default=None, description="folder for all files; by default screening/ in the run")
    scorer: Literal["error", "knn", "graph", "sheaf", "none"] = Field(
        default="knn",
        description="what scores particles: reconstruction error, nearest neighbours, a network on the graph of views,"
        " the same on its sheaf",
    )
    symmetry: str | None = Field(default=None, description="point group; that of the run if not given")
    hole_deg: float | None = Field(
        default=None, gt=0, le=90, description="radius of a gap between views from which on it is a hole"
    )
    mirrored: bool = Field(default=False, description="take a view and its mirror image for one")
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the made junk and of the network's first weights")
