"""``cryoeq lattice train``: how the weights that cryoeq ships were made."""

import time
from collections.abc import Iterator

import torch

from cryoeq.config.lattice import TrainConfig
from cryoeq.domain.events import Event, Progress, Report
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.lattice import LatticeReducer, Lll, log_orthogonality_defect, transform_basis
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.models.lattice_reducer import MoveNetwork, NeuralReducer, checkpoint_of, network_of
from cryoeq.training.lattice_reduction import ReductionTraining, random_bases, train

_HELD_OUT = 500
_KEPT_EVERY = 100  # batches: what a training that is stopped leaves


def train_reducer(config: TrainConfig) -> Iterator[Event]:
    """Train a reducer for one dimension, write it, and compare it with its twins on lattices that it has not seen.

    Args:
        config: the resolved settings.

    Yields:
        Progress, and one report.

    Raises:
        CheckpointError: the weights to begin from cannot be read.
        OutputError: the file cannot be written.
    """
    generator = stream_generator(config.seed, Stream.LATTICES)
    if config.start is None:
        network = MoveNetwork(config.width, config.rounds, generator)
    else:
        network = network_of(load_checkpoint(config.start, torch.device("cpu"))).train()
    started_s = time.process_time()
    training = ReductionTraining(config.n, steps=config.steps, learning_rate=config.learning_rate)
    for step, gain in enumerate(train(network, training, generator), 1):
        if step % _KEPT_EVERY == 0:
            save_checkpoint(config.output, checkpoint_of(network))
        yield Progress("training", step, config.steps, {"gain": gain})
    seconds = time.process_time() - started_s
    save_checkpoint(config.output, checkpoint_of(network))
    basis = random_bases(_HELD_OUT, config.n, stream_generator(config.seed, Stream.LATTICES, 1))
    reducers: dict[str, LatticeReducer] = {
        "neural": NeuralReducer(network),
        "rounding only": NeuralReducer(None),
        "LLL (0.99)": Lll(),
    }
    yield Report(
        f"Reducer of {config.n} dimensions in {config.output}: mean log defect of {_HELD_OUT} random lattices",
        {"as they come": f"{_mean_defect(basis):.4f}"}
        | {name: f"{_mean_defect(transform_basis(basis, reduce(basis))):.4f}" for name, reduce in reducers.items()}
        | {"CPU time": f"{seconds:.0f} s"},
    )


def _mean_defect(basis: torch.Tensor) -> float:
    return float(log_orthogonality_defect(basis).mean())
