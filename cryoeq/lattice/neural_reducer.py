"""Neural lattice reduction: a network proposes unimodular column operations, the shortest vector decides.

A reconstruction after the abstract of Marchetti, Cesa, Kumar, Behboodi 2023, Neural Lattice Reduction (arXiv
2311.08170): self-supervised on the logarithm of the orthogonality defect, output factorised into extended Gauss moves,
invariant to rotation and scale, equivariant to signed permutations. The network, its training signal and the choice of
the operations are ours.

An extended Gauss move adds integer multiples of all other vectors to one of them::

    b_j  <-  b_j + sum_i q_ij b_i

It is called a column operation below. The best q is that of a closest vector. Rounding the coefficients of the
orthogonal projection (Babai) is often near it, not always on it: where no rounded operation shortens a vector any more,
the network corrects the coefficients of all columns. Of the n operations the one that shortens its vector most is
applied, until none does. In up to four dimensions the result is a Minkowski-reduced basis wherever the proposals are
the closest vectors (Nguyen and Stehle 2009, ACM Trans. Algorithms 5, 46).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cryoeq.errors import ConfigError
from cryoeq.io.checkpoint import load_checkpoint

WEIGHTS = Path(__file__).with_name("weights")
_MIN_GAIN = 1e-6  # of log |b|^2; below it is rounding error
_MAX_OPERATIONS_PER_DIMENSION = 60
_CHUNK = 2048  # bases, so that their numbers stay in the cache

Matrices = Float[Tensor, "n n batch"]


@dataclass(frozen=True)
class Bases:
    """Bases during their reduction. The batch is the last axis, which keeps small matrices fast.

    Args:
        vectors: basis vectors as columns, float64, scaled to unit volume.
        duals: dual vectors as rows: duals times vectors is 1.
        change: product of all column operations so far, unimodular, in float64, exact up to 2^53.
    """

    vectors: Matrices
    duals: Matrices
    change: Matrices

    @classmethod
    def from_basis(cls, basis: Float[Tensor, "batch d n"]) -> "Bases":
        """Bases scaled to volume 1, expressed within the n-dimensional space that they span."""
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

    def put(self, rows: Int[Tensor, " rows"], replacements: "Bases") -> None:
        """Replace some of the bases in place."""
        self.vectors[..., rows], self.duals[..., rows], self.change[..., rows] = (
            replacements.vectors, replacements.duals, replacements.change,
        )  # fmt: skip

    def apply(self, coefficients: Matrices, column: Int[Tensor, " batch"]) -> "Bases":
        """The bases after one column operation each.

        Args:
            coefficients: q_ij of the operation on each column j, zero on the diagonal.
            column: number of the column whose operation is applied.
        """
        n = len(coefficients)
        selected = column.expand(n, 1, -1)
        q = coefficients.gather(1, selected)
        across = q.movedim(0, 1)
        vectors, change = (
            matrices.scatter_add(1, selected, (matrices * across).sum(1, keepdim=True))
            for matrices in (self.vectors, self.change)
        )
        return Bases(vectors, self.duals - q * self.duals.gather(0, selected.movedim(0, 1)), change)


@dataclass(frozen=True)
class ColumnOperations:
    """A unimodular column operation for each column of each basis.

    Args:
        coefficients: q_ij, integers, zero on the diagonal.
        gains: decrease of log |b_j|^2 by each operation.
    """

    coefficients: Matrices
    gains: Float[Tensor, "n batch"]

    @classmethod
    def evaluate(cls, bases: Bases, coefficients: Matrices) -> "ColumnOperations":
        """The operations with these coefficients, and their gains."""
        after = bases.vectors + multiply(bases.vectors, coefficients)
        return cls(coefficients, (bases.vectors.square().sum(0) / after.square().sum(0)).log())


def multiply(left: Matrices, right: Matrices) -> Matrices:
    """Matrix products with the batch last."""
    product = left[:, :1] * right[:1]
    for k in range(1, len(right)):
        product = torch.addcmul(product, left[:, k : k + 1], right[k : k + 1])
    return product


def projection_coefficients(bases: Bases) -> Matrices:
    """Coefficients of the other vectors that make each b_j orthogonal to all of them, zero on the diagonal."""
    dual_gram = multiply(bases.duals, bases.duals.movedim(0, 1))
    coefficients = dual_gram / dual_gram.diagonal().movedim(-1, 0)
    coefficients.diagonal().zero_()
    return coefficients


def rounded_operations(bases: Bases) -> ColumnOperations:
    """Babai's rounding in every column."""
    return ColumnOperations.evaluate(bases, projection_coefficients(bases).round())


class ReductionNetwork(nn.Module):
    """Corrections of the rounded coefficients, by message passing between the vectors of a basis.

    Channels of a pair (i, j) are mixed linearly without bias and multiplied by functions of their absolute values, so
    they change sign with b_i and with b_j; messages pass along the cosines of the angles, which do too. No layer
    depends on n.

    Args:
        width: number of channels.
        n_layers: number of message-passing layers.
        generator: random number generator of the initial weights; the last layer starts at zero, which is plain
            rounding.
    """

    def __init__(self, width: int, n_layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.width, self.n_layers = width, n_layers
        sizes = [4, *[width] * (n_layers - 1)]
        self.mix = nn.ModuleList(nn.Linear(2 * size, width, bias=False) for size in sizes)
        self.gate = nn.ModuleList(nn.Linear(2 * size + 1, width) for size in sizes)
        self.scale = nn.ModuleList(nn.Linear(width, width) for _ in sizes)
        self.out = nn.Linear(width, 1, bias=False)
        for parameter in self.parameters():
            bound = parameter.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.zeros_(self.out.weight)

    def forward(self, bases: Bases) -> tuple[Matrices, Matrices]:
        """Coefficients of every column operation; zero on the diagonal.

        Returns:
            (rounded coefficients, correction to add to each before it is rounded again).
        """
        rounded, odd, even, cosines = pair_features(bases)
        n, batch = odd.shape[-2:]
        off_diagonal = (1 - torch.eye(n, device=odd.device))[..., None]
        for mix, gate, scale in zip(self.mix, self.gate, self.scale, strict=True):
            messages = torch.stack([multiply(cosines, channel) for channel in odd]) * off_diagonal
            inputs = [odd.flatten(1), messages.flatten(1)]
            hidden = _apply(gate, [*(values.abs() for values in inputs), even.flatten(1)]).relu()
            odd = (_apply(mix, inputs) * _apply(scale, [hidden])).unflatten(1, (n, n, batch))
        return rounded, _apply(self.out, [odd.flatten(1)]).view(n, n, batch) * off_diagonal


def _apply(layer: nn.Module, inputs: list[Float[Tensor, "_ points"]]) -> Float[Tensor, "k points"]:
    """A linear layer on channels that come first, in several blocks: to concatenate them would take longer than it."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(layer)
    blocks = layer.weight.split([len(values) for values in inputs], 1)
    total = blocks[0] @ inputs[0] if layer.bias is None else torch.addmm(layer.bias[:, None], blocks[0], inputs[0])
    for weight, values in zip(blocks[1:], inputs[1:], strict=True):
        total = torch.addmm(total, weight, values)
    return total


def pair_features(
    bases: Bases,
) -> tuple[Matrices, Float[Tensor, "4 n n batch"], Float[Tensor, "1 n n batch"], Matrices]:
    """Input of the network for each pair (i, j), in float32 but for the rounded coefficients.

    Returns:
        (rounded coefficients; features that change sign with b_i and with b_j: projections and angles after rounding,
        remainder of the rounding, angles to third vectors; one that does not: the logarithm of a ratio of lengths;
        cosines of the angles between the vectors).
    """
    off_diagonal = (1 - torch.eye(len(bases.vectors), dtype=torch.float64, device=bases.vectors.device))[..., None]
    coefficients = projection_coefficients(bases)
    rounded = coefficients.round()
    residual = bases.vectors + multiply(bases.vectors, rounded)
    lengths, residual_lengths = bases.vectors.square().sum(0).sqrt(), residual.square().sum(0).sqrt()
    units = bases.vectors / lengths
    cosines = multiply(units.movedim(0, 1), units) * off_diagonal
    inner = multiply(units.movedim(0, 1), residual) * off_diagonal
    angles = inner / residual_lengths
    lengths = lengths[:, None]
    odd = torch.stack([inner / lengths, coefficients - rounded, angles, multiply(cosines, angles) * off_diagonal])
    even = (residual_lengths / lengths).log().clamp(-3, 3)[None]
    return rounded, odd.float(), even.float(), cosines.float()


@dataclass(frozen=True)
class NeuralReducer:
    """Lattice reduction by a network.

    Args:
        network: corrects the rounded coefficients; None for Babai's rounding alone.
    """

    network: ReductionNetwork | None

    @torch.no_grad()
    def __call__(self, basis: Float[Tensor, "batch d n"]) -> Int[Tensor, "batch n n"]:
        """Q of each basis."""
        return torch.cat([self._reduce(Bases.from_basis(chunk)) for chunk in basis.split(_CHUNK)])

    def _reduce(self, bases: Bases) -> Int[Tensor, "batch n n"]:
        bases, has_changed = descend(bases, rounded_operations)
        change = bases.change.clone()
        rows = torch.arange(change.shape[-1], device=change.device)
        while self.network is not None and len(rows):
            bases, has_changed = descend(bases, self.learnt_operations, max_operations=1)
            rows, bases = rows[has_changed], bases[has_changed]
            bases, _ = descend(bases, rounded_operations)
            change[..., rows] = bases.change
        return change.movedim(-1, 0).long().contiguous()

    def learnt_operations(self, bases: Bases) -> ColumnOperations:
        """Rounding corrected by the network in every column."""
        if self.network is None:
            return rounded_operations(bases)
        rounded, correction = self.network(bases)
        return ColumnOperations.evaluate(bases, rounded + correction.round().double())


def descend(
    bases: Bases, propose: Callable[[Bases], ColumnOperations], *, max_operations: int | None = None
) -> tuple[Bases, Bool[Tensor, " batch"]]:
    """Apply the best column operation to each basis repeatedly, until none shortens a vector.

    Args:
        bases: starting point.
        propose: gives one operation for each column.
        max_operations: number of operations per basis at most; 60 per dimension if None.

    Returns:
        (the bases at the end, whether each has changed at all).
    """
    n, batch = bases.vectors.shape[1:]
    reduced, rows = bases.clone(), torch.arange(batch, device=bases.vectors.device)
    has_changed = torch.zeros(batch, dtype=torch.bool, device=rows.device)
    for step in range(max_operations or _MAX_OPERATIONS_PER_DIMENSION * n):
        operations = propose(bases)
        gain, column = operations.gains.max(0)
        improves = gain > _MIN_GAIN
        has_changed[rows] |= improves
        bases = bases.apply(operations.coefficients * improves, column)
        if 2 * int(improves.sum()) <= len(rows) or step + 1 == max_operations:
            reduced.put(rows, bases)
            rows, bases = rows[improves], bases[improves]
        if not len(rows):
            break
    return reduced, has_changed


def load_reducer(n: int) -> NeuralReducer:
    """The reducer that cryoeq ships for n dimensions.

    Raises:
        ConfigError: cryoeq ships no weights for this dimension.
    """
    path = WEIGHTS / f"n{n}.pt"
    if not path.is_file():
        shipped = sorted(int(weights.stem[1:]) for weights in WEIGHTS.glob("n*.pt"))
        raise ConfigError(
            f"no trained reducer of {n} dimensions", f"cryoeq ships those of {shipped}", "Use --reducer lll"
        )
    return NeuralReducer(network_from_checkpoint(load_checkpoint(path, torch.device("cpu"))))


def network_from_checkpoint(state: dict[str, Any]) -> ReductionNetwork:
    """The network of a checkpoint that ``network_checkpoint`` made."""
    network = ReductionNetwork(state["width"], state["n_layers"], torch.Generator())
    network.load_state_dict(state["network"])
    return network.eval()


def network_checkpoint(network: ReductionNetwork) -> dict[str, Any]:
    """Architecture and weights of a network, as numbers and tensors."""
    return {"width": network.width, "n_layers": network.n_layers, "network": network.state_dict()}
