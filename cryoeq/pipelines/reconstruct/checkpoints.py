"""Checkpoints of a run: finished steps of a search, the state of a training, and whether they may be resumed."""

import re
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.loading import with_current_keys
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Event, Note
from cryoeq.domain.pose import PoseSet
from cryoeq.errors import CheckpointError, ConfigError
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.io.text import read_json
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.expectation import BestPoses
from cryoeq.reconstruction.state import (
    Checkpointer,
    ConsensusMap,
    HalfSetMaps,
    ParticlePoses,
    RefinementState,
    State,
    Step,
)
from cryoeq.runtime.distributed import any_rank, is_main_process
from cryoeq.runtime.signals import deferred_signals

_STEPS_FOLDER = "checkpoints"
_TRAINING_FILE = "checkpoint.pt"
_RESULTS = ("run_class001.mrc", "run_data.star")
# Settings that a continuation may change: they decide where and how often things are done, not what.
_FREE = (
    "output", "device", "threads", "particles", "input.datadir", "input.scratch_dir", "input.mask",
    "input.compare_to", "training.checkpoint_seconds",
)  # fmt: skip
_STATE = {
    "count", "is_consensus", "maps", "half_set", "rotations", "shifts_px", "confidence", "log_evidence", "fsc",
    "radius", "iteration", "sums",
}  # fmt: skip
_CLASSES = {"count", "classes", "probability", "best_rotations", "best_shifts_px", "best_log_likelihood"}
_DECISION = {"count", "decision"}
# Names of version 0.1, read for one version more.
_OLDER_NAMES = (
    (re.compile(r"initial_model_(\d+)"), r"start_\1"),
    (re.compile(r"consensus_(\d+)"), r"settled_\1"),
    (re.compile(r"half_sets"), "grown"),
    (re.compile(r"realigned"), "looked_again"),
    (re.compile(r"local"), "polished"),
    (re.compile(r"final"), "finished"),
)


@dataclass(frozen=True)
class Decision:
    """A number that a run settles once, as by the memory that was free, and that holds when the run is resumed.

    Args:
        value: the number.
    """

    value: float


def decide(checkpoint: Checkpointer, name: str, settle: Callable[[], float]) -> Generator[Event, None, float]:
    """A number that was settled before, or is now.

    Args:
        checkpoint: saves finished steps.
        name: name of the decision, the same in every run.
        settle: finds the number, where none was saved.
    """

    def step() -> Generator[Event, None, Decision]:
        yield from ()
        return Decision(settle())

    return (yield from checkpoint(name, step())).value


@dataclass(frozen=True)
class Checkpoints:
    """States after finished steps, one file each, written by the main process of a job.

    Every step draws its random numbers from the seed and the iteration, so what follows is the same whether a state was
    computed or read.

    Args:
        folder: folder of the files; made with the first.
        count: particles of the run.
        device: device of the states that are read.
        resume: whether saved steps are read; else each step is run.
    """

    folder: Path
    count: int
    device: torch.device
    resume: bool

    @classmethod
    def of_run(cls, run: RunFolder, count: int, device: torch.device, *, resume: bool) -> "Checkpoints":
        """Checkpoints of a run folder."""
        return cls(run.path(_STEPS_FOLDER), count, device, resume)

    def run(self, name: str, step: Step[State]) -> Step[State]:
        """The state after a step: from its checkpoint, else by running it.

        Args:
            name: name of the step, the same in every run.
            step: computation of the state, run where there is no checkpoint.

        Raises:
            CheckpointError: the file is damaged, or of other particles.
        """
        path = self._path(name)
        if any_rank(is_main_process() and self.resume and path.is_file()):
            restored = self._unpacked(load_checkpoint(path, self.device), path)
            if not isinstance(restored, Decision):
                yield Note(f"Resumed from checkpoint {name}.")
            return restored  # type: ignore[return-value]
        state = yield from step
        if not is_main_process():
            return state
        with deferred_signals():
            self.folder.mkdir(exist_ok=True)
            save_checkpoint(path, {"count": self.count, **_packed(state)})
        return state

    def has(self, name: str) -> bool:
        """Whether a finished step would be read.

        Args:
            name: of the step.
        """
        return self.resume and self._path(name).is_file()

    def clear(self) -> None:
        """Remove the files of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.pt"
        for pattern, older in _OLDER_NAMES:
            if self.resume and not path.is_file() and pattern.fullmatch(name):
                older_path = self.folder / f"{pattern.sub(older, name)}.pt"
                return older_path if older_path.is_file() else path
        return path

    def _unpacked(self, packed: dict[str, Any], path: Path) -> RefinementState | ClassesState | Decision:
        if packed.keys() == _DECISION:
            return Decision(packed["decision"])
        if packed.keys() == _CLASSES:
            maps = tuple(self._unpacked_map({"count": packed["count"], **each}, path) for each in packed["classes"])
            best = BestPoses(packed["best_rotations"], packed["best_shifts_px"], packed["best_log_likelihood"])
            return ClassesState(maps, maps[0].particles, packed["probability"], best)
        return self._unpacked_map(packed, path)

    def _unpacked_map(self, packed: dict[str, Any], path: Path) -> RefinementState:
        packed.setdefault("is_consensus", path.stem.startswith(("start_", "settled_", "finished")))  # version 0.1
        if packed.keys() != _STATE:
            raise CheckpointError(f"{path} does not hold a step of a search", "", "Delete it and resume with --resume")
        if (count := packed["count"]) != self.count:
            raise CheckpointError(
                f"{path} is of {count} particles, there are {self.count} now",
                "A run resumes with the particles that it started with",
                "Give the original star file, or start a new run in another folder",
            )
        first, second = packed["maps"]
        poses = PoseSet(packed["rotations"], packed["shifts_px"], first.shape[-1])
        sums = packed["sums"]
        return RefinementState(
            ConsensusMap(first) if packed["is_consensus"] else HalfSetMaps(first, second),
            packed["half_set"],
            ParticlePoses(poses, packed["confidence"], packed["log_evidence"]),
            packed["fsc"],
            packed["radius"],
            packed["iteration"],
            None if sums is None else (_unpacked_sums(*sums[0]), _unpacked_sums(*sums[1])),
        )


def _unpacked_sums(box_size_px: int, padding: int, sums: torch.Tensor) -> WienerBackprojection:
    """Sums over each half set, over all coefficients where version 0.1 wrote them."""
    is_full = sums.shape[-1] == padding * box_size_px
    return (WienerBackprojection.from_full if is_full else WienerBackprojection)(box_size_px, padding, sums)


def _packed(state: object) -> dict[str, Any]:
    if isinstance(state, Decision):
        return {"decision": state.value}
    if isinstance(state, ClassesState):
        return {
            "classes": [_packed(replace(each, particles=state.particles)) for each in state.maps],
            "probability": state.probability,
            "best_rotations": state.best.rotations,
            "best_shifts_px": state.best.shifts_px,
            "best_log_likelihood": state.best.log_likelihood,
        }
    if not isinstance(state, RefinementState):
        raise TypeError(f"{type(state).__name__} is no state of a refinement")
    sums = state.sums and tuple((half.box_size_px, half.padding, half.sums) for half in state.sums)
    return {
        "is_consensus": isinstance(state.reference, ConsensusMap),
        "maps": (state.reference.of_half(1), state.reference.of_half(2)),
        "half_set": state.half_set,
        "rotations": state.poses.rotations,
        "shifts_px": state.poses.shifts_px,
        "confidence": state.particles.confidence,
        "log_evidence": state.particles.log_evidence,
        "fsc": state.fsc,
        "radius": state.radius,
        "iteration": state.iteration,
        "sums": sums,
    }


def require_same_settings(config: ReconstructConfig) -> None:
    """Refuse to resume a run with other settings than it started with.

    Args:
        config: settings of the resumed run; its output is the run folder.

    Raises:
        ConfigError: ``job.json`` holds others.
        CheckpointError: it is no record of a run.
    """
    record = config.output / "job.json"
    if record.is_file():
        _require_same(_recorded_settings(record), config, record)


def is_done(folder: Path) -> bool:
    """Whether the run in a folder has ended, with its map and its poses in place."""
    if not all((folder / name).is_file() for name in ("job.json", *_RESULTS)):
        return False
    return RunFolder(folder).job().get("status") == "done"


def load_training_state(config: ReconstructConfig, count: int, device: torch.device) -> dict[str, Any] | None:
    """State of the training to resume; None before the first checkpoint.

    Args:
        config: settings of the resumed run.
        count: particles of the run.
        device: device of the tensors.

    Raises:
        CheckpointError: the file is damaged, or of other particles.
        ConfigError: it is of other settings.
    """
    path = config.output / _TRAINING_FILE
    if not path.is_file():
        return None
    checkpoint = load_checkpoint(path, device)
    if not {"settings", "state"} <= checkpoint.keys():
        raise CheckpointError(f"{path} does not hold the state of a reconstruction", "", "Start a new run")
    _require_same(_nested(checkpoint["settings"]), config, path)
    state: dict[str, Any] = checkpoint["state"]
    if len(state["rotations"]) != count:
        raise CheckpointError(
            f"{path} is of {len(state['rotations'])} particles, {config.particles} holds {count}",
            "A run resumes with the particles that it started with",
            "Give the original star file, or start a new run in another folder",
        )
    return state


def save_training_state(run: RunFolder, config: ReconstructConfig, state: dict[str, Any]) -> None:
    """Write the state of a training atomically, whatever signals arrive.

    Args:
        run: the run folder.
        config: settings of the run, which a resumed run must share.
        state: state of the training, from ``TrainingState.to_checkpoint``.
    """
    with deferred_signals():
        save_checkpoint(
            run.path(_TRAINING_FILE), {"settings": _binding(config.model_dump(mode="json")), "state": state}
        )


def _recorded_settings(record: Path) -> dict[str, Any]:
    try:
        settings = read_json(record)["settings"]
    except (ValueError, KeyError, TypeError):  # not JSON, or the job.json of another program
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{record} is not the record of a run of cryoeq", "", "Choose another folder with -o")
    return settings


def _require_same(recorded: dict[str, Any], config: ReconstructConfig, path: Path) -> None:
    now = _binding(config.model_dump(mode="json"))
    # A setting that the record does not know is newer than the run, which had what is the default now.
    defaults = ReconstructConfig(particles=config.particles, output=config.output).model_dump(mode="json")
    then = _binding(defaults) | _binding(with_current_keys(ReconstructConfig, recorded, str(path)))
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            has_option = "." not in key or key in ReconstructConfig.options
            named = ReconstructConfig.option_of(key) if has_option else "the setting"
            raise ConfigError(
                f"{path}: {key} was {then.get(key)}, and is now {now.get(key)}",
                "A run resumes with the settings that it started with",
                f"Leave {named} out, or start a new run in another folder",
            )


def _binding(settings: Mapping[str, Any]) -> dict[str, object]:
    """Settings that a continuation must share, keys dotted."""
    return {key: value for key, value in _flat(settings).items() if key not in _FREE}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested
