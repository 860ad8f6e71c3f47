"""Training of the network of lattice reduction on random lattices, by the expected gain of its operations.

No labels are needed. With q drawn about the network's coefficients, and gain(q) the decrease of log |b_j|^2 by the
column operation q, zero where it would not be applied, the score-function estimate of the gradient is::

    grad E[gain]  =  E[ (gain(q) - baseline) grad log p(q) ]

The weights that cryoeq ships are made by ``python -m cryoeq.lattice.train_neural_reducer N -o FILE --steps K``.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.lattice.neural_reducer import (
    Bases,
    ColumnOperations,
    NeuralReducer,
    ReductionNetwork,
    descend,
    network_checkpoint,
    rounded_operations,
)
from cryoeq.lattice.reduction import LatticeReducer, Lll, log_orthogonality_defect, transform_basis
from cryoeq.runtime.random_streams import Stream, stream_generator

_SCRAMBLES_PER_DIMENSION = 4
_MAX_GRADIENT_NORM = 1.0
_ROLLOUT_STEPS = 2  # states of each basis in a batch: where rounding ends, and again after a learnt operation
_WIDTH, _N_LAYERS = 16, 2
_N_HELD_OUT = 500
_REPORT_EVERY = 100


@dataclass(frozen=True)
class ReductionTraining:
    """Settings of a training.

    Args:
        n: dimension of the lattices.
        steps: number of batches.
        batch_size: number of bases in each batch.
        samples: operations sampled per column and basis.
        learning_rate: Adam's at the start; falls to zero along a cosine.
        initial_noise_scale: scale of the logistic noise on the coefficients at the start.
        final_noise_scale: scale of that noise at the end.
    """

    n: int
    steps: int = 600
    batch_size: int = 512
    samples: int = 16
    learning_rate: float = 5e-3
    initial_noise_scale: float = 0.25
    final_noise_scale: float = 0.12


def random_bases(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Scrambled bases of random lattices: Gaussian vectors, their lengths varied by factors of ten.

    Args:
        count: number of bases.
        n: dimension.
        generator: random number generator.
    """
    basis = torch.randn(count, n, n, dtype=torch.float64, generator=generator)
    log_sigma = 2 * torch.rand(count, 1, 1, dtype=torch.float64, generator=generator)
    basis = basis * (log_sigma * torch.randn(count, 1, n, dtype=torch.float64, generator=generator)).exp()
    return scramble(basis, generator)


def scramble(basis: Float[Tensor, "count d n"], generator: torch.Generator) -> Float[Tensor, "count d n"]:
    """Another basis of each lattice, a random product of elementary column operations away.

    Args:
        basis: vectors as columns.
        generator: random number generator.
    """
    count, d, n = basis.shape
    for _ in range(_SCRAMBLES_PER_DIMENSION * n):
        target, source = torch.rand(count, n, generator=generator).topk(2).indices.unbind(-1)
        times = torch.randint(-2, 3, (count, 1, 1), generator=generator)
        rows = torch.arange(count)
        added = basis[rows, :, source][..., None] * times
        basis = basis.scatter_add(2, target[:, None, None].expand(count, d, 1), added)
    return basis


def train(network: ReductionNetwork, training: ReductionTraining, generator: torch.Generator) -> Iterator[float]:
    """Train a network in place.

    Args:
        network: starting point of the training.
        training: dimension and settings.
        generator: random number generator.

    Yields:
        After each batch, the expected gain: the mean decrease of log |b|^2 by a sampled operation.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    reducer = NeuralReducer(network)
    for step in range(training.steps):
        progress = step / training.steps
        noise_scale = (
            training.initial_noise_scale + (training.final_noise_scale - training.initial_noise_scale) * progress
        )
        bases = Bases.from_basis(random_bases(training.batch_size, training.n, generator))
        expected_gain = 0.0
        for rollout_step in range(_ROLLOUT_STEPS):
            bases, _ = descend(bases, rounded_operations)
            loss, mean_gain = _loss(network, bases, noise_scale, training.samples, generator)
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
            if torch.isfinite(norm):  # rarely, a basis is singular in float64
                optimiser.step()
                expected_gain += float(mean_gain) / _ROLLOUT_STEPS
            if rollout_step + 1 < _ROLLOUT_STEPS:
                with torch.no_grad():
                    bases, has_changed = descend(bases, reducer.learnt_operations, max_operations=1)
                bases = bases[has_changed] if has_changed.any() else bases
        schedule.step()
        yield expected_gain


def _loss(
    network: ReductionNetwork, bases: Bases, noise_scale: float, samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Surrogate loss whose gradient is the score-function estimate, and the mean gain.

    A sampled coefficient is the network's plus logistic noise, rounded. The baseline of a sample is the mean gain of
    the other samples.
    """
    rounded, correction = network(bases)
    n, batch = correction.shape[1:]
    uniform = torch.rand(samples, n, n, batch, generator=generator).clamp(1e-6, 1 - 1e-6)
    sampled = (correction + noise_scale * torch.logit(uniform)).detach().round()
    off_diagonal = (1 - torch.eye(n))[..., None]
    log_p = (log_probability(sampled, correction, noise_scale) * off_diagonal).sum(1)
    gains = [ColumnOperations.evaluate(bases, rounded + (one * off_diagonal).double()).gains for one in sampled]
    applied_gains = torch.stack(gains).clamp(min=0).float()
    baseline = (applied_gains.sum(0) - applied_gains) / (samples - 1)
    return -((applied_gains - baseline) * log_p).mean(), applied_gains.mean()


def log_probability(
    integers: Float[Tensor, "samples *shape"], centre: Float[Tensor, "*shape"], noise_scale: float
) -> Float[Tensor, "samples *shape"]:
    """Log probability of integers that arise where logistic noise about a centre is rounded.

    Args:
        integers: rounded numbers.
        centre: location of the logistic distribution.
        noise_scale: scale of the logistic distribution.
    """
    low, high = (integers - 0.5 - centre) / noise_scale, (integers + 0.5 - centre) / noise_scale
    # sigmoid(high) - sigmoid(low), without loss of digits on either side.
    return (
        torch.nn.functional.logsigmoid(high)
        + torch.nn.functional.logsigmoid(-low)
        + torch.log1p(-torch.exp(low - high))
    )


def held_out_defects(network: ReductionNetwork, n: int, seed: int) -> dict[str, float]:
    """Mean log orthogonality defect of held-out random lattices: unreduced, by the network, by rounding, by LLL."""
    basis = random_bases(_N_HELD_OUT, n, stream_generator(seed, Stream.LATTICES, 1))
    reducers: dict[str, LatticeReducer] = {
        "neural": NeuralReducer(network),
        "rounding only": NeuralReducer(None),
        "LLL (0.99)": Lll(),
    }
    reduced = {name: transform_basis(basis, reducer(basis)) for name, reducer in reducers.items()}
    bases = {"unreduced": basis} | reduced
    return {name: float(log_orthogonality_defect(vectors).mean()) for name, vectors in bases.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a network for one dimension, write its weights, and compare it with rounding and LLL.

    Args:
        arguments: command line without the name of the program; None for that of the process.

    Raises:
        OutputError: the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cryoeq.lattice.train_neural_reducer",
        description="Train the network of cryoeq lattice reduce --reducer neural for one dimension.",
    )
    parser.add_argument("n", type=int, choices=range(2, 17), metavar="N", help="dimension of the lattices, 2 to 16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file of the weights")
    parser.add_argument("--steps", type=int, default=ReductionTraining.steps, help="number of batches of 512 lattices")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args(arguments)
    generator = stream_generator(options.seed, Stream.LATTICES)
    network = ReductionNetwork(_WIDTH, _N_LAYERS, generator)
    training = ReductionTraining(options.n, steps=options.steps)
    start_s = time.process_time()
    for step, expected_gain in enumerate(train(network, training, generator), 1):
        if step % _REPORT_EVERY == 0:
            print(f"{step} of {options.steps} batches, expected gain {expected_gain:.3g}")  # noqa: T201
    cpu_s = time.process_time() - start_s
    save_checkpoint(options.output, network_checkpoint(network))
    print(f"{options.output}: {cpu_s:.0f} s of CPU time; mean log defect of {_N_HELD_OUT} lattices:")  # noqa: T201
    for name, defect in held_out_defects(network, options.n, options.seed).items():
        print(f"  {name:<14}{defect:.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
