"""``cryoeq lattice reduce --tiles``: the lattices of a bent crystal or of a tilt series, reduced jointly."""

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.lattice import ReduceConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.io.text import write_json
from cryoeq.lattice.reduction import LatticeReducer, integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import GridReducer, basis_flips, carry_bases
from cryoeq.pipelines.lattice.reduce import as_json, build_reducer, check_basis, default_reducer, read_vectors

_NETWORK_DIMENSIONS = (2, 3)


def reduce_tiles(config: ReduceConfig, tiles: tuple[int, int]) -> Iterator[Event]:
    """Reduce the bases of a grid jointly, and tell how often neighbours are in different ones.

    Args:
        config: the resolved settings.
        tiles: rows and columns of the grid.

    Yields:
        One report, and a note.

    Raises:
        ConfigError: the reducer is not for this dimension.
        MapFileError: the file does not hold the bases of such a grid.
    """
    grid = read_grid(config.basis or Path(), tiles)
    n = grid.shape[-1]
    name = config.reducer or default_reducer(n)
    single = build_reducer(name, n)
    alone = single(grid.flatten(0, 1)).view(*tiles, n, n)
    found = _network(single, n)(grid) if config.joint == "network" else alone
    change = carry_bases(grid, found)  # order and signs too
    reduced = transform_basis(grid, change)
    if {abs(integer_determinant(one)) for one in change.flatten(0, 1)} != {1}:
        raise ConfigError(f"{name} returned a change of basis that is not unimodular", "", "Use --reducer lll")
    ways = {"tile by tile": transform_basis(grid, alone), "jointly": reduced}
    yield Report(
        f"{tiles[0]} x {tiles[1]} lattices of {n} dimensions, reduced by {name}, {config.joint}",
        {
            f"{way}": f"{basis_flips(bases):.1%} of neighbours in different bases, mean log orthogonality defect "
            f"{float(log_orthogonality_defect(bases).mean()):.4f}"
            for way, bases in ways.items()
        },
    )
    if config.json_file is not None:
        write_json(config.json_file, _as_json(name, config.joint, grid, reduced, change))
        yield Note(f"One entry per tile: {config.json_file}")


def read_grid(path: Path, tiles: tuple[int, int]) -> Float[Tensor, "rows columns d n"]:
    """Bases of the tiles of a grid, row by row, one vector per line; empty lines between tiles do not matter.

    Args:
        path: a text file.
        tiles: rows and columns.

    Raises:
        MapFileError: there is no such file, or not that number of bases.
    """
    vectors = read_vectors(path)
    count = tiles[0] * tiles[1]
    n, left = divmod(len(vectors), count)
    if left or n < 2 or n > vectors.shape[1]:
        raise MapFileError(
            f"{path} holds {len(vectors)} lines of {vectors.shape[1]} numbers",
            f"{count} bases were expected, each of two or more vectors on a line of their own, with no fewer numbers"
            " than vectors",
            "Check --basis and --tiles",
        )
    grid = vectors.view(*tiles, n, -1).mT.contiguous()
    for basis in grid.flatten(0, 1):
        check_basis(basis, path)
    return grid


def _network(single: LatticeReducer, n: int) -> GridReducer:
    from cryoeq.lattice.joint_reducer import NeuralGridReducer, load_grid_network

    if n not in _NETWORK_DIMENSIONS:
        raise ConfigError(
            f"--joint network with lattices of {n} dimensions", "it was trained for 2 and 3", "Use --joint carried"
        )
    return NeuralGridReducer(load_grid_network(), single)


def _as_json(
    name: str,
    joint: str,
    grid: Float[Tensor, "rows columns d n"],
    reduced: Float[Tensor, "rows columns d n"],
    change: Int[Tensor, "rows columns n n"],
) -> dict[str, object]:
    rows, columns = grid.shape[:2]
    return {
        "joint": joint,
        "neighbours_in_different_bases": basis_flips(reduced),
        "tiles": [
            {"row": i, "column": j} | as_json(name, grid[i, j], reduced[i, j], change[i, j])
            for i in range(rows)
            for j in range(columns)
        ],
    }
