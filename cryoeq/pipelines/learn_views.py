"""View encoders of a run that trained none: learnt from its half maps and particles, one for each class and half set.

Their heads are trained on synthetic projections alone: the poses that a finished run keeps are those against the mean
of both half maps, so that an encoder would learn of the other one. These poses calibrate, which is three numbers.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.pose import PoseSet
from cryoeq.errors import CheckpointError, CryoEqError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.io.labels import CLASS_NUMBER
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_half_set, star_poses
from cryoeq.io.star import StarTable, read_star
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.physics.backprojection import wiener_filter
from cryoeq.pipelines.reconstruct.build import build_refinement_settings, searched_box
from cryoeq.pipelines.reconstruct.hybrid_views import (
    ENCODER_FILE,
    network_settings,
    stored_views,
    training_settings,
    view_settings,
)
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.reconstruction.maximization import particle_mask
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.state import RefinementSettings
from cryoeq.training.views.stored_views import StoredClass, StoredViews, learn_half

_ADVICE = "Give the folder of a finished reconstruction with half maps, or an encoder.pt"
_MOST = 2000  # particles of a half set that are read: for their CTFs and noise, and for the calibration


@dataclass(frozen=True)
class FinishedRun:
    """A run to learn from.

    Args:
        folder: of the run.
        config: its settings.
        dataset: its particles, at the box where poses are inferred.
        star: its poses.
        symmetries: point group of each class.
    """

    folder: Path
    config: ReconstructConfig
    dataset: ParticleDataset
    star: StarTable
    symmetries: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "FinishedRun":
        """A run from its folder; the particles must be where they were.

        Raises:
            CheckpointError: the folder holds no finished run with half maps.
            ParticleFileError: the particles were moved or changed.
        """
        run = RunFolder(folder)
        if not (run.path("job.json").is_file() and run.path("run_data.star").is_file()):
            raise CheckpointError(f"{folder} holds neither an encoder nor a finished reconstruction", "", _ADVICE)
        job = read_reconstruction_job(run, _ADVICE)
        metrics = ReconstructionMetrics.from_json(job.get("results", {}))
        config, star = ReconstructConfig.model_validate(job["settings"]), read_star(run.path("run_data.star"))
        names = [map_names(number) for number in range(1, metrics.n_classes + 1)]
        if missing := [each.first_half for each in names if not run.path(each.first_half).is_file()]:
            raise CheckpointError(f"{folder} holds no {missing[0]}", "encoders are learnt from half maps", _ADVICE)
        stored = read_map(run.path(names[0].first_half)).box_size_px
        mode = config.pose_inference
        box = searched_box(config.input.working_box_px, mode if mode != "known" else "search", stored)
        dataset = open_particles(job, None, count=len(star), box_size_px=stored, max_box_px=box, star=star)[1]
        return cls(folder, config, dataset, star, _symmetries(config, metrics))

    def rows(self, number: int, half: int) -> Int[Tensor, " rows"]:
        """Particles of a class and half set, evenly from the whole table; those that are read.

        Args:
            number: of the class, from 1.
            half: 1 or 2.
        """
        half_set = star_half_set(self.star)
        if half_set is None:
            raise CheckpointError(f"{self.folder}: run_data.star has no half sets", "", _ADVICE)
        chosen = half_set == half
        if len(self.symmetries) > 1:
            chosen &= torch.from_numpy(self.star.floats(CLASS_NUMBER)) == number
        rows = chosen.nonzero().squeeze(1)
        some = torch.linspace(0, len(rows) - 1, min(_MOST, len(rows)), dtype=torch.float64).round().long()
        return rows[some]

    def half_maps(
        self, number: int, settings: RefinementSettings
    ) -> tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]:
        """Both half maps of a class, filtered by their correlation, in the box where poses are inferred.

        Args:
            number: of the class, from 1.
            settings: of the mask.
        """
        names, box = map_names(number), self.dataset.box_size_px
        halves = [read_map(self.folder / name).values.float() for name in (names.first_half, names.second_half)]
        ratio = signal_to_noise(fourier_shell_correlation(*halves))
        mask = particle_mask(box, settings, torch.device("cpu"))
        first, second = (ifft_map(crop_centred(fft_map(wiener_filter(half, ratio)), box, 3)) * mask for half in halves)
        return first, second


def views_of_run(run: FinishedRun, device: torch.device) -> Generator[Event, None, StoredViews]:
    """Learn the encoders of a finished run, and keep them in its folder where that can be written.

    Args:
        run: the run.
        device: where to compute.

    Raises:
        CheckpointError: half maps or half sets are missing.
    """
    folder, classes = run.folder, list[StoredClass]()
    yield Note(f"{folder} has no encoder: one is learnt from its half maps, and kept there for the next call.")
    poses = PoseSet.from_angstrom(star_poses(run.star), run.dataset.pixel_size_angstrom, run.dataset.box_size_px)
    for number, symmetry in enumerate(run.symmetries, 1):
        refinement = build_refinement_settings(run.config, run.dataset, symmetry)
        settings = view_settings(refinement, run.dataset.box_size_px)
        halves = []
        for half, volume in enumerate(run.half_maps(number, refinement), 1):
            rows = run.rows(number, half)
            particles = yield from load_transforms(run.dataset, device, rows)
            known = poses.rows(rows).each(lambda values: values.to(device))
            stored, _ = yield from learn_half(
                volume.to(device),
                particles,
                known,
                settings,
                training_settings(run.config),
                seed=run.config.seed,
                number=2 * number + half,
                learns_from_poses=False,
                network=network_settings(run.config, run.dataset.box_size_px),
            )
            halves.append(stored)
        classes.append(StoredClass((halves[0], halves[1]), settings))
    found = stored_views(run.config, run.dataset, tuple(classes))
    try:
        save_checkpoint(folder / ENCODER_FILE, found.to_state())
    except CryoEqError as error:
        yield Note(f"The encoder was not kept: {error}", "warning")
    return found


def _symmetries(config: ReconstructConfig, metrics: ReconstructionMetrics) -> tuple[str, ...]:
    if metrics.classes is None:
        return (config.search.symmetry,)
    return tuple(each.symmetry for each in metrics.classes)
