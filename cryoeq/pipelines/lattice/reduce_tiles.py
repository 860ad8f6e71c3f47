"""``cryoeq lattice reduce --tiles``: the lattices of a bent crystal or of a tilt series, reduced jointly."""

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.lattice import ReduceConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.io.text import write_json
from cryoeq.lattice.reduction import integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import basis_mismatch_fraction, carry_bases
from cryoeq.pipelines.lattice.reduce import as_json, build_reducer, check_basis, default_reducer, read_vectors


def reduce_tiles(config: ReduceConfig, tiles: tuple[int, int]) -> Iterator[Event]:
    """Reduce the lattices of a grid jointly, and report the fraction of neighbours in different bases.

    Args:
        config: settings of the command.
        tiles: numbers of rows and columns of the grid.

    Yields:
        One report, and a note.

    Raises:
        ConfigError: the reducer does not work in this dimension.
        MapFileError: the file does not hold the bases of such a grid.
    """
    grid = read_grid(config.basis or Path(), tiles)
    n = grid.shape[-1]
    name = config.reducer or default_reducer(n)
    single = build_reducer(name, n)(grid.flatten(0, 1)).view(*tiles, n, n)
    change = carry_bases(grid, single)
    reduced = transform_basis(grid, change)
    if {abs(integer_determinant(one)) for one in change.flatten(0, 1)} != {1}:
        raise ConfigError(f"{name} returned a change of basis that is not unimodular", "", "Use --reducer lll")
    yield Report(
        f"{tiles[0]} x {tiles[1]} lattices of {n} dimensions, reduced by {name}",
        {"tile by tile": _summary(transform_basis(grid, single)), "jointly": _summary(reduced)},
    )
    if config.json_file is not None:
        write_json(config.json_file, _as_json(name, grid, reduced, change))
        yield Note(f"One entry per tile: {config.json_file}")


def read_grid(path: Path, tiles: tuple[int, int]) -> Float[Tensor, "rows columns d n"]:
    """Bases of the tiles of a grid, row by row, one vector per line; empty lines between tiles are skipped.

    Args:
        path: text file of the bases.
        tiles: numbers of rows and columns.

    Raises:
        MapFileError: there is no such file, or it holds another number of bases.
    """
    vectors = read_vectors(path)
    count = tiles[0] * tiles[1]
    n, remainder = divmod(len(vectors), count)
    if remainder or n < 2 or n > vectors.shape[1]:
        raise MapFileError(
            f"{path} holds {len(vectors)} lines of {vectors.shape[1]} numbers",
            f"{count} bases were expected, each of two or more vectors, one per line, with no fewer numbers than"
            " vectors",
            "Check --basis and --tiles",
        )
    grid = vectors.view(*tiles, n, -1).mT.contiguous()
    for basis in grid.flatten(0, 1):
        check_basis(basis, path)
    return grid


def _summary(reduced: Float[Tensor, "rows columns d n"]) -> str:
    defect = float(log_orthogonality_defect(reduced).mean())
    fraction = basis_mismatch_fraction(reduced)
    return f"{fraction:.1%} of neighbours in different bases, mean log orthogonality defect {defect:.4f}"


def _as_json(
    name: str,
    grid: Float[Tensor, "rows columns d n"],
    reduced: Float[Tensor, "rows columns d n"],
    change: Int[Tensor, "rows columns n n"],
) -> dict[str, object]:
    rows, columns = grid.shape[:2]
    return {
        "joint": "carried",
        "neighbours_in_different_bases": basis_mismatch_fraction(reduced),
        "tiles": [
            {"row": i, "column": j} | as_json(name, grid[i, j], reduced[i, j], change[i, j])
            for i in range(rows)
            for j in range(columns)
        ],
    }
