"""How the network of lattice reduction learns: from random lattices, by what its moves gain, without labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.lattice.neural_reducer import Bases, MoveNetwork, NeuralReducer, descend, rounded_moves, weigh

_SCRAMBLES_PER_DIMENSION = 4
_LARGEST_GRADIENT = 1.0
_VISITS = 2  # states of each basis that are learnt from: where rounding ends, and again after a learnt move


@dataclass(frozen=True)
class ReductionTraining:
    """What to train, and how long.

    Args:
        n: dimension.
        steps: batches.
        batch_size: bases in each.
        samples: moves tried per column and basis.
        learning_rate: of Adam at the start; falls to zero along a cosine.
        first_spread: scale of the logistic noise on the coefficients at the start.
        last_spread: at the end.
    """

    n: int
    steps: int = 1500
    batch_size: int = 512
    samples: int = 16
    learning_rate: float = 5e-3
    first_spread: float = 0.25
    last_spread: float = 0.12


def random_bases(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Bases of random lattices: Gaussian, with lengths that differ by factors of ten, and scrambled.

    Args:
        count: how many.
        n: dimension.
        generator: source of chance.
    """
    basis = torch.randn(count, n, n, dtype=torch.float64, generator=generator)
    spread = torch.rand(count, 1, 1, dtype=torch.float64, generator=generator)
    basis = basis * (2 * spread * torch.randn(count, 1, n, dtype=torch.float64, generator=generator)).exp()
    return scramble(basis, generator)


def scramble(basis: Float[Tensor, "count d n"], generator: torch.Generator) -> Float[Tensor, "count d n"]:
    """Each in another basis, a random product of elementary moves away.

    Args:
        basis: vectors as columns.
        generator: source of chance.
    """
    count, d, n = basis.shape
    for _ in range(_SCRAMBLES_PER_DIMENSION * n):
        target, source = torch.rand(count, n, generator=generator).topk(2).indices.unbind(-1)
        times = torch.randint(-2, 3, (count, 1, 1), generator=generator)
        rows = torch.arange(count)
        added = basis[rows, :, source][..., None] * times
        basis = basis.scatter_add(2, target[:, None, None].expand(count, d, 1), added)
    return basis


def train(network: MoveNetwork, training: ReductionTraining, generator: torch.Generator) -> Iterator[float]:
    """Train in place.

    Args:
        network: to train.
        training: settings.
        generator: source of chance.

    Yields:
        After each batch, by how much the mean move offered lowers log |b|^2.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    reducer = NeuralReducer(network)
    for step in range(training.steps):
        done = step / training.steps
        spread = training.first_spread + (training.last_spread - training.first_spread) * done
        bases = Bases.of(random_bases(training.batch_size, training.n, generator))
        offered = 0.0
        for visit in range(_VISITS):
            bases, _ = descend(bases, rounded_moves)
            loss, reward = _loss(network, bases, spread, training.samples, generator)
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            if torch.isfinite(norm):  # a basis that is singular in float64 comes by now and then
                optimiser.step()
                offered += float(reward) / _VISITS
            if visit + 1 < _VISITS:
                with torch.no_grad():
                    bases, moved = descend(bases, reducer.learnt_moves, most=1)
                bases = bases[moved] if moved.any() else bases
        schedule.step()
        yield offered


def _loss(
    network: MoveNetwork, bases: Bases, spread: float, samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Score-function estimate of what moves drawn about the network's coefficients gain, and the mean gain.

    A coefficient is the network's plus logistic noise, rounded. What a move would lose counts as zero, since it would
    not be made. The mean of the other samples is the baseline of each.
    """
    rounded, correction = network(bases)
    n, batch = correction.shape[1:]
    uniform = torch.rand(samples, n, n, batch, generator=generator).clamp(1e-6, 1 - 1e-6)
    drawn = (correction + spread * torch.logit(uniform)).detach().round()
    off = (1 - torch.eye(n))[..., None]
    chance = (log_chance(drawn, correction, spread) * off).sum(1)
    gains = torch.stack([weigh(bases, rounded + (one * off).double()).gains for one in drawn]).clamp(min=0).float()
    baseline = (gains.sum(0) - gains) / (samples - 1)
    return -((gains - baseline) * chance).mean(), gains.mean()


def log_chance(
    drawn: Float[Tensor, "samples *shape"], centre: Float[Tensor, "*shape"], spread: float
) -> Float[Tensor, "samples *shape"]:
    """Logarithm of the chance of whole numbers when logistic noise about other numbers is rounded.

    Args:
        drawn: the whole numbers.
        centre: the others.
        spread: scale of the noise.
    """
    low, high = (drawn - 0.5 - centre) / spread, (drawn + 0.5 - centre) / spread
    # sigmoid(high) - sigmoid(low), without loss of digits on either side.
    return (
        torch.nn.functional.logsigmoid(high)
        + torch.nn.functional.logsigmoid(-low)
        + torch.log1p(-torch.exp(low - high))
    )
