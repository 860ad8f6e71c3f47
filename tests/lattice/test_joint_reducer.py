"""Laws of every joint reducer of a grid; a new one is one entry of ``REDUCERS``.

The input is grids of slowly changing lattices with noise, each tile in a basis of its own. Of the network the laws are
held for any weights too.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cryoeq.lattice.joint_reducer import (
    AGREEMENT,
    GridNetwork,
    NeuralGridReducer,
    Surroundings,
    likeness,
    load_grid_network,
)
from cryoeq.lattice.neural_reducer import load_reducer
from cryoeq.lattice.reduction import LagrangeGauss, Lll, integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import CarriedBases, GridReducer, basis_flips
from cryoeq.lattice.train_joint_reducer import random_grids

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {2: (6, 7), 3: (1, 12)}


def any_network() -> GridNetwork:
    network = GridNetwork(6, 2, torch.Generator().manual_seed(3))
    with torch.no_grad():
        network.out.weight.mul_(400)
    return network


REDUCERS: dict[str, Callable[[int], GridReducer]] = {
    "carried": lambda _: CarriedBases(Lll()),
    "network": lambda n: NeuralGridReducer(load_grid_network(), load_reducer(n)),
    "any network": lambda n: NeuralGridReducer(any_network(), load_reducer(n)),
}


@pytest.fixture(params=[2, 3], ids=["plane", "space"])
def grid(request: pytest.FixtureRequest, generator: torch.Generator) -> Tensor:
    return random_grids(1, *SHAPES[request.param], request.param, generator)[0]


@pytest.fixture(params=REDUCERS)
def reducer(request: pytest.FixtureRequest, grid: Tensor) -> GridReducer:
    return REDUCERS[request.param](grid.shape[-1])


def permuted(grid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vectors in another order and with other signs in each tile, and the matrices that do it."""
    rows, columns, _, n = grid.shape
    order = torch.rand(rows, columns, n, generator=generator).argsort(-1)
    signs = torch.randint(0, 2, (rows, columns, 1, n), generator=generator) * 2 - 1
    matrices = torch.eye(n, dtype=torch.long)[order].mT * signs
    return transform_basis(grid, matrices), matrices


def test_every_tile_keeps_its_lattice(reducer: GridReducer, grid: Tensor) -> None:
    before = grid.clone()
    change = reducer(grid)
    assert isinstance(reducer, GridReducer)
    assert change.dtype == torch.long
    assert {abs(integer_determinant(one)) for one in change.flatten(0, 1)} == {1}
    assert torch.equal(grid, before)


def test_rotation_and_scale_change_nothing(reducer: GridReducer, grid: Tensor, generator: torch.Generator) -> None:
    n = grid.shape[-1]
    turn = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    assert torch.equal(reducer(57.0 * turn @ grid), reducer(grid))


def test_a_grid_may_lie_in_a_larger_space(reducer: GridReducer, grid: Tensor) -> None:
    lifted = torch.cat([torch.zeros_like(grid[..., :1, :]), grid], -2)
    assert torch.equal(reducer(lifted), reducer(grid))


@pytest.mark.parametrize("name", ["network", "any network"])
def test_each_tile_commutes_with_signed_permutations(name: str, grid: Tensor, generator: torch.Generator) -> None:
    """Q(B P) = P^-1 Q(B) P, with another P for every tile."""
    reducer = REDUCERS[name](grid.shape[-1])
    moved, matrices = permuted(grid, generator)
    assert torch.equal(reducer(moved), matrices.mT @ reducer(grid) @ matrices)


@pytest.mark.parametrize("name", ["network", "any network"])
def test_it_commutes_with_turns_and_mirrors_of_the_grid(name: str, grid: Tensor) -> None:
    reducer = REDUCERS[name](grid.shape[-1])
    change = reducer(grid)
    assert torch.equal(reducer(grid.flip(1)), change.flip(1))
    assert torch.equal(reducer(grid.rot90(1, (0, 1))), change.rot90(1, (0, 1)))


def test_away_from_the_border_it_commutes_with_shifts(generator: torch.Generator) -> None:
    frames = random_grids(1, 1, 40, 2, generator)[0, 0]
    frames = transform_basis(frames, LagrangeGauss()(frames))
    network = any_network()
    whole = network(frames, Surroundings.of(1, 40))
    part = network(frames[5:], Surroundings.of(1, 35))
    torch.testing.assert_close(part[8:], whole[13:], rtol=1e-4, atol=1e-5)
    assert float(whole.detach().abs().max()) > 0.5


def cost(frames: Tensor, around: Surroundings) -> float:
    """Sum of log defects less what agreement within the windows is worth."""
    window = around.wide
    alike = likeness(frames.mT[window.tiles].flatten(1, 2), frames)
    shared = alike.unflatten(1, (-1, frames.shape[-1])).any(2) & window.there[..., None]
    pairs = float(shared.sum()) / 2 / int(window.there.sum(1).max())
    return float(log_orthogonality_defect(frames).sum()) - AGREEMENT * pairs


@pytest.mark.parametrize("weights", [load_grid_network, any_network])
def test_every_sweep_lowers_defects_and_disagreement_together(weights: Callable[[], GridNetwork], grid: Tensor) -> None:
    rows, columns, _, n = grid.shape
    reducer, around = NeuralGridReducer(weights(), load_reducer(n)), Surroundings.of(rows, columns)
    basis = grid.flatten(0, 1)
    change = reducer.reducer(basis)
    before, costs = change, [cost(transform_basis(basis, change), around)]
    for _ in range(6):
        change, gain = reducer.sweep(basis, change, around)
        costs.append(cost(transform_basis(basis, change), around))
        if gain <= 0:
            break
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(costs))
    assert not torch.equal(before, change)


def test_the_network_keeps_more_neighbours_together_than_tiles_by_themselves(generator: torch.Generator) -> None:
    """On nearly hexagonal cells with up to 4 % of noise, and in shorter vectors than where bases are carried over."""
    reducers = (NeuralGridReducer(load_grid_network(), LagrangeGauss()), CarriedBases(LagrangeGauss()))
    flips, defects = torch.zeros(3), torch.zeros(3)
    for grid in random_grids(6, 8, 8, 2, generator)[::2]:
        alone = LagrangeGauss()(grid.flatten(0, 1)).view(8, 8, 2, 2)
        found = [transform_basis(grid, change) for change in (alone, *(reducer(grid) for reducer in reducers))]
        flips += torch.tensor([basis_flips(bases) for bases in found])
        defects += torch.tensor([float(log_orthogonality_defect(bases).mean()) for bases in found])
    assert flips[1] < flips[0] / 4
    assert defects[1] < defects[2]
