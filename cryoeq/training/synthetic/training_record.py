"""Record of an encoder's last training stage: enough to simulate its projections again, and others like them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.ctf import ctf_features, matched_filter
from cryoeq.physics.projection import prepare_slices
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.synthetic.pose_estimator import PoseEstimator
from cryoeq.training.synthetic.projections import ProjectionSimulator, SyntheticProjections, choose_offsets


@dataclass(frozen=True)
class TrainingRecord:
    """A training stage on projections of one map, all with the noise of the particles, none used twice.

    Args:
        volume: map of the projections.
        sigma: standard deviation of the noise per coefficient.
        searched: particles whose CTFs were used, in the order in which they are drawn.
        shift_sigma_px: standard deviation of the shifts.
        seed: random seed of the run.
        stage: number of the training stage.
        steps: number of optimizer steps.
        batch_size: projections per step; where particles are shifted each was used at its nearest offset and another.
    """

    volume: Float[Tensor, "n n n"]
    sigma: Float[Tensor, " points"]
    searched: Int[Tensor, " searched"]
    shift_sigma_px: float
    seed: int
    stage: int
    steps: int
    batch_size: int

    @property
    def count(self) -> int:
        """Number of training projections."""
        return self.steps * self.batch_size

    def simulator(self, estimator: PoseEstimator, ctf: CtfParameters | None) -> ProjectionSimulator:
        """Simulates the projections of the stage.

        Args:
            estimator: trained encoder with its preprocessing.
            ctf: CTF parameters of all particles; None without a CTF.
        """
        plane = HalfPlane.up_to(estimator.box_size_px, estimator.radius, self.volume.device)
        squared = torch.ones(len(self.searched), len(plane), device=self.volume.device)
        features = None
        if ctf is not None:
            used = ctf[self.searched.cpu()].to(self.volume.device)
            squared = matched_filter(used, plane.frequencies_per_angstrom(estimator.pixel_size_angstrom))[1]
            features = ctf_features(used)
        padded, encoder_input = prepare_slices(self.volume), estimator.encoder_input
        return ProjectionSimulator(padded, plane, squared, self.sigma, encoder_input, self.shift_sigma_px, features)

    def training_projections(self, simulator: ProjectionSimulator) -> Iterator[SyntheticProjections]:
        """The projections of the stage, batch by batch."""
        generator = stream_generator(self.seed, Stream.SYNTHETIC_PROJECTIONS, self.stage)
        for _ in range(self.steps):
            projections = simulator.simulate(self.batch_size, generator)
            choose_offsets(simulator.encoder_input, projections.shifts_px, generator)  # the training drew these too
            yield projections

    def held_out_projections(self, simulator: ProjectionSimulator, count: int) -> Iterator[SyntheticProjections]:
        """Others of the same distribution, on which no stage of the run was trained.

        Args:
            simulator: source of the stage's projections.
            count: number of projections in all.
        """
        generator = stream_generator(self.seed, Stream.SYNTHETIC_PROJECTIONS, self.stage + 1)
        sizes = [self.batch_size] * (count // self.batch_size) + [count % self.batch_size]
        return (simulator.simulate(size, generator) for size in sizes if size > 0)

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        state = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in asdict(self).items()}
        return state | {"stage": int(self.stage)}  # a checkpoint holds plain numbers, no enumerations

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], device: torch.device) -> "TrainingRecord | None":
        """The record in ``encoder.pt``, on a device; None where there is none."""
        state = checkpoint.get("training", checkpoint.get("course"))  # "course" in version 0.1
        if state is None:
            return None
        moved: dict[str, Any] = {
            {"course": "stage"}.get(key, key): value.to(device) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        return cls(**moved)
