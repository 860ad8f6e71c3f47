"""Joint reduction of grids of correlated lattices by a network that convolves over the grid.

A reconstruction after the second part of Marchetti, Cesa, Kumar, Behboodi 2023, Neural Lattice Reduction (arXiv
2311.08170), of which the abstract alone was at hand: a convolutional network over a grid of lattices, so that
neighbours come to the same basis. Messages, moves and the training signal are ours.

Tiles come in bases of their own, so vector i of one need not be vector i of the next. What passes between two tiles is
therefore carried over by the cosines between their vectors, channels of a pair (i, j) by cosines on both sides. That
makes the network indifferent to rotation and scale of the whole grid, and equivariant to signed permutations of the
vectors of each tile by itself. All tiles within a square window count alike, so it commutes with shifts of the grid
(away from its border), with its rotations and with its reflections.

The network proposes an extended Gauss move for every vector of every tile. What a move gains is the fall of log |b_j|
and ``agreement`` times the rise of the share of tiles in the window that have a vector like b_j. A tile moves where its
best move gains, and more than that of any other tile in its window: such moves do not meet, so the sum of log defects
and disagreements falls with every one of them, and the descent ends.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.lattice.neural_reducer import WEIGHTS, Bases, describe, network_of
from cryoeq.lattice.reduction import LatticeReducer, transform_basis

ALIKE = 1 / 3  # of their mean length: how far two vectors may differ, up to the sign, to be one vector of the crystal
AGREEMENT = 0.2  # log defect that agreement with the whole window is worth
_WINDOW = 4  # tiles to each side
_LEAST_GAIN = 1e-6
_MOST_SWEEPS_PER_TILE = 4
_OWN_ODD, _OWN_EVEN = 4, 1  # what ``describe`` returns
_RINGS = 2  # the nearest tiles, and the whole window


@dataclass(frozen=True)
class Window:
    """Which tiles see which.

    Args:
        tiles: of each tile, those around it; itself where the grid has none.
        there: where the grid has one.
    """

    tiles: Int[Tensor, "tiles around"]
    there: Bool[Tensor, "tiles around"]

    @classmethod
    def of(cls, rows: int, columns: int, count: int, size: int) -> "Window":
        """Square windows in some grids of one shape, one after the other.

        Args:
            rows: of tiles.
            columns: of tiles.
            count: grids.
            size: tiles to each side.
        """
        across, down = min(size, columns - 1), min(size, rows - 1)
        moves = [(i, j) for i in range(-down, down + 1) for j in range(-across, across + 1) if i or j]
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        step_rows, step_columns = torch.tensor(moves, dtype=torch.long).reshape(-1, 2).unbind(1)
        other_row, other_column = row.flatten()[:, None] + step_rows, column.flatten()[:, None] + step_columns
        there = (other_row >= 0) & (other_row < rows) & (other_column >= 0) & (other_column < columns)
        own = torch.arange(rows * columns)[:, None]
        tiles = torch.where(there, other_row * columns + other_column, own)
        start = (torch.arange(count) * rows * columns).repeat_interleave(rows * columns)[:, None]
        return cls(tiles.repeat(count, 1) + start, there.repeat(count, 1))

    def mean(self, values: Float[Tensor, "tiles around *rest"]) -> Float[Tensor, "tiles *rest"]:
        """Mean over the tiles around each."""
        weights = self.there.to(values) / self.there.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("ty,ty...->t...", weights, values)


@dataclass(frozen=True)
class Surroundings:
    """The tiles next to each, which messages come from, and the whole window, which it should agree with.

    Args:
        near: the nearest.
        wide: all.
    """

    near: Window
    wide: Window

    @classmethod
    def of(cls, rows: int, columns: int, count: int = 1) -> "Surroundings":
        """Of some grids of one shape, one after the other."""
        return cls(Window.of(rows, columns, count, 1), Window.of(rows, columns, count, _WINDOW))


@dataclass(frozen=True)
class Meeting:
    """Vectors of each tile beside those of the tiles around it.

    Args:
        cosines: of the angles between vector k there and i here.
        alike: whether they are one vector of the crystal, up to the sign.
        places: coefficients of vector k there in the basis here, rounded.
    """

    cosines: Float[Tensor, "tiles around n n"]
    alike: Bool[Tensor, "tiles around n n"]
    places: Float[Tensor, "tiles around n n"]

    @classmethod
    def of(cls, frames: Float[Tensor, "tiles d n"], window: Window) -> "Meeting":
        """Of bases in one frame of coordinates, vectors as columns."""
        n, around = frames.shape[-1], window.tiles.shape[1]
        others = frames.mT[window.tiles].flatten(1, 2)
        cosines = (others / others.norm(dim=2, keepdim=True)) @ (frames / frames.norm(dim=1, keepdim=True))
        places = (others @ torch.linalg.pinv(frames).mT).round()
        alike = likeness(others, frames)
        return cls(*(part.unflatten(1, (around, n)) for part in (cosines, alike, places)))


def likeness(
    others: Float[Tensor, "tiles vectors d"], own: Float[Tensor, "tiles d own"]
) -> Bool[Tensor, "tiles vectors own"]:
    """Whether vectors differ, up to the sign, by less than a third of their mean length."""
    squares, own_squares = others.square().sum(2)[..., None], own.square().sum(1)[:, None]
    distance = (squares + own_squares - 2 * (others @ own).abs()).clamp(min=0).sqrt()
    return distance < ALIKE / 2 * (squares.sqrt() + own_squares.sqrt())


class GridNetwork(nn.Module):
    """Moves of every vector of every tile, by messages within tiles and between them.

    Args:
        width: channels.
        rounds: of messages; in each, a tile hears of those next to it.
        generator: of the initial weights.
    """

    def __init__(self, width: int, rounds: int, generator: torch.Generator) -> None:
        super().__init__()
        self.width, self.rounds = width, rounds
        even = _OWN_EVEN + 2 * _RINGS
        sizes = [_OWN_ODD + 2 * _RINGS, *[width] * (rounds - 1)]
        self.mix = nn.ModuleList(nn.Linear(3 * size, width, bias=False) for size in sizes)
        self.gate = nn.ModuleList(nn.Linear(3 * size + even, width) for size in sizes)
        self.scale = nn.ModuleList(nn.Linear(width, width) for _ in sizes)
        self.out = nn.Linear(width, 1, bias=False)
        for parameter in self.parameters():
            bound = parameter.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, frames: Float[Tensor, "tiles d n"], around: Surroundings) -> Float[Tensor, "tiles n n"]:
        """What to add to each vector, as multiples of the others, not rounded; zero on the diagonal.

        Args:
            frames: bases in one frame of coordinates.
            around: which tiles see which.
        """
        n = frames.shape[-1]
        off = 1 - torch.eye(n, device=frames.device)
        meetings = [Meeting.of(frames, window) for window in (around.near, around.wide)]
        odd, even, within = _describe_tiles(frames, meetings, around)
        across = meetings[0].cosines.float()
        for mix, gate, scale in zip(self.mix, self.gate, self.scale, strict=True):
            inside = torch.einsum("tik,tkjc->tijc", within, odd)
            there = odd[around.near.tiles]
            carried = torch.einsum("tyki,tyklc,tylj->tyijc", across, there, across)
            inputs = torch.cat([odd, inside, around.near.mean(carried)], -1) * off[..., None]
            hidden = gate(torch.cat([inputs.abs(), even], -1)).relu()
            odd = mix(inputs) * scale(hidden)
        correction: Tensor = self.out(odd).squeeze(-1) * off
        return correction


def _describe_tiles(
    frames: Float[Tensor, "tiles d n"], meetings: list[Meeting], around: Surroundings
) -> tuple[Float[Tensor, "tiles n n odd"], Float[Tensor, "tiles n n even"], Float[Tensor, "tiles n n"]]:
    """What a tile knows of each pair (i, j), by itself and from the nearest tiles and the window.

    Returns:
        (numbers that change sign with b_i and with b_j, numbers that do not, cosines between the vectors of a tile).
    """
    _, own_odd, own_even, cosines = describe(Bases.of(frames))
    n = frames.shape[-1]
    odd, even = [own_odd.permute(3, 1, 2, 0)], [own_even.permute(3, 1, 2, 0)]
    for meeting, window in zip(meetings, (around.near, around.wide), strict=True):
        news = ~meeting.alike.any(-1, keepdim=True)  # a vector of the others that this tile has not
        everything, missing = (
            window.mean(torch.einsum("tyki,tykj->tyij", meeting.places, cosine)).float()[..., None]
            for cosine in (meeting.cosines, meeting.cosines * news)
        )
        share = window.mean(meeting.alike.any(-2).float())  # of tiles that have this vector
        odd += [everything.clamp(-3, 3), missing.clamp(-3, 3)]
        even += [side.expand(-1, n, n)[..., None] for side in (share[:, :, None], share[:, None])]
    return torch.cat(odd, -1), torch.cat(even, -1), cosines.movedim(-1, 0)


def weigh_moves(
    frames: Float[Tensor, "tiles d n"], moves: Float[Tensor, "samples tiles n n"], window: Window
) -> Float[Tensor, "samples tiles n"]:
    """What the move of each vector would gain, all others as they are.

    Args:
        frames: bases in one frame of coordinates.
        moves: whole multiples of the other vectors that are added to each, zero on the diagonal.
        window: which tiles should agree.
    """
    after = frames + frames @ moves
    shorter = (frames.norm(dim=1) / after.norm(dim=2)).log()
    tried = torch.cat([frames[None], after]).permute(1, 2, 0, 3).flatten(2)
    found = likeness(frames.mT[window.tiles].flatten(1, 2), tried)
    shared = (found.unflatten(1, (-1, frames.shape[-1])).any(2) & window.there[..., None]).sum(1)
    share = shared.unflatten(1, (len(moves) + 1, -1)).movedim(1, 0) / window.there.sum(1).max().clamp(min=1)
    return shorter + AGREEMENT * (share[1:] - share[:1])


@dataclass(frozen=True)
class NeuralGridReducer:
    """A network as the joint reducer of a grid.

    Args:
        network: of the moves.
        reducer: of the single tiles, to begin with.
    """

    network: GridNetwork
    reducer: LatticeReducer

    @torch.no_grad()
    def __call__(self, grid: Float[Tensor, "rows columns d n"]) -> Int[Tensor, "rows columns n n"]:
        """Q of each tile.

        Args:
            grid: one basis per tile, all in one frame of coordinates.
        """
        rows, columns, _, n = grid.shape
        basis, around = grid.flatten(0, 1).double(), Surroundings.of(rows, columns)
        change = self.reducer(basis)
        for _ in range(_MOST_SWEEPS_PER_TILE * len(basis)):
            change, gain = self.sweep(basis, change, around)
            if gain <= _LEAST_GAIN:
                break
        return change.view(rows, columns, n, n)

    @torch.no_grad()
    def sweep(
        self, basis: Float[Tensor, "tiles d n"], change: Int[Tensor, "tiles n n"], around: Surroundings
    ) -> tuple[Int[Tensor, "tiles n n"], float]:
        """The best move of each tile whose gain is the largest in its window.

        Args:
            basis: of each tile as given.
            change: so far.
            around: which tiles see which.

        Returns:
            (the change of basis after it, the largest gain).
        """
        frames = transform_basis(basis, change)
        window = around.wide
        moves = self.network(frames, around).round().double()
        gain, column = weigh_moves(frames, moves[None], window)[0].max(1)
        best = torch.where(window.there, gain[window.tiles], -torch.inf)
        is_later = window.tiles < torch.arange(len(gain))[:, None]  # of equal gains the first tile's counts
        beaten = (best > gain[:, None]) | ((best == gain[:, None]) & is_later)
        goes = (gain > _LEAST_GAIN) & ~beaten.any(1)
        chosen = torch.nn.functional.one_hot(column, change.shape[-1]) * goes[:, None]
        return change + change @ (moves.long() * chosen[:, None]), float(gain.max())


def load_grid_network() -> GridNetwork:
    """The network that cryoeq ships."""
    return network_of(load_checkpoint(WEIGHTS / "grid.pt", torch.device("cpu")), GridNetwork)
