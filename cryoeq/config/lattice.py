"""Settings of ``cryoeq lattice``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cryoeq.config.frozen import FrozenConfig

Reducer = Literal["lagrange-gauss", "lll", "niggli", "neural"]


class ReduceConfig(FrozenConfig):
    """Which lattice to reduce, and how."""

    cell: tuple[float, ...] | None = Field(
        default=None, description="a b gamma, or a b c alpha beta gamma; Angstrom and degrees"
    )
    basis: Path | None = Field(default=None, description="text file with one basis vector per line")
    reducer: Reducer | None = Field(
        default=None,
        description="lagrange-gauss, lll, niggli or neural; the classical one of the dimension if not given",
    )
    tiles: tuple[int, int] | None = Field(
        default=None, description="rows and columns of a grid whose bases the file holds, to be reduced jointly"
    )
    joint: Literal["carried", "network"] = Field(
        default="carried", description="carried from tile to tile where they fit, or moved by a network over the grid"
    )
    json_file: Path | None = Field(default=None, description="file for all figures")

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
    """Where to look for a lattice, and what to write."""

    micrograph: Path = Field(description="MRC file of one image")
    output: Path = Field(description="folder for all files")
    pixel_size_angstrom: float | None = Field(default=None, gt=0, description="overrides the header's")
    smallest_cell_angstrom: float = Field(default=20.0, gt=0, description="shorter cell vectors are not looked for")
    largest_cell_angstrom: float = Field(default=400.0, gt=0, description="nor longer ones")
    finest_angstrom: float | None = Field(default=None, gt=0, description="spots beyond this resolution are not used")
    reducer: Reducer = Field(default="lagrange-gauss", description="lagrange-gauss, lll or neural")
    subtract: bool = Field(default=False, description="also write the image without its lattice")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the amplitudes that replace the spots")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "FindConfig":
        if self.smallest_cell_angstrom >= self.largest_cell_angstrom:
            raise ValueError("--min-cell must be below --max-cell")
        if self.reducer == "niggli":
            raise ValueError("niggli is for space lattices; a micrograph's is plane: lagrange-gauss, lll or neural")
        return self


class TrainConfig(FrozenConfig):
    """Which reducer to train."""

    n: int = Field(ge=2, le=16, description="dimension")
    output: Path = Field(description="file of the weights")
    steps: int = Field(default=600, ge=1, description="batches")
    width: int = Field(default=16, ge=1, le=256, description="channels of the network")
    rounds: int = Field(default=2, ge=1, le=8, description="rounds of messages")
    start: Path | None = Field(default=None, description="weights to begin from, of any dimension")
    learning_rate: float = Field(default=5e-3, gt=0, description="of the first batch")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, lattices and moves")


class GridTrainConfig(FrozenConfig):
    """How to train the network of joint reduction."""

    output: Path = Field(description="file of the weights")
    steps: int = Field(default=150, ge=1, description="batches of four grids")
    width: int = Field(default=16, ge=1, le=256, description="channels of the network")
    rounds: int = Field(default=2, ge=1, le=8, description="rounds of messages")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, grids and moves")
