"""``cryoeq lattice train`` and ``train-grid``: how the weights that cryoeq ships were made."""

import time
from collections.abc import Iterator

import torch

from cryoeq.config.lattice import GridTrainConfig, TrainConfig
from cryoeq.domain.events import Event, Progress, Report
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.lattice.joint_reducer import GridNetwork, NeuralGridReducer
from cryoeq.lattice.neural_reducer import MoveNetwork, NeuralReducer, checkpoint_of, load_reducer, network_of
from cryoeq.lattice.reduction import LatticeReducer, Lll, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import CarriedBases, GridReducer, basis_flips
from cryoeq.lattice.train_joint_reducer import GridTraining, random_grids, train_grid
from cryoeq.lattice.train_neural_reducer import ReductionTraining, random_bases, train
from cryoeq.runtime.random_streams import Stream, stream_generator

_HELD_OUT = 500
_GRIDS = 2  # of each kind
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
        network = network_of(load_checkpoint(config.start, torch.device("cpu")), MoveNetwork).train()
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
        {"as they come": f"{_log_defect(basis):.4f}"}
        | {name: f"{_log_defect(transform_basis(basis, reduce(basis))):.4f}" for name, reduce in reducers.items()}
        | {"CPU time": f"{seconds:.0f} s"},
    )


def train_grid_reducer(config: GridTrainConfig) -> Iterator[Event]:
    """Train the joint reducer, write it, and compare it with its twin on grids that it has not seen.

    Args:
        config: the resolved settings.

    Yields:
        Progress, and one report.

    Raises:
        OutputError: the file cannot be written.
    """
    generator = stream_generator(config.seed, Stream.LATTICES)
    network = GridNetwork(config.width, config.rounds, generator)
    started_s = time.process_time()
    singles: dict[int, LatticeReducer] = {n: load_reducer(n) for n in (2, 3)}
    for step, gain in enumerate(train_grid(network, GridTraining(steps=config.steps), singles, generator), 1):
        yield Progress("training", step, config.steps, {"gain": gain})
    seconds = time.process_time() - started_s
    save_checkpoint(config.output, checkpoint_of(network))
    held_out = stream_generator(config.seed, Stream.LATTICES, 1)
    grids = [*random_grids(_GRIDS, 8, 8, 2, held_out), *random_grids(_GRIDS, 1, 32, 3, held_out)]
    rows = {}
    for name in ("carried from tile to tile", "network"):
        flips, defects = [], []
        for grid in grids:
            single = singles[grid.shape[-1]]
            joint: GridReducer = NeuralGridReducer(network, single) if name == "network" else CarriedBases(single)
            reduced = transform_basis(grid, joint(grid))
            flips.append(basis_flips(reduced))
            defects.append(_log_defect(reduced))
        rows[name] = f"{sum(flips) / len(flips):.1%} flips, log defect {sum(defects) / len(defects):.4f}"
    title = f"Joint reducer in {config.output}: neighbours in other bases, mean log defect of {len(grids)} grids"
    yield Report(title, rows | {"CPU time": f"{seconds:.0f} s"})


def _log_defect(basis: torch.Tensor) -> float:
    return float(log_orthogonality_defect(basis).mean())
