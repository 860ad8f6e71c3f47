"""The finished steps of a search, kept in the run folder so that a run which was stopped need not repeat them."""

import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from cryoeq.domain.events import Event, Note
from cryoeq.domain.processes import any_process, is_first
from cryoeq.errors import CheckpointError
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.pipelines.interruption import uninterrupted
from cryoeq.training.growth import GrowthState

Step = Generator[Event, None, GrowthState]
Keep = Callable[[str, Step], Step]

_FOLDER = "checkpoints"


def run_anew(name: str, step: Step) -> Step:
    """A step that is not kept."""
    del name
    return step


@dataclass(frozen=True)
class KeptSteps:
    """States after the steps that are done, one file each, written by the first process of a job.

    Every step draws its random numbers from the seed and the iteration, so what follows is the same whether a state was
    computed or read.

    Args:
        folder: for the files; made with the first.
        count: particles of the run.
        device: where states go.
        resume: read what is there; else each step is run, whatever is there.
    """

    folder: Path
    count: int
    device: torch.device
    resume: bool

    @classmethod
    def of_run(cls, run: RunFolder, count: int, device: torch.device, *, resume: bool) -> "KeptSteps":
        """Those of a run folder."""
        return cls(run.path(_FOLDER), count, device, resume)

    def keep(self, name: str, step: Step) -> Step:
        """The state after a step: as it was kept, else by running it.

        Args:
            name: of the step, the same in every run.
            step: runs it.

        Raises:
            CheckpointError: the file is damaged, or of other particles.
        """
        path = self.folder / f"{name}.pt"
        if any_process(is_first() and self.resume and path.is_file()):
            yield Note(f"Resumed after the step {name!r}.")
            return self._unpacked(load_checkpoint(path, self.device), path)
        state = yield from step
        if not is_first():
            return state
        with uninterrupted():
            self.folder.mkdir(exist_ok=True)
            save_checkpoint(path, {"count": self.count, **_packed(state)})
        return state

    def _unpacked(self, packed: dict[str, Any], path: Path) -> GrowthState:
        if packed.keys() != {"count", *(field.name for field in fields(GrowthState))}:
            raise CheckpointError(f"{path} does not hold a step of a search", "", "Delete it and go on with --resume")
        if (count := packed.pop("count")) != self.count:
            raise CheckpointError(
                f"{path} is of {count} particles, there are {self.count} now",
                "a run goes on with the particles it began with",
                "Give the original star file, or start a new run in another folder",
            )
        if packed["sums"] is not None:
            first, second = (WienerBackprojection(*part) for part in packed["sums"])
            packed["sums"] = (first, second)
        return GrowthState(**packed)

    def clear(self) -> None:
        """Remove the files of a run that is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(state: GrowthState) -> dict[str, Any]:
    packed = {field.name: getattr(state, field.name) for field in fields(state)}
    if state.sums is not None:
        packed["sums"] = tuple((part.box_size_px, part.padding, part.sums) for part in state.sums)
    return packed
