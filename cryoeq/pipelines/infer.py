"""``cryoeq infer``: poses of new particles by the encoder of a run."""

from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from cryoeq.config.infer import InferConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.domain.events import Event, Note
from cryoeq.errors import CheckpointError, ConfigError, OutputError, ParticleFileError
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.cryosparc import CS_SUFFIX
from cryoeq.io.particles import ParticleStack, read_particles
from cryoeq.io.text import read_json
from cryoeq.pipelines.class_choice import metrics_of_table
from cryoeq.pipelines.infer_views import infer_by_views
from cryoeq.pipelines.learn_views import FinishedRun, views_of_run
from cryoeq.pipelines.reconstruct.hybrid_views import ENCODER_FILE
from cryoeq.runtime.device import choose_device
from cryoeq.training.views.stored_views import KIND, StoredViews

_LEARN = "Move it away: an encoder is then learnt from the run's half maps"
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
    stored = yield from _encoder(config, device)
    stack = read_particles(
        config.particles, angpix=config.angpix, datadir=config.datadir, ignore_ctf=not stored.has_ctf
    )
    dataset = _open(config, stack, stored)
    yield from (Note(note, "warning" if note in dataset.warnings else "info") for note in dataset.notes)
    yield from infer_by_views(config, stack, dataset, stored, device)


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


def _encoder(config: InferConfig, device: torch.device) -> Generator[Event, None, StoredViews]:
    """The encoders of a run; learnt now where a finished run has none.

    Raises:
        ConfigError: those that would be learnt cannot run in the precision.
    """
    run = config.run
    if not run.is_dir() or (run / ENCODER_FILE).is_file():
        return load_views(run, device)
    finished = FinishedRun.open(run)
    if config.precision != "fp32" and finished.config.hybrid.posterior == "slices":
        raise ConfigError(
            f"--precision {config.precision}: {run} has no encoder, and one learnt now compares slices, in fp32",
            "other precisions are for networks (a run with --set hybrid.posterior=network)",
            "Leave --precision out",
        )
    return (yield from views_of_run(finished, device))


def load_views(
    run: Path,
    device: torch.device,
    *,
    missing: str = "Run `cryoeq reconstruct ... --pose-inference hybrid` first",
    older: str = _LEARN,
) -> StoredViews:
    """The encoders of a run, of which its file holds what they were trained to.

    Args:
        run: run folder, or the file itself.
        device: compute device.
        missing: what to do where there is no file.
        older: what to do where there is one of another version.

    Raises:
        CheckpointError: there is no such file, it is damaged, or of another version.
    """
    path = run / ENCODER_FILE if run.is_dir() else run
    if not path.is_file() and (n_classes := metrics_of_table(run / "run_data.star").n_classes) > 1:
        raise CheckpointError(
            f"{run} is a run of {n_classes} classes, which left no encoder",
            "the encoder of a hybrid reconstruction of one structure is needed",
            f"Select a class (cryoeq select {run} --class 1 -o class1.star) and reconstruct it with --pose-inference "
            "hybrid",
        )
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist",
            "the encoder of a hybrid reconstruction is needed",
            missing,
        )
    state = load_checkpoint(path, device)
    if state.get("kind") != KIND:
        raise CheckpointError(
            f"{path} holds no encoder of views",
            "the encoder.pt of a hybrid reconstruction of this version is needed",
            older,
        )
    try:
        return StoredViews.from_state(state, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold an encoder of this version ({type(error).__name__}: {error})",
            "the encoder.pt of a hybrid reconstruction is needed",
            older,
        ) from error


def _open(config: InferConfig, stack: ParticleStack, stored: StoredViews) -> ParticleDataset:
    table = stack.table
    side_angstrom = table.box_size_px * table.pixel_size_angstrom
    trained_side_angstrom = stored.box_size_px * stored.pixel_size_angstrom
    if abs(side_angstrom / trained_side_angstrom - 1) > _SAME_SIZE or table.box_size_px < stored.box_size_px:
        raise ParticleFileError(
            f"{config.particles}: images of {table.box_size_px} px, {table.pixel_size_angstrom:g} Å each, "
            f"{side_angstrom:.0f} Å across",
            f"the encoder was trained on images {trained_side_angstrom:.0f} Å across; "
            f"at least {stored.box_size_px} px are needed",
            "Extract the particles with that box, and check --angpix",
        )
    sign = CONTRAST_SIGNS[config.contrast]
    return ParticleDataset.open(
        stack,
        working_box_px=stored.box_size_px,
        sign=sign,
        cache_bytes=0,
        particle_diameter_angstrom=stored.particle_diameter_angstrom,
    )
