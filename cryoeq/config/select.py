"""Settings of ``cryoeq select``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from cryoeq.config.choices import BetterEnd
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup

_NO_BALANCE = "no --balance-views"


class SelectConfig(FrozenConfig):
    """Which particles to keep, and where to write them."""

    options: ClassVar[Mapping[str, str]] = {
        "particles": "RUN|STAR|CS", "output": "-o/--output", "classes": "--class", "symmetry": "--sym",
        "micrograph_pixel_size_angstrom": "--micrograph-angpix",
    }  # fmt: skip

    particles: Path = Field(description="folder of a run, or star file or .cs of particles")
    output: Path | None = Field(
        default=None, description="file of the selected particles: .star, or .cs of a .cs; selected.star if not given"
    )
    classes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, min_length=1, description="numbers of the classes to keep, from 1"
    )
    half: int | None = Field(default=None, ge=1, le=2, description="half set to keep")
    junk_below: float | None = Field(
        default=None, gt=0, le=1, description="keep particles whose probability of being junk is below this"
    )
    only: Path | None = Field(default=None, description="keep particles whose images are in this star file or .cs")
    exclude: Path | None = Field(default=None, description="leave out those whose images are in this star file or .cs")
    keep: float | None = Field(
        default=None, gt=0, le=1, description="share of the best to keep, of those that the conditions above left"
    )
    by: str | None = Field(
        default=None, min_length=1, description="column or field that tells how good a particle is, for --keep"
    )
    best: BetterEnd | None = Field(default=None, description="end of that column that good particles have")
    balance_views: bool = Field(
        default=False, description="thin out the viewing directions that have most of the particles left"
    )
    balance_percentile: float = Field(
        default=80,
        ge=0,
        le=100,
        description="directions with more particles than this percentile of directions are cut down to it",
    )
    healpix_order: int = Field(default=3, ge=1, le=5, description="12 * 4^order directions on the sphere")
    symmetry: PointGroup | None = Field(
        default=None, description="point group, for the viewing directions; that of the run if not given, else C1"
    )
    recenter: bool = Field(
        default=False, description="move coordinates to the centres that were found, whole pixels, for re-extraction"
    )
    micrograph_pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size of the micrographs; that of the file if not given"
    )
    invert: bool = Field(default=False, description="keep the particles that would be left out, and no others")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="random seed of the choice among views, and among equal values"
    )

    def unused(self) -> Mapping[str, str | None]:
        """Settings of conditions that are not asked for."""
        unused: dict[str, str | None] = {}
        if self.keep is None:
            unused |= dict.fromkeys(("by", "best"), "no --keep")
        if not self.balance_views:
            unused |= dict.fromkeys(("balance_percentile", "healpix_order", "symmetry"), _NO_BALANCE)
        if not self.recenter:
            unused["micrograph_pixel_size_angstrom"] = "no --recenter"
        if self.keep is None and not self.balance_views:
            unused["seed"] = "no random choice"
        return unused
