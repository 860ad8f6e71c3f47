"""``cryoeq lattice reduce``: reduced bases of lattices given by cell or basis vectors."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.lattice import ReduceConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.io.text import write_json
from cryoeq.lattice.reduction import (
    LagrangeGauss,
    LatticeReducer,
    Lll,
    integer_determinant,
    log_orthogonality_defect,
    transform_basis,
)
from cryoeq.lattice.unit_cell import basis_of_cell, cell_of_basis


def reduce_lattice(config: ReduceConfig) -> Iterator[Event]:
    """Reduce one lattice and report its new cell, the change of basis, and the defects before and after.

    Yields:
        One report, and notes.

    Raises:
        ConfigError: the cell is impossible, or the reducer does not work in this dimension.
        MapFileError: the file of the basis is damaged.
    """
    basis = read_basis(config.basis) if config.basis is not None else basis_of_cell(in_radians(config.cell or ()))
    n = basis.shape[1]
    name = config.reducer or default_reducer(n)
    change = build_reducer(name, n)(basis[None])[0]
    reduced = transform_basis(basis, change)
    if abs(integer_determinant(change)) != 1:
        raise ConfigError(
            f"{name} returned a change of basis of determinant {integer_determinant(change)}",
            "it must be 1 or -1",
            "Use --reducer lll",
        )
    yield Report(f"Lattice of {n} dimensions, reduced by {name}", _rows(basis, reduced, change))
    if config.json_file is not None:
        write_json(config.json_file, as_json(name, basis, reduced, change))
        yield Note(f"Reduced lattice: {config.json_file}")


def default_reducer(n: int) -> str:
    """Name of the classical reducer of a dimension."""
    return "lagrange-gauss" if n == 2 else "niggli" if n == 3 else "lll"


def build_reducer(name: str, n: int) -> LatticeReducer:
    """The reducer of a name.

    Args:
        name: lagrange-gauss, lll, niggli or neural.
        n: dimension of the lattice.

    Raises:
        ConfigError: this reducer does not work in this dimension.
    """
    if (name == "lagrange-gauss" and n != 2) or (name == "niggli" and n != 3):
        raise ConfigError(
            f"--reducer {name} with a lattice of {n} dimensions",
            "lagrange-gauss is for 2 dimensions, niggli for 3",
            "Use --reducer lll",
        )
    match name:
        case "lagrange-gauss":
            return LagrangeGauss()
        case "niggli":
            from cryoeq.lattice.niggli import Niggli

            return Niggli()
        case "neural":
            from cryoeq.lattice.neural_reducer import load_reducer

            return load_reducer(n)
        case _:
            return Lll()


def in_radians(cell: tuple[float, ...]) -> tuple[float, ...]:
    """A cell, lengths first, with its angles converted from degrees."""
    lengths = len(cell) // 3 + 1
    return (*cell[:lengths], *torch.tensor(cell[lengths:], dtype=torch.float64).deg2rad().tolist())


def read_basis(path: Path) -> Float[Tensor, "d n"]:
    """Basis vectors, one per line of a text file, as columns.

    Raises:
        MapFileError: there is no such file, or its lines are no basis.
    """
    vectors = read_vectors(path)
    if len(vectors) < 2 or vectors.shape[1] < len(vectors):
        raise MapFileError(
            f"{path} holds {len(vectors)} lines of {vectors.shape[1]} numbers",
            "Two or more vectors of one length were expected, with no fewer numbers than vectors",
            "Check --basis",
        )
    basis = vectors.T.contiguous()
    check_basis(basis, path)
    return basis


def read_vectors(path: Path) -> Float[Tensor, "vectors d"]:
    """Vectors with the same number of coordinates, one per line of a text file; empty lines are skipped.

    Raises:
        MapFileError: there is no such file, or its lines do not hold the same number of coordinates.
    """
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise MapFileError(f"{path} cannot be read: {error}", "One basis vector per line", "Check --basis") from error
    rows = [row for row in rows if row]
    if len({len(row) for row in rows}) != 1:
        raise MapFileError(
            f"{path} holds {len(rows)} lines of {sorted({len(row) for row in rows})} numbers",
            "Vectors of one length were expected",
            "Check --basis",
        )
    return torch.tensor(rows, dtype=torch.float64)


def check_basis(basis: Float[Tensor, "d n"], path: Path) -> None:
    """Refuse linearly dependent vectors.

    Args:
        basis: vectors as columns.
        path: the file that holds them, for the message.

    Raises:
        MapFileError: the vectors are linearly dependent.
    """
    heights = torch.linalg.qr(basis).R.diagonal().abs()
    if not bool(heights.min() > 1e-12 * basis.abs().max()):
        raise MapFileError(f"{path}: its vectors are not independent", "A basis was expected", "Check --basis")


def as_json(
    name: str, basis: Float[Tensor, "d n"], reduced: Float[Tensor, "d n"], change: Int[Tensor, "n n"]
) -> dict[str, object]:
    """Result of a reduction for a JSON file; vectors are rows, as in the text file of a basis."""
    lengths, angles_rad = cell_of_basis(reduced)
    return {
        "reducer": name,
        "basis": basis.T.tolist(),
        "reduced_basis": reduced.T.tolist(),
        "change_of_basis_columns": change.T.tolist(),
        "determinant": integer_determinant(change),
        "lengths": lengths.tolist(),
        "angles_deg": angles_rad.rad2deg().tolist(),
        "log_defect_before": float(log_orthogonality_defect(basis)),
        "log_defect": float(log_orthogonality_defect(reduced)),
    }


def _rows(basis: Float[Tensor, "d n"], reduced: Float[Tensor, "d n"], change: Int[Tensor, "n n"]) -> dict[str, str]:
    n = basis.shape[1]
    names = "abc" if n <= 3 else [f"b{i + 1}" for i in range(n)]
    rows = {"Cell": cell_text(basis), "Reduced cell": cell_text(reduced)}
    for new, column in zip(names, change.T.tolist(), strict=False):
        rows[f"New {new}"] = " ".join(f"{times:+d} {old}" for times, old in zip(column, names, strict=False) if times)
    rows["Determinant"] = str(integer_determinant(change))
    rows["log orthogonality defect"] = (
        f"{float(log_orthogonality_defect(basis)):.4f} before, {float(log_orthogonality_defect(reduced)):.4f} now"
    )
    return rows


def cell_text(basis: Float[Tensor, "d n"]) -> str:
    """Lengths of a cell, and in up to three dimensions its angles in degrees."""
    lengths, angles_rad = cell_of_basis(basis)
    numbers = [f"{value:.4g}" if value >= 1000 else f"{value:.2f}" for value in lengths.tolist()]
    angles = [f"{value:.2f}°" for value in angles_rad.rad2deg().tolist()] if len(lengths) <= 3 else []
    return " ".join([*numbers, *angles])
