"""Neural lattice reduction: a network proposes whole-number moves, the shortest vector decides.

A reconstruction after the abstract of Marchetti, Cesa, Kumar, Behboodi 2023, Neural Lattice Reduction (arXiv
2311.08170): self-supervised on the logarithm of the orthogonality defect, output factorised into extended Gauss moves,
invariant to rotation and scale, equivariant to signed permutations. The network, its training signal and the choice of
the moves are ours.

An extended Gauss move adds whole multiples of all other vectors to one: b_j + sum_i q_ij b_i. The best q is that of a
closest vector. Rounding the coefficients of the orthogonal projection (Babai) is often near it, not always on it: where
no rounded move shortens a vector any more, the network corrects the coefficients of all columns. Of the n moves the one
that shortens its vector most is made; the end is where none does. In up to four dimensions that is a Minkowski-reduced
basis wherever the proposals are the closest vectors (Nguyen and Stehle 2009, ACM Trans. Algorithms 5, 46).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cryoeq.errors import ConfigError
from cryoeq.io.checkpoint import load_checkpoint

Network = TypeVar("Network", bound=nn.Module)
WEIGHTS = Path(__file__).with_name("weights")
_LEAST_GAIN = 1e-6  # of log |b|^2; below it is rounding error
_MOST_MOVES_PER_DIMENSION = 60
_AT_ONCE = 2048  # bases, so that their numbers stay in the cache

Matrices = Float[Tensor, "n n batch"]


@dataclass(frozen=True)
class Bases:
    """Bases on their way. The batch is the last axis, which keeps small matrices fast.

    Args:
        vectors: the vectors as columns, float64, scaled to unit volume.
        duals: the dual vectors as rows: duals times vectors is 1.
        change: the unimodular matrix so far, in float64, exact up to 2^53.
    """

    vectors: Matrices
    duals: Matrices
    change: Matrices

    @classmethod
    def of(cls, basis: Float[Tensor, "batch d n"]) -> "Bases":
        """From any bases: scaled to volume 1, and turned into their own space where that is smaller."""
        d, n = basis.shape[-2:]
        vectors = basis.double() if d == n else torch.linalg.qr(basis.double()).R
        vectors = vectors * (torch.linalg.slogdet(vectors).logabsdet / -n).exp()[:, None, None]
        change = torch.eye(n, dtype=torch.float64, device=basis.device)[..., None].expand(n, n, len(basis))
        duals = torch.linalg.inv(vectors)
        return cls(vectors.movedim(0, -1).contiguous(), duals.movedim(0, -1).contiguous(), change.contiguous())

    def __getitem__(self, rows: Bool[Tensor, " batch"] | Int[Tensor, " rows"]) -> "Bases":
        return Bases(self.vectors[..., rows], self.duals[..., rows], self.change[..., rows])

    def clone(self) -> "Bases":
        """A copy with memory of its own."""
        return Bases(self.vectors.clone(), self.duals.clone(), self.change.clone())

    def put(self, rows: Int[Tensor, " rows"], others: "Bases") -> None:
        """Replace some of the bases."""
        self.vectors[..., rows], self.duals[..., rows], self.change[..., rows] = (
            others.vectors, others.duals, others.change,
        )  # fmt: skip

    def moved(self, moves: Matrices, column: Int[Tensor, " batch"]) -> "Bases":
        """After one move of each basis.

        Args:
            moves: coefficients q_ij of the move of each column j, zero on the diagonal.
            column: which one is made.
        """
        n = len(moves)
        chosen = column.expand(n, 1, -1)
        coefficients = moves.gather(1, chosen)
        across = coefficients.movedim(0, 1)
        vectors, change = (
            matrices.scatter_add(1, chosen, (matrices * across).sum(1, keepdim=True))
            for matrices in (self.vectors, self.change)
        )
        return Bases(vectors, self.duals - coefficients * self.duals.gather(0, chosen.movedim(0, 1)), change)


@dataclass(frozen=True)
class Moves:
    """A move for each column of each basis.

    Args:
        coefficients: q_ij, whole numbers, zero on the diagonal.
        gains: by how much each lowers log |b_j|^2.
    """

    coefficients: Matrices
    gains: Float[Tensor, "n batch"]


def weigh(bases: Bases, coefficients: Matrices) -> Moves:
    """Moves and what they would gain."""
    after = bases.vectors + multiply(bases.vectors, coefficients)
    gains = (bases.vectors.square().sum(0) / after.square().sum(0)).log()
    return Moves(coefficients, gains)


def multiply(left: Matrices, right: Matrices) -> Matrices:
    """Matrix products with the batch last."""
    product = left[:, :1] * right[:1]
    for k in range(1, len(right)):
        product = torch.addcmul(product, left[:, k : k + 1], right[k : k + 1])
    return product


def project(bases: Bases) -> Matrices:
    """Coefficients of the other vectors that make each b_j orthogonal to all of them, zero on the diagonal."""
    dual_gram = multiply(bases.duals, bases.duals.movedim(0, 1))
    coefficients = dual_gram / dual_gram.diagonal().movedim(-1, 0)
    coefficients.diagonal().zero_()
    return coefficients


def rounded_moves(bases: Bases) -> Moves:
    """Babai's rounding in every column."""
    return weigh(bases, project(bases).round())


class MoveNetwork(nn.Module):
    """Corrections of the rounded coefficients, by messages between the vectors of a basis.

    Channels of a pair (i, j) are mixed linearly without bias and multiplied by functions of their absolute values, so
    they change sign with b_i and with b_j; messages pass along the cosines of the angles, which do too. No layer knows
    n.

    Args:
        width: channels.
        rounds: of messages.
        generator: of the initial weights; the last layer starts at zero, which is plain rounding.
    """

    def __init__(self, width: int, rounds: int, generator: torch.Generator) -> None:
        super().__init__()
        self.width, self.rounds = width, rounds
        sizes = [4, *[width] * (rounds - 1)]
        self.mix = nn.ModuleList(nn.Linear(2 * size, width, bias=False) for size in sizes)
        self.gate = nn.ModuleList(nn.Linear(2 * size + 1, width) for size in sizes)
        self.scale = nn.ModuleList(nn.Linear(width, width) for _ in sizes)
        self.out = nn.Linear(width, 1, bias=False)
        for parameter in self.parameters():
            bound = parameter.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.zeros_(self.out.weight)

    def forward(self, bases: Bases) -> tuple[Matrices, Matrices]:
        """The rounded coefficients, and what to add to each before it is rounded again; zero on the diagonal."""
        rounded, odd, even, cosines = describe(bases)
        n, batch = odd.shape[-2:]
        off = (1 - torch.eye(n, device=odd.device))[..., None]
        for mix, gate, scale in zip(self.mix, self.gate, self.scale, strict=True):
            messages = torch.stack([multiply(cosines, channel) for channel in odd]) * off
            inputs = [odd.flatten(1), messages.flatten(1)]
            hidden = _apply(gate, [*(values.abs() for values in inputs), even.flatten(1)]).relu()
            odd = (_apply(mix, inputs) * _apply(scale, [hidden])).unflatten(1, (n, n, batch))
        return rounded, _apply(self.out, [odd.flatten(1)]).view(n, n, batch) * off


def _apply(layer: nn.Module, inputs: list[Float[Tensor, "_ points"]]) -> Float[Tensor, "k points"]:
    """A linear layer on channels that come first, and in parts: joining them would take longer than the product."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(layer)
    parts = layer.weight.split([len(values) for values in inputs], 1)
    total = parts[0] @ inputs[0] if layer.bias is None else torch.addmm(layer.bias[:, None], parts[0], inputs[0])
    for weight, values in zip(parts[1:], inputs[1:], strict=True):
        total = torch.addmm(total, weight, values)
    return total


def describe(
    bases: Bases,
) -> tuple[Matrices, Float[Tensor, "4 n n batch"], Float[Tensor, "1 n n batch"], Matrices]:
    """What the network sees of each pair (i, j), in float32 but for the first.

    Returns:
        (rounded coefficients; numbers that change sign with b_i and with b_j: projections and angles after rounding,
        what rounding left, angles to third vectors; one that does not: the logarithm of a ratio of lengths; cosines of
        the angles between the vectors).
    """
    off = (1 - torch.eye(len(bases.vectors), dtype=torch.float64, device=bases.vectors.device))[..., None]
    coefficients = project(bases)
    rounded = coefficients.round()
    rest = bases.vectors + multiply(bases.vectors, rounded)
    lengths, rest_lengths = bases.vectors.square().sum(0).sqrt(), rest.square().sum(0).sqrt()
    units = bases.vectors / lengths
    cosines = multiply(units.movedim(0, 1), units) * off
    inner = multiply(units.movedim(0, 1), rest) * off
    angles = inner / rest_lengths
    lengths = lengths[:, None]
    odd = torch.stack([inner / lengths, coefficients - rounded, angles, multiply(cosines, angles) * off])
    even = (rest_lengths / lengths).log().clamp(-3, 3)[None]
    return rounded, odd.float(), even.float(), cosines.float()


@dataclass(frozen=True)
class NeuralReducer:
    """A network as a reducer.

    Args:
        network: of the moves; None for rounding alone, the reducer without its learnt part.
    """

    network: MoveNetwork | None

    @torch.no_grad()
    def __call__(self, basis: Float[Tensor, "batch d n"]) -> Int[Tensor, "batch n n"]:
        """Q of each basis."""
        return torch.cat([self._reduce(Bases.of(part)) for part in basis.split(_AT_ONCE)])

    def _reduce(self, bases: Bases) -> Int[Tensor, "batch n n"]:
        bases, moved = descend(bases, rounded_moves)
        change = bases.change.clone()
        rows = torch.arange(change.shape[-1], device=change.device)
        while self.network is not None and len(rows):
            bases, moved = descend(bases, self.learnt_moves, most=1)
            rows, bases = rows[moved], bases[moved]
            bases, _ = descend(bases, rounded_moves)
            change[..., rows] = bases.change
        return change.movedim(-1, 0).long().contiguous()

    def learnt_moves(self, bases: Bases) -> Moves:
        """Rounding corrected by the network in every column."""
        if self.network is None:
            return rounded_moves(bases)
        rounded, correction = self.network(bases)
        return weigh(bases, rounded + correction.round().double())


def descend(
    bases: Bases, propose: Callable[[Bases], Moves], *, most: int | None = None
) -> tuple[Bases, Bool[Tensor, " batch"]]:
    """Make the best move of each basis again and again, until none shortens a vector.

    Args:
        bases: where to start.
        propose: a move for each column.
        most: moves at most.

    Returns:
        (the bases after their moves, which of them moved at all).
    """
    n, batch = bases.vectors.shape[1:]
    reached, rows = bases.clone(), torch.arange(batch, device=bases.vectors.device)
    has_moved = torch.zeros(batch, dtype=torch.bool, device=rows.device)
    for step in range(most or _MOST_MOVES_PER_DIMENSION * n):
        moves = propose(bases)
        gain, column = moves.gains.max(0)
        going = gain > _LEAST_GAIN
        has_moved[rows] |= going
        bases = bases.moved(moves.coefficients * going, column)
        if 2 * int(going.sum()) <= len(rows) or step + 1 == most:
            reached.put(rows, bases)
            rows, bases = rows[going], bases[going]
        if not len(rows):
            break
    return reached, has_moved


def load_reducer(n: int) -> NeuralReducer:
    """The reducer that cryoeq ships for n dimensions.

    Raises:
        ConfigError: there is none.
    """
    path = WEIGHTS / f"n{n}.pt"
    if not path.is_file():
        shipped = sorted(int(other.stem[1:]) for other in WEIGHTS.glob("n*.pt"))
        raise ConfigError(
            f"no trained reducer of {n} dimensions", f"cryoeq ships those of {shipped}", "Use --reducer lll"
        )
    return NeuralReducer(network_of(load_checkpoint(path, torch.device("cpu")), MoveNetwork))


def network_of(state: dict[str, Any], kind: Callable[[int, int, torch.Generator], Network]) -> Network:
    """The network of a checkpoint that ``checkpoint_of`` made.

    Args:
        state: the checkpoint.
        kind: class of the network.
    """
    network = kind(state["width"], state["rounds"], torch.Generator())
    network.load_state_dict(state["network"])
    return network.eval()


def checkpoint_of(network: nn.Module) -> dict[str, Any]:
    """What makes the same network again, one of a width and of rounds: numbers and tensors."""
    return {"width": network.width, "rounds": network.rounds, "network": network.state_dict()}
