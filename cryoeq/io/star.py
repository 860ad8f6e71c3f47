"""Particles of star files: their optics groups, columns by label, and messages that name file, row and value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from cryoeq.errors import ParticleFileError
from cryoeq.io.labels import IMAGE_NAME
from cryoeq.io.star_text import REPAIR, Columns, Text, read_blocks, text_column, write_blocks
from cryoeq.io.table_kinds import other_kind

Numbers = Float64[np.ndarray, "_"]


@dataclass(frozen=True)
class Wording:
    """How the file of a table names what it holds, for messages to its user.

    Args:
        column: the file format's word for a column.
        names: its name for columns that it does not name by RELION's label, by that label.
        repair: advice where the table is damaged or incomplete.
        advice: more fitting advice where a column is missing, by RELION's label.
    """

    column: str = "column"
    names: Mapping[str, str] = field(default_factory=dict)
    repair: str = REPAIR
    advice: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StarTable:
    """The optics groups and the particles of a star file.

    Args:
        optics: columns of ``data_optics`` as text; None for files of RELION 3.0, which have none.
        particles: columns of the particles as text; their names carry no leading underscore.
        path: file of the table, for messages; None for a new one.
        block: name of the particles' table in the file; they are written as ``data_particles``.
        others: the file's other tables, by their names; they are not written again.
        wording: how the file names its columns.
    """

    optics: Columns | None
    particles: Columns
    path: Path | None = None
    block: str = "particles"
    others: Mapping[str, Columns] = field(default_factory=dict)
    wording: Wording = field(default_factory=Wording)

    def __len__(self) -> int:
        return len(next(iter(self.particles.values()), ()))

    @property
    def where(self) -> str:
        """The file, for the beginning of a message."""
        return str(self.path or "star")

    def name(self, column: str) -> str:
        """The name that the table's file has for a column.

        Args:
            column: RELION's label of the column.
        """
        return self.wording.names.get(column, column)

    def rows(self, numbers: Sequence[int]) -> "StarTable":
        """Some of the particles, with their optics groups.

        Args:
            numbers: row numbers, from 0.
        """
        return replace(self, particles={name: values[list(numbers)] for name, values in self.particles.items()})

    def require(self, column: str, *, advice: str = "") -> Text:
        """The text of a particle column.

        Args:
            column: its name, for example ``rlnDefocusU``.
            advice: advice to the user where the column is missing.

        Raises:
            ParticleFileError: there is no such column; the message names it, and the kind of file that has none.
        """
        if column not in self.particles:
            found = f"{self.where}: {self.wording.column} {self.name(column)} is missing"
            expected = f"cryoeq needs {self.name(column)} for every particle"
            other = other_kind({**self.others, self.block: self.particles})
            if other is not None:
                found, advice = f"{self.where} is {other.name}: {found.removeprefix(f'{self.where}: ')}", other.advice
            raise ParticleFileError(found, expected, self.wording.advice.get(column) or advice or self.wording.repair)
        return self.particles[column]

    def floats(self, column: str, *, default: float | None = None, advice: str = "") -> Numbers:
        """The numbers of a particle column.

        Args:
            column: its name.
            default: value where the column is missing; None makes that an error.
            advice: advice to the user where the column is missing.

        Raises:
            ParticleFileError: the column is missing, or a value is not a finite number; the message names the first
                row.
        """
        if default is not None and column not in self.particles:
            return np.full(len(self), default)
        return self._numbers(self.require(column, advice=advice), column)

    def optics_floats(self, column: str, *, default: float | None = None) -> Numbers:
        """The numbers of an optics column, as ``floats`` those of a particle column."""
        optics = self.optics or {}
        if column in optics:
            return self._numbers(optics[column], column, groups=optics.get("rlnOpticsGroup"))
        if default is not None:
            return np.full(len(next(iter(optics.values()), ())), default)
        kind = "field" if column in self.wording.names else f"optics {self.wording.column}"
        raise ParticleFileError(
            f"{self.where}: {kind} {self.name(column)} is missing",
            f"cryoeq needs {self.name(column)}",
            self.wording.advice.get(column) or self.wording.repair,
        )

    def _numbers(self, text: Text, column: str, *, groups: Text | None = None) -> Numbers:
        try:
            numbers = np.where(np.strings.find(text, "_") < 0, text.astype(np.float64), np.nan)  # Python reads 1_000
        except ValueError:
            numbers = np.array([_float_or_nan(value) for value in text.tolist()])
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            place = f"row {row + 1}" if groups is None else f"optics group {groups[row]}"
            found = f"{self.where}, {place}: {self.name(column)} is {str(text[row])!r}"
            raise ParticleFileError(found, "A finite number was expected", "Correct the value or remove the particle")
        return numbers


def decimals(values: Shaped[np.ndarray, "_"]) -> Text:
    """Numbers as RELION writes them, with six decimals."""
    return text_column([f"{value:.6f}" for value in values.tolist()])


def _float_or_nan(value: str) -> float:
    try:
        return float(value) if "_" not in value else float("nan")
    except ValueError:
        return float("nan")


def read_star(path: Path) -> StarTable:
    """Read the optics groups and the particles of a RELION star file, of version 3.0 or later.

    The particles are the block ``data_particles``, else the one that has image names, else the last that is not optics.

    Raises:
        ParticleFileError: no such file, no table in it, a repeated label or block, or a row with too few or too many
            values.
    """
    blocks = read_blocks(path)
    optics = blocks.pop("optics", None)
    named = [name for name, block in blocks.items() if IMAGE_NAME in block]
    name = "particles" if "particles" in blocks else next(iter((*reversed(named), *reversed(blocks))), "")
    particles = blocks.pop(name, {})
    if not len(next(iter(particles.values()), ())):
        expected = "cryoeq expects a data_particles block with a loop_ of particles"
        raise ParticleFileError(
            f"{path} holds no table of particles", expected, "Check that it is a particle star file"
        )
    return StarTable(optics or None, particles, path, name, blocks)


def write_star(path: Path, star: StarTable) -> None:
    """Write ``data_optics`` (if any) and ``data_particles`` so that RELION 3.1 and later read them.

    There is no comment but the version: RELION looks for ``data_`` on every line, comments too.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    optics = {} if star.optics is None else {"optics": star.optics}
    write_blocks(path, optics | {"particles": star.particles})
