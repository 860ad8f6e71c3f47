"""How the network of joint lattice reduction learns: from random grids, by what its moves gain, without labels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.lattice.joint_reducer import GridNetwork, NeuralGridReducer, Surroundings, weigh_moves
from cryoeq.lattice.reduction import LatticeReducer, transform_basis
from cryoeq.lattice.train_neural_reducer import log_chance, scramble

_LARGEST_GRADIENT = 1.0
_VISITS = 3  # states of each grid that are learnt from
_SHAPES = {2: ((8, 8),), 3: ((1, 32), (6, 6))}
_MOST_NOISE, _MOST_SKEW, _MOST_BEND = 0.04, 0.03, 0.2


@dataclass(frozen=True)
class GridTraining:
    """How long to train, and how.

    Args:
        steps: batches, in turn of lattices of 2 and 3 dimensions.
        batch_size: grids in each.
        samples: moves tried per vector.
        learning_rate: of Adam at the start; falls to zero along a cosine.
        first_spread: scale of the logistic noise on the coefficients at the start.
        last_spread: at the end.
    """

    steps: int = 600
    batch_size: int = 4
    samples: int = 16
    learning_rate: float = 5e-3
    first_spread: float = 0.3
    last_spread: float = 0.15


def random_grids(
    count: int, rows: int, columns: int, n: int, generator: torch.Generator
) -> Float[Tensor, "count rows columns n n"]:
    """Grids of lattices that change slowly and are measured with noise, each tile in a basis of its own.

    Half are nearly those of a close packing, hexagonal or face-centred cubic, whose short vectors are nearly of one
    length; the others have any shape.

    Args:
        count: how many.
        rows: of tiles.
        columns: of tiles.
        n: 2 or 3 dimensions.
        generator: source of chance.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    packed = torch.linalg.cholesky(0.5 * torch.eye(n, dtype=torch.float64) + 0.5).mT
    is_packed = torch.arange(count)[:, None, None] % 2 == 0
    cells = torch.where(is_packed, packed + _MOST_SKEW * normal(count, n, n), normal(count, n, n))
    cells = torch.linalg.qr(normal(count, n, n)).Q @ cells
    place = torch.stack(
        torch.meshgrid(torch.linspace(-0.5, 0.5, rows), torch.linspace(-0.5, 0.5, columns), indexing="ij"), -1
    ).double()
    slopes = _MOST_BEND / math.sqrt(n) * normal(count, 2, n, n)
    bends = torch.eye(n, dtype=torch.float64) + torch.einsum("rcs,gsij->grcij", place, slopes)
    noise = _MOST_NOISE * torch.rand(count, 1, 1, 1, 1, dtype=torch.float64, generator=generator)
    tiles = bends @ cells[:, None, None] * (1 + noise * normal(count, rows, columns, n, n))
    return scramble(tiles.flatten(0, 2), generator).view(count, rows, columns, n, n)


def train_grid(
    network: GridNetwork, training: GridTraining, reducers: dict[int, LatticeReducer], generator: torch.Generator
) -> Iterator[float]:
    """Train in place.

    Args:
        network: to train.
        training: settings.
        reducers: of single tiles in 2 and 3 dimensions.
        generator: source of chance.

    Yields:
        After each batch, the mean gain of a move drawn.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    for step in range(training.steps):
        n = 2 + step % 2
        rows, columns = _SHAPES[n][step // 2 % len(_SHAPES[n])]
        spread = training.first_spread + (training.last_spread - training.first_spread) * step / training.steps
        around = Surroundings.of(rows, columns, training.batch_size)
        basis = random_grids(training.batch_size, rows, columns, n, generator).flatten(0, 2)
        reducer = NeuralGridReducer(network, reducers[n])
        change = reducers[n](basis)
        offered = 0.0
        for _ in range(_VISITS):
            loss, reward = _loss(network, transform_basis(basis, change), around, spread, training.samples, generator)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            offered += float(reward) / _VISITS
            for _ in range(int(torch.randint(1, 9, (1,), generator=generator))):
                change, _ = reducer.sweep(basis, change, around)
        schedule.step()
        yield offered


def _loss(
    network: GridNetwork,
    frames: Float[Tensor, "tiles d n"],
    around: Surroundings,
    spread: float,
    samples: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Score-function estimate of what moves drawn about the network's coefficients gain, and the mean gain.

    What a move would lose counts as zero, since it would not be made. The mean of the other samples is the baseline.
    """
    correction = network(frames, around)
    tiles, n, _ = correction.shape
    uniform = torch.rand(samples, tiles, n, n, generator=generator).clamp(1e-6, 1 - 1e-6)
    off = 1 - torch.eye(n)
    drawn = (correction + spread * torch.logit(uniform)).detach().round() * off
    chance = (log_chance(drawn, correction, spread) * off).sum(-2)
    gains = weigh_moves(frames, drawn.double(), around.wide).clamp(min=0).float()
    baseline = (gains.sum(0) - gains) / (samples - 1)
    return -((gains - baseline) * chance).mean(), gains.mean()
