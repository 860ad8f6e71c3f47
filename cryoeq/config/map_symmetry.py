"""Settings of ``cryoeq symmetry``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup


class SymmetryConfig(FrozenConfig):
    """Whose symmetry to find, and where to write what."""

    options: ClassVar[Mapping[str, str]] = {
        "volume": "MAP.mrc", "half_maps": "--half-maps", "symmetry": "--sym", "max_order": "--max-order",
        "resolution_angstrom": "--resolution", "pixel_size_angstrom": "--angpix", "run": "--run",
        "output": "-o/--output", "json_file": "--json",
    }  # fmt: skip

    volume: Path = Field(description="MRC map, or one of two half maps")
    half_maps: tuple[Path, Path] | None = Field(
        default=None, description="its unfiltered half maps; None for those that lie beside it, by their names"
    )
    symmetry: PointGroup | None = Field(default=None, description="the one point group to score; None for all")
    max_order: int = Field(default=8, ge=2, le=60, description="largest order of an axis")
    resolution_angstrom: float | None = Field(
        default=None, gt=0, description="resolution of the comparison in Å; None for that of the half maps, or Nyquist"
    )
    pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size of all maps in Å; overrides their headers"
    )
    run: Path | None = Field(
        default=None, description="folder of the reconstruction, whose particles are asked as well"
    )
    datadir: Path | None = Field(default=None, description="folder that image names are relative to")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    json_file: Path | None = Field(default=None, description="JSON file for all numbers")
    output: Path | None = Field(default=None, description="folder for maps, scores and picture")

    def unused(self) -> Mapping[str, str | None]:
        """Settings of a search where one group is scored, and of particles where none are asked."""
        unused: dict[str, str | None] = {}
        if self.symmetry is not None:
            unused["max_order"] = "--sym"
        if self.run is None:
            unused["datadir"] = "no --run"
        return unused
