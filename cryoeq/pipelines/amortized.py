"""Poses by an encoder trained together with the map, its checkpoints, and how a run goes on from one."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.halfsets import split_half_sets
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.processes import any_process, is_first, process_count
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.domain.volume import Volume
from cryoeq.errors import CheckpointError, DivergedError, LostProcessError, ParticleFileError, Terminated
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import ParticleStack
from cryoeq.io.star import decimals, write_star
from cryoeq.io.text import read_json
from cryoeq.outputs.reconstruction_plots import plot_training
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.batch_size import choose_batch_size
from cryoeq.pipelines.build import build_dataset, working_box
from cryoeq.pipelines.build_training import build_plane, build_settings, build_state, tell_degrees
from cryoeq.pipelines.compiling import compile_if_possible
from cryoeq.pipelines.device import threads
from cryoeq.pipelines.interruption import uninterrupted
from cryoeq.pipelines.posed import PosedParticles
from cryoeq.training.assignment import Assignment, assign_poses
from cryoeq.training.loop import fit
from cryoeq.training.state import TrainingState

_CHECKPOINT = "checkpoint.pt"
_SINGLE_THREADED_PX = 32
# Settings that may differ between a run and its continuation: they change where and how often things are done, not
# what.
_FREE = (
    "output", "device", "threads", "particles", "input.datadir", "input.scratch_dir", "input.mask",
    "input.reference", "training.checkpoint_seconds",
)  # fmt: skip


def infer_by_encoder(
    config: ReconstructConfig,
    stack: ParticleStack,
    run: RunFolder,
    device: torch.device,
    checkpoint: dict[str, Any] | None,
) -> Generator[Event, None, PosedParticles]:
    """Train encoder and decoder on the images, then pose every particle by one forward pass."""
    dataset = build_dataset(config, stack, working_box(config, stack))
    plane = build_plane(dataset, device)
    state = build_state(config, dataset, plane)
    state.batch_size = choose_batch_size(config, state, dataset, plane, checkpoint)
    training = build_settings(config, dataset, state.batch_size)
    yield from compile_if_possible(state.encoder, is_wanted=config.encoder.compiled)
    yield Note(
        f"Poses are inferred at {dataset.box_size_px} px, {dataset.pixel_size_angstrom:.3g} Angstrom, "
        f"with a {config.encoder.group} encoder of {config.encoder.heads} heads and a {config.decoder.kind} decoder, "
        f"in {training.schedule.total_steps} steps of {training.batch_size} images."
    )
    if checkpoint is not None:
        state.restore(checkpoint)
        yield Note(f"Resumed at step {state.step}.")
    # Small boxes make small tensors, on which two threads wait for each other more than they compute.
    with threads(1 if dataset.box_size_px <= _SINGLE_THREADED_PX else None):
        try:
            yield from _train(state, fit(state, dataset, plane, training), config, run)
        except DivergedError as error:
            if is_first():
                write_star(run.path("diverged.star"), stack.star.rows(error.rows))
            yield Note("The particles of the step that failed are in diverged.star.", "warning")
            raise
    assignment = None
    for event in assign_poses(
        state, dataset, plane, batch_size=4 * training.batch_size,
        is_symmetric=training.is_symmetric, centred=training.shift_sigma_px == 0,
    ):  # fmt: skip
        if isinstance(event, Assignment):
            assignment = event
        else:
            yield event
    if assignment is None:
        raise ParticleFileError("the stack holds no particle")
    if is_first():
        plot_training(run.path("training.png"), state.history)
        decoded = Volume(state.decoder.to_map().cpu() / state.data_scale, dataset.pixel_size_angstrom)
        write_map(run.path("decoder_class001.mrc"), decoded)
    yield from tell_degrees(state.encoder)
    yield Note(
        "The hand of the map cannot be told from projections: its mirror image explains the particles equally well."
    )
    yield Note(
        "Both half maps use poses from one encoder that saw all particles: their FSC flatters, it is no gold standard.",
        "warning",
    )
    half_set = split_half_sets(len(dataset), stream_generator(config.seed, Stream.HALF_SETS))
    columns = {"rlnMaxValueProbDistribution": decimals(assignment.confidence.numpy())}
    return PosedParticles(assignment.poses, half_set, columns, {"explained_variance": assignment.explained})


def _train(
    state: TrainingState, events: Iterator[Progress | Note], config: ReconstructConfig, run: RunFolder
) -> Iterator[Progress | Note]:
    """Run the training, a checkpoint now and then, at the end, and when a signal stops it."""
    saved_s = time.monotonic()
    try:
        for event in _together(events):
            yield event
            if time.monotonic() - saved_s > config.training.checkpoint_seconds:
                _save(state, config, run)
                saved_s = time.monotonic()
    except (KeyboardInterrupt, Terminated, DivergedError, ParticleFileError, LostProcessError):
        # Signals arrive between two steps only, where the state is consistent; so it is after a step that failed.
        _save(state, config, run)
        raise
    _save(state, config, run)


def _together(events: Iterator[Progress | Note]) -> Iterator[Progress | Note]:
    """The steps, between which alone signals arrive; one to any process stops all of them after the same step."""
    if process_count() == 1:
        while True:
            with uninterrupted():
                event = next(events, None)
            if event is None:
                return
            yield event
    with uninterrupted() as is_waiting:
        for event in events:
            yield event
            if any_process(is_waiting()):
                break
        else:
            return
    raise Terminated("a signal to another process")  # one that got it itself was stopped by it


def _save(state: TrainingState, config: ReconstructConfig, run: RunFolder) -> None:
    if not is_first() or not state.is_finite:  # the last good state stays; the next step will say what is wrong
        return
    with uninterrupted():
        save_checkpoint(run.path(_CHECKPOINT), {"settings": _binding(config), "state": state.to_checkpoint()})


def find_checkpoint(config: ReconstructConfig, count: int, device: torch.device) -> dict[str, Any] | None:
    """The state to go on from, None before the first checkpoint; a run that cannot be resumed is left as it is."""
    record, path = config.output / "job.json", config.output / _CHECKPOINT
    if record.is_file():
        _check_binding(_flat(_recorded_settings(record)), config, record)
    if not path.is_file():
        return None
    checkpoint = load_checkpoint(path, device)
    if not {"settings", "state"} <= checkpoint.keys():
        raise CheckpointError(f"{path} does not hold the state of a reconstruction", "", "Start a new run")
    _check_binding(checkpoint["settings"], config, path)
    state: dict[str, Any] = checkpoint["state"]
    if len(state["rotations"]) != count:
        raise CheckpointError(
            f"{path} is of {len(state['rotations'])} particles, {config.particles} holds {count}",
            "a run goes on with the particles it began with",
            "Give the original star file, or start a new run in another folder",
        )
    return state


def _recorded_settings(record: Path) -> dict[str, object]:
    try:
        settings = read_json(record)["settings"]
    except (ValueError, KeyError, TypeError):  # not JSON, or the job.json of another program
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{record} is not the record of a run of cryoeq", "", "Choose another folder with -o")
    return settings


def _check_binding(then: Mapping[str, object], config: ReconstructConfig, path: Path) -> None:
    now = _binding(config)
    for key in sorted(now.keys() | then.keys() - set(_FREE)):
        if now.get(key) != then.get(key):
            raise CheckpointError(
                f"{path}: {key} was {then.get(key)}, and is now {now.get(key)}",
                "a run goes on with the settings it began with",
                "Repeat the original command (command.txt) with --resume, or start a new run in another folder",
            )


def _binding(config: ReconstructConfig) -> dict[str, object]:
    """Settings that a continuation must share, keys dotted."""
    return {key: value for key, value in _flat(config.model_dump(mode="json")).items() if key not in _FREE}


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return flat
