"""``cryoeq infer``: poses of new particles by the encoder of a run."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.infer import InferConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.prefetch import read_batches
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.pose import Poses
from cryoeq.errors import CheckpointError, ConfigError, OutputError, ParticleFileError
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.cryosparc import CS_SUFFIX
from cryoeq.io.particles import ParticleStack, read_particles, write_particle_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.class_choice import metrics_of_table
from cryoeq.pipelines.infer_views import infer_by_views
from cryoeq.pipelines.learn_views import views_of_run
from cryoeq.runtime.device import choose_device
from cryoeq.training.synthetic.pose_estimator import ENCODER_FILE, PoseEstimator
from cryoeq.training.views.stored_views import KIND, StoredViews

_SAMPLE = 512  # particles for the ranges of 8-bit activations
_SAME_SIZE = 0.01  # relative difference of two boxes in Angstrom that counts as none


def infer(config: InferConfig) -> Iterator[Event]:
    """Pose all particles of a star file, in its order; the images are never all in memory.

    Args:
        config: resolved settings of the command.

    Yields:
        Progress, notes on the input, one report.

    Raises:
        CheckpointError: there is no encoder, or not one of this version.
        ParticleFileError: the particles cannot be read, or their box is not that of the training.
        OutputError: the star file cannot be written, or it or what is written beside it is the input.
    """
    device = choose_device(config.device)
    _spare_the_input(config)
    estimator = yield from _encoder(config.run, device)
    stack = read_particles(
        config.particles, angpix=config.angpix, datadir=config.datadir, ignore_ctf=not estimator.has_ctf
    )
    dataset = _open(config, stack, estimator)
    yield from (Note(note, "warning" if note in dataset.warnings else "info") for note in dataset.notes)
    if isinstance(estimator, StoredViews):
        yield from infer_by_views(config, stack, dataset, estimator, device)
        return
    estimator = _in_precision(config, estimator, dataset, device)
    start_s = time.monotonic()
    poses, probability = yield from pose_all(estimator, dataset, config.batch_size, device)
    yield from (Note(text, "warning") for text in dataset.new_warnings())
    rate = len(dataset) / (time.monotonic() - start_s)
    write_particle_star(config.output, stack.star, poses, confidence=probability)
    yield Report(
        f"{len(dataset)} particles posed",
        {
            "poses": str(config.output),
            "precision": config.precision,
            "particles per second": f"{rate:.0f}",
            "median probability of the pose": f"{float(probability.median()):.2f}",
        },
    )


def _spare_the_input(config: InferConfig) -> None:
    """Refuse names by which what is written beside the poses would take the place of particles or poses."""
    beside = [config.output.with_suffix(suffix) for suffix in (CS_SUFFIX, ".json", ".png")]
    for path in (config.output, *beside):
        if path.resolve() == config.particles.resolve():
            raise OutputError(
                f"-o {config.output}: {path} would be written, which is the input",
                "",
                "Choose another name: poses are written beside the input, never over it",
            )
    if config.output in beside:
        raise OutputError(
            f"-o {config.output}: a file of this name is written beside the poses", "Expected a star file",
            f"Name it {config.output.with_suffix('.star').name}",
        )  # fmt: skip
    record = config.output.with_suffix(".json")
    present = next((path for path in beside if path.exists()), None)
    if present is not None and not _is_record(record):
        raise OutputError(
            f"-o {config.output}: {present} would be replaced, and is no result of an earlier cryoeq infer", "",
            "Choose another name, or move that file away",
        )  # fmt: skip


def _is_record(path: Path) -> bool:
    """Whether a file is what this command writes beside its poses."""
    try:
        return "share_searched_again" in read_json(path)
    except (OSError, ValueError, TypeError):
        return False


def _encoder(run: Path, device: torch.device) -> Generator[Event, None, PoseEstimator | StoredViews]:
    """The encoder of a run, of either kind; learnt now where a finished run has none."""
    if run.is_dir() and not (run / ENCODER_FILE).is_file():
        return (yield from views_of_run(run, device))
    state = encoder_state(run, device)
    if state.get("kind") == KIND:
        return _views_of(state, run, device)
    return load_encoder(run, device)


def encoder_state(run: Path, device: torch.device) -> dict[str, Any]:
    """What the file of a run's encoder holds.

    Args:
        run: run folder, or the file itself.
        device: compute device.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    path = run / ENCODER_FILE if run.is_dir() else run
    if not path.is_file() and (n_classes := metrics_of_table(run / "run_data.star").n_classes) > 1:
        raise CheckpointError(
            f"{run} is a run of {n_classes} classes, which has no regression encoder",
            "the encoder of a hybrid reconstruction of one structure is needed",
            f"Select a class (cryoeq select {run} --class 1 -o class1.star) and reconstruct it with --pose-inference "
            "hybrid",
        )
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist",
            "the encoder of a hybrid reconstruction is needed",
            "Run `cryoeq reconstruct ... --pose-inference hybrid` first",
        )
    return load_checkpoint(path, device)


def load_encoder(run: Path, device: torch.device) -> PoseEstimator:
    """The trained regression encoder of a run, with its preprocessing.

    Args:
        run: run folder, or the file itself.
        device: compute device.

    Raises:
        CheckpointError: there is no encoder, not a regression encoder, or not one of this version.
    """
    state = encoder_state(run, device)
    if state.get("kind") == KIND:
        raise CheckpointError(
            f"{run} holds an encoder of views",
            "a regression encoder is needed",
            "Run the reconstruction again with --set hybrid.head=regression",
        )
    try:
        return PoseEstimator.from_state(state, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _of_another_version(run, error) from error


def _views_of(state: Mapping[str, Any], run: Path, device: torch.device) -> StoredViews:
    try:
        return StoredViews.from_state(state, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _of_another_version(run, error) from error


def _of_another_version(run: Path, error: Exception) -> CheckpointError:
    path = run / ENCODER_FILE if run.is_dir() else run
    return CheckpointError(
        f"{path} does not hold an encoder of this version ({type(error).__name__}: {error})",
        "the encoder.pt of a hybrid reconstruction is needed",
        "Run the reconstruction again with this version",
    )


def pose_all(
    estimator: PoseEstimator, dataset: ParticleDataset, batch_size: int, device: torch.device
) -> Generator[Event, None, tuple[Poses, torch.Tensor]]:
    """Pose all particles batch by batch, with prefetch; poses, and the probability of each.

    Args:
        estimator: trained encoder with its preprocessing.
        dataset: particles at the box of the training.
        batch_size: number of particles in a forward pass.
        device: device of the encoder.
    """
    rotations, shifts, probabilities, done = [], [], [], 0
    for batch in read_batches(dataset, batch_size, device):
        poses, probability = estimator.pose(batch)
        rotations.append(poses.rotations.cpu())
        shifts.append(poses.shifts_angstrom.cpu())
        probabilities.append(probability.cpu())
        done += len(batch)
        yield Progress("encoder inference", done, len(dataset))
    return Poses(torch.cat(rotations), torch.cat(shifts)), torch.cat(probabilities)


def _in_precision(
    config: InferConfig, estimator: PoseEstimator, dataset: ParticleDataset, device: torch.device
) -> PoseEstimator:
    """The encoder in the precision of the settings; ranges of 8 bits are those of the first particles.

    Raises:
        ConfigError: this encoder cannot run in that precision, or not on that device.
    """
    if config.precision == "int8" and device.type != "cpu":
        raise ConfigError(
            f"--precision int8 on {device}", "its integer kernels are for the CPU", "Add --device cpu, or use bf16"
        )
    sample = dataset.batch(torch.arange(min(_SAMPLE, len(dataset)))).to(device)
    try:
        return estimator.in_precision(config.precision, sample)
    except ValueError as error:
        if config.precision == "fp32":
            return estimator  # its filters depend on the particle: it cannot be exported
        raise ConfigError(
            f"--precision {config.precision}: {error}", "a plain encoder is needed", "Use --precision fp32"
        ) from error


def _open(config: InferConfig, stack: ParticleStack, estimator: PoseEstimator | StoredViews) -> ParticleDataset:
    table = stack.table
    side_angstrom = table.box_size_px * table.pixel_size_angstrom
    trained_side_angstrom = estimator.box_size_px * estimator.pixel_size_angstrom
    if abs(side_angstrom / trained_side_angstrom - 1) > _SAME_SIZE or table.box_size_px < estimator.box_size_px:
        raise ParticleFileError(
            f"{config.particles}: images of {table.box_size_px} px, {table.pixel_size_angstrom:g} Å each, "
            f"{side_angstrom:.0f} Å across",
            f"the encoder was trained on images {trained_side_angstrom:.0f} Å across; "
            f"at least {estimator.box_size_px} px are needed",
            "Extract the particles with that box, and check --angpix",
        )
    sign = CONTRAST_SIGNS[config.contrast]
    return ParticleDataset.open(
        stack,
        working_box_px=estimator.box_size_px,
        sign=sign,
        cache_bytes=0,
        particle_diameter_angstrom=estimator.particle_diameter_angstrom,
    )
