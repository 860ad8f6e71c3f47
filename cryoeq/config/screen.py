"""Settings of ``cryoeq screen``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.choices import Scorer
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup


class ScreenConfig(FrozenConfig):
    """Particles to screen, and how."""

    renamed: ClassVar[Mapping[str, str]] = {"hole_deg": "gap_threshold_deg"}  # of version 0.1
    options: ClassVar[Mapping[str, str]] = {
        "run": "RUN", "class_number": "--class", "output": "-o/--output", "symmetry": "--sym",
        "gap_threshold_deg": "--gap-threshold",
    }  # fmt: skip

    run: Path = Field(
        description="folder of a reconstruction; or a star file with orientations, for angular coverage alone"
    )
    class_number: int | None = Field(
        default=None, ge=1, description="class to screen, of a run of several; None for all particles"
    )
    output: Path | None = Field(
        default=None, description="folder for all files; by default screening/ in the run, or screening_class00N/"
    )
    scorer: Scorer = Field(
        default="knn",
        description="score of the particles: reconstruction error, nearest neighbours, a network on the graph of views,"
        " the same network on its sheaf",
    )
    symmetry: PointGroup | None = Field(default=None, description="point group; that of the run if not given")
    gap_threshold_deg: float | None = Field(
        default=None,
        gt=0,
        le=90,
        description="radius in degrees above which a region without views is a gap in angular coverage",
    )
    mirrored: bool = Field(default=False, description="count a view and its mirror image as one")
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="random seed of synthetic outliers and of the network's initial weights"
    )
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")

    def unused(self) -> Mapping[str, str | None]:
        """Settings of scores where no particles are scored."""
        if self.scorer == "none":
            return {"datadir": "--scorer none", "seed": "--scorer none"}
        is_star = self.run.suffix == ".star"
        return (
            dict.fromkeys(("scorer", "datadir", "seed"), "a star file, which has no maps to score with")
            if is_star
            else {}
        )
