"""Settings of ``cryoeq lattice``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cryoeq.config.frozen import FrozenConfig

Reducer = Literal["lagrange-gauss", "lll", "niggli", "neural"]


class ReduceConfig(FrozenConfig):
    """Settings of ``cryoeq lattice reduce``: a lattice or a grid of lattices, and the reducer."""

    cell: tuple[float, ...] | None = Field(
        default=None, description="a b gamma, or a b c alpha beta gamma; Angstrom and degrees"
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
            raise ValueError("give the lattice either as --cell or as --basis")
        if self.cell is not None and len(self.cell) not in {3, 6}:
            raise ValueError(
                f"--cell has {len(self.cell)} numbers; give 'a b gamma' or 'a b c alpha beta gamma' in quotes"
            )
        if self.tiles is not None and (self.basis is None or min(self.tiles) < 1 or max(self.tiles) < 2):
            raise ValueError("--tiles is for a --basis file of the bases of ROWS,COLUMNS tiles, two at least")
        return self


class FindConfig(FrozenConfig):
    """Settings of ``cryoeq lattice find``: the micrograph, limits of the search, and output."""

    micrograph: Path = Field(description="MRC file of one image")
    output: Path = Field(description="folder for all files")
    pixel_size_angstrom: float | None = Field(default=None, gt=0, description="pixel size; None for the header's")
    smallest_cell_angstrom: float = Field(default=20.0, gt=0, description="lower limit of the cell vectors' lengths")
    largest_cell_angstrom: float = Field(default=400.0, gt=0, description="upper limit of the cell vectors' lengths")
    finest_angstrom: float | None = Field(
        default=None, gt=0, description="high-resolution limit of the spots; None for Nyquist"
    )
    reducer: Reducer = Field(default="lagrange-gauss", description="lagrange-gauss, lll or neural")
    subtract: bool = Field(default=False, description="also write the image with the lattice subtracted")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the amplitudes that replace the spots")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "FindConfig":
        if self.smallest_cell_angstrom >= self.largest_cell_angstrom:
            raise ValueError("--min-cell must be below --max-cell")
        if self.reducer == "niggli":
            raise ValueError("niggli reduces 3D lattices, a micrograph has a 2D one: use lagrange-gauss, lll or neural")
        return self
