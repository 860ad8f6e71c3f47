"""What an encoder's last course was made of: enough to make each of its renderings again, and others like them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.ctf import ctf_condition, matched_filter
from cryoeq.physics.projection import prepare_slices
from cryoeq.training.rendering_lessons import Lessons, Renderings, choose_trials
from cryoeq.training.taught_encoder import TaughtEncoder


@dataclass(frozen=True)
class CourseRecord:
    """A course on renderings of one map, all with the noise of the particles, none seen twice.

    Args:
        volume: the map.
        sigma: standard deviation of the noise per coefficient.
        searched: particles that lent their CTFs, in the order in which they are drawn.
        shift_sigma_px: spread of the shifts.
        seed: of the run.
        course: number of the course.
        steps: of the optimizer.
        batch_size: renderings per step; where particles are shifted each was shown at its nearest trial shift and at
            another.
    """

    volume: Float[Tensor, "n n n"]
    sigma: Float[Tensor, " points"]
    searched: Int[Tensor, " searched"]
    shift_sigma_px: float
    seed: int
    course: int
    steps: int
    batch_size: int

    @property
    def count(self) -> int:
        """Renderings of the course."""
        return self.steps * self.batch_size

    def lessons(self, taught: TaughtEncoder, ctf: CtfParameters | None) -> Lessons:
        """What rendered them.

        Args:
            taught: the encoder that took the course.
            ctf: of all particles; None where they have none.
        """
        plane = HalfPlane.up_to(taught.box_size_px, taught.radius, self.volume.device)
        power = torch.ones(len(self.searched), len(plane), device=self.volume.device)
        condition = None
        if ctf is not None:
            lent = ctf[self.searched.cpu()].to(self.volume.device)
            power = matched_filter(lent, plane.frequencies_per_angstrom(taught.pixel_size_angstrom))[1]
            condition = ctf_condition(lent)
        padded = prepare_slices(self.volume)
        return Lessons(padded, plane, power, self.sigma, taught.view, self.shift_sigma_px, condition)

    def renderings(self, lessons: Lessons) -> Iterator[Renderings]:
        """Those of the course, batch by batch."""
        generator = stream_generator(self.seed, Stream.LESSONS, self.course)
        for _ in range(self.steps):
            rendering = lessons.render(self.batch_size, generator)
            choose_trials(lessons.view, rendering.shifts_px, generator)  # the course drew these too
            yield rendering

    def other_renderings(self, lessons: Lessons, count: int) -> Iterator[Renderings]:
        """As many as ``count`` of the same distribution that no course of the run has shown."""
        generator = stream_generator(self.seed, Stream.LESSONS, self.course + 1)
        sizes = [self.batch_size] * (count // self.batch_size) + [count % self.batch_size]
        return (lessons.render(size, generator) for size in sizes if size > 0)

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {key: value.cpu() if isinstance(value, Tensor) else value for key, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "CourseRecord":
        """What ``to_state`` gave, on a device."""
        moved: dict[str, Any] = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in state.items()
        }
        return cls(**moved)
