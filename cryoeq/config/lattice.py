"""Settings of ``cryoeq lattice``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from cryoeq.config.choices import PlaneReducer, Reducer
from cryoeq.config.frozen import FrozenConfig


class ReduceConfig(FrozenConfig):
    """Settings of ``cryoeq lattice reduce``: a lattice or a grid of lattices, and the reducer."""

    options: ClassVar[Mapping[str, str]] = {"json_file": "--json"}

    cell: tuple[float, ...] | None = Field(
        default=None, description="a b gamma, or a b c alpha beta gamma; Å and degrees"
    )
    basis: Path | None = Field(default=None, description="text file with one basis vector per line")
    reducer: Reducer | None = Field(
        default=None,
        description="lagrange-gauss (2D), niggli (3D), lll, or neural (2D, 3D); by default the classical one of the "
        "dimension: lagrange-gauss, niggli, lll beyond",
    )
    tiles: tuple[int, int] | None = Field(
        default=None,
        description="rows and columns of a grid, to be reduced jointly; the file holds the bases row by row",
    )
    json_file: Path | None = Field(default=None, description="JSON file of the reduced bases and changes of basis")

    @model_validator(mode="after")
    def _one_lattice(self) -> "ReduceConfig":
        if (self.cell is None) == (self.basis is None):
            raise ValueError("Give the lattice either as --cell or as --basis")
        if self.cell is not None and len(self.cell) not in {3, 6}:
            raise ValueError(
                f"--cell has {len(self.cell)} numbers; give 'a b gamma' or 'a b c alpha beta gamma' in quotes"
            )
        if self.tiles is not None and (self.basis is None or min(self.tiles) < 1 or max(self.tiles) < 2):
            raise ValueError("--tiles is for a --basis file of the bases of ROWS,COLUMNS tiles, two at least")
        return self


class FindConfig(FrozenConfig):
    """Settings of ``cryoeq lattice find``: the micrograph, limits of the search, and output."""

    options: ClassVar[Mapping[str, str]] = {
        "micrograph": "MICROGRAPH", "output": "-o/--output", "pixel_size_angstrom": "--angpix",
        "smallest_cell_angstrom": "--min-cell", "largest_cell_angstrom": "--max-cell", "finest_angstrom": "--finest",
    }  # fmt: skip

    micrograph: Path = Field(description="MRC file of one image")
    output: Path = Field(description="folder for all files")
    pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size; None for the header's"
    )
    smallest_cell_angstrom: float = Field(default=20.0, gt=0, description="lower limit of the cell vectors' lengths")
    largest_cell_angstrom: float = Field(default=400.0, gt=0, description="upper limit of the cell vectors' lengths")
    finest_angstrom: float | None = Field(
        default=None, gt=0, description="high-resolution limit of the spots; None for Nyquist"
    )
    reducer: PlaneReducer = Field(default="lagrange-gauss", description="algorithm of the reduction")
    subtract: bool = Field(default=False, description="also write the image with the lattice subtracted")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the amplitudes that replace the spots")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "FindConfig":
        if self.smallest_cell_angstrom >= self.largest_cell_angstrom:
            raise ValueError("--min-cell must be below --max-cell")
        return self
