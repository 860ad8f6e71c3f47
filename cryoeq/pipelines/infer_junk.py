"""Probability that new particles are junk, by the half maps of the run that poses them."""

from collections.abc import Generator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.junk_comparison import PosedRows
from cryoeq.io.mrc import read_map
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.junk import STAGE, judge_particles
from cryoeq.pipelines.reconstruction_run import read_reconstruction_job


def junk_of_new_particles(
    run: Path,
    dataset: ParticleDataset,
    poses: PoseSet,
    half_set: Int[Tensor, " particles"],
    class_index: Int[Tensor, " particles"],
    device: torch.device,
) -> Generator[Event, None, Float[Tensor, " particles"] | None]:
    """Probability that each particle is junk; None, with a note, where that cannot be told.

    Args:
        run: folder of the run, with its half maps; a file alone has none.
        dataset: the new particles, at the box where poses were inferred.
        poses: their poses, against the map of their half set.
        half_set: half set of each, 1 or 2.
        class_index: class of each, from 0.
        device: where to compute.
    """
    classes = int(class_index.max()) + 1 if len(class_index) else 1
    halves = _half_maps(run, classes)
    if halves is None:
        yield Note(f"Junk: no probabilities, since {run} is no folder with half maps.")
        return None
    job = read_reconstruction_job(RunFolder(run), "Give the folder of a run")
    config = ReconstructConfig.model_validate(job["settings"])
    yield Progress(STAGE, 0, 1)
    found = judge_particles(config, dataset, halves, PosedRows(poses, half_set, class_index), device)
    yield Progress(STAGE, 1, 1)
    if isinstance(found, str):
        yield Note(f"Junk: no probabilities, since {found}.", "warning")
        return None
    return found.probability.any_kind


def _half_maps(run: Path, classes: int) -> tuple[HalfMaps, ...] | None:
    """Unfiltered half maps of each class; None where one is missing."""
    found = []
    for number in range(1, classes + 1):
        names = map_names(number)
        first, second = run / names.first_half, run / names.second_half
        if not (first.is_file() and second.is_file()):
            return None
        found.append(HalfMaps(read_map(first), read_map(second)))
    return tuple(found)
