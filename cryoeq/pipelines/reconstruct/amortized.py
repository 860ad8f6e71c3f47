"""Amortized inference: a pose encoder and a decoder of the map, trained end to end."""

import time
from collections.abc import Generator
from typing import Any

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError, LostProcessError, ParticleFileError, Terminated
from cryoeq.io.mrc import write_map
from cryoeq.io.star import StarTable, write_star
from cryoeq.outputs.reconstruction_plots import plot_training
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.batch_size import choose_batch_size
from cryoeq.pipelines.reconstruct.build_autoencoder import (
    build_plane,
    build_settings,
    build_state,
    report_learnt_equivariance,
)
from cryoeq.pipelines.reconstruct.checkpoints import save_training_state
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.plan import plan_amortized
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.runtime.compiling import compile_if_possible
from cryoeq.runtime.device import torch_threads
from cryoeq.runtime.distributed import any_rank, is_main_process, world_size
from cryoeq.runtime.signals import deferred_signals
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.pose_assignment import infer_poses
from cryoeq.training.autoencoder.state import TrainingState

_SINGLE_THREADED_PX = 32


def infer_by_encoder(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    star: StarTable,
    run: RunFolder,
    device: torch.device,
    checkpoint: dict[str, Any] | None,
) -> Generator[Event, None, PosedParticles]:
    """Train encoder and decoder on the images, then pose every particle by one forward pass.

    Args:
        config: settings of the run.
        dataset: particles at the working box.
        star: table of the input file.
        run: run folder, for the decoder's map, plots and checkpoints.
        device: compute device.
        checkpoint: state of a training to continue; None starts a new one.
    """
    yield plan_amortized()
    plane = build_plane(dataset, device)
    state = build_state(config, dataset, plane)
    state.batch_size = choose_batch_size(config, state, dataset, plane, checkpoint)
    training = build_settings(config, dataset, state.batch_size)
    yield from compile_if_possible(state.encoder, is_requested=config.encoder.compiled)
    yield Note(
        f"Poses are inferred at {dataset.box_size_px} px, {dataset.pixel_size_angstrom:.3g} Å, "
        f"with a {config.encoder.group} encoder of {config.encoder.heads} heads and a {config.decoder.kind} decoder, "
        f"in {training.schedule.total_steps} steps of {training.batch_size} images."
    )
    if checkpoint is not None:
        state.restore(checkpoint)
        yield Note(f"Resumed at step {state.step}.")
    # On the small tensors of small boxes two threads wait for each other more than they compute.
    with torch_threads(1 if dataset.box_size_px <= _SINGLE_THREADED_PX else None):
        try:
            yield from _train(state, fit(state, dataset, plane, training), config, run)
        except DivergedError as error:
            if is_main_process():
                write_star(run.path("diverged.star"), star.rows(error.rows))
            yield Note("The particles of the diverged step are in diverged.star.", "warning")
            raise
    inferred = yield from infer_poses(
        state, dataset, plane, batch_size=4 * training.batch_size,
        is_symmetric=training.is_symmetric, centred=training.shift_sigma_px == 0,
    )  # fmt: skip
    if is_main_process():
        plot_training(run.path("training.png"), state.history)
        decoded = Volume(state.decoder.to_map().cpu() / state.data_scale, dataset.pixel_size_angstrom)
        write_map(run.path("decoder_class001.mrc"), decoded)
    yield from report_learnt_equivariance(state.encoder)
    yield Note(
        "The hand of the map cannot be told from projections: its mirror image explains the particles equally well."
    )
    yield Note(
        "Half-map FSC is over-optimistic: one encoder, trained on all particles, posed both half sets (not "
        "gold-standard).",
        "warning",
    )
    half_set = yield from split_particles(dataset, config.seed)
    metrics = ReconstructionMetrics(explained_variance=inferred.explained)
    return PosedParticles(inferred.poses, half_set, confidence=inferred.confidence, metrics=metrics)


def _train(
    state: TrainingState, training: Generator[Event, None, None], config: ReconstructConfig, run: RunFolder
) -> Generator[Event, None, None]:
    """Run the training, with a checkpoint periodically, at the end, and when a signal stops it."""
    saved_s = time.monotonic()
    try:
        for event in _stopping_together(training):
            yield event
            if time.monotonic() - saved_s > config.training.checkpoint_seconds:
                _save(state, config, run)
                saved_s = time.monotonic()
    except (KeyboardInterrupt, Terminated, DivergedError, ParticleFileError, LostProcessError):
        # Signals arrive between two steps only, where the state is consistent; so it is after a step that failed.
        _save(state, config, run)
        raise
    _save(state, config, run)


def _stopping_together(training: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Defer signals to the end of a step; a signal to one process stops all of them after the same step."""
    if world_size() == 1:
        while True:
            with deferred_signals():
                event = next(training, None)
            if event is None:
                return
            yield event
    with deferred_signals() as is_waiting:
        for event in training:
            yield event
            if any_rank(is_waiting()):
                break
        else:
            return
    raise Terminated("a signal to another process")  # one that got it itself was stopped by it


def _save(state: TrainingState, config: ReconstructConfig, run: RunFolder) -> None:
    if not is_main_process() or not state.is_finite:  # the last good state stays; the next step raises the error
        return
    save_training_state(run, config, state.to_checkpoint())
