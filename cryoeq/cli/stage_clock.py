"""Position of a run among the stages of its plan: iterations, time elapsed and time left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryoeq.domain.events import Plan, Progress


@dataclass
class StagePass:
    """One pass through a stage; a stage that starts over begins another pass.

    Args:
        name: name of the stage.
        position: number in the plan, from 1, and number of stages; None without a plan.
        began_s: time of its first event.
        first_fraction: fraction of the stage that was done by then.
        latest: its latest event.
        latest_s: time of that event.
        metrics: the latest metrics.
    """

    name: str
    position: tuple[int, int] | None
    began_s: float
    first_fraction: float
    latest: Progress
    latest_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name, with its number among the stages of the plan."""
        return self.name if self.position is None else f"Stage {self.position[0]}/{self.position[1]} {self.name}"

    @property
    def fraction(self) -> float:
        """Fraction of the stage that is done."""
        return stage_fraction(self.latest)

    @property
    def count(self) -> str:
        """Iterations or units done, and their number; empty for a stage of one unit."""
        done, total = self.latest.iteration or (self.latest.done, self.latest.total)
        return f"{done}/{total}" if total > 1 else ""

    @property
    def elapsed_s(self) -> float:
        """Time from the first to the latest event."""
        return self.latest_s - self.began_s

    def left_s(self, now_s: float) -> float | None:
        """Estimate of the time left, at the pace so far; None before there is one."""
        gained, left = self.fraction - self.first_fraction, 1 - self.fraction
        if gained <= 0 or left <= 0:
            return None
        return max(0.0, self.elapsed_s * left / gained - (now_s - self.latest_s))


class StageClock:
    """Follows the plan and the progress of a run.

    Args:
        clock: time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._stages: tuple[str, ...] = ()
        self._index = 0
        self.current: StagePass | None = None

    def plan(self, plan: Plan) -> None:
        """Start counting the stages of a plan."""
        self._stages, self._index = plan.stages, 0

    def advance(self, progress: Progress) -> StagePass:
        """The pass to which progress belongs: the current one, or a new one."""
        now_s, current, fraction = self.now(), self.current, stage_fraction(progress)
        if current is None or current.name != progress.stage or fraction < current.fraction or current.fraction >= 1:
            position = self._locate(progress.stage)
            current = StagePass(progress.stage, position, now_s, fraction, progress, now_s)
        current.latest, current.latest_s = progress, now_s
        current.metrics = progress.metrics or current.metrics
        self.current = current
        return current

    def _locate(self, stage: str) -> tuple[int, int] | None:
        """Number of a stage: its next occurrence in the plan, else the first one, where the run went back."""
        for index in (*range(self._index, len(self._stages)), *range(self._index)):
            if self._stages[index] == stage:
                self._index = index
                return index + 1, len(self._stages)
        return None


def stage_fraction(progress: Progress) -> float:
    """Fraction of a stage that is done; an iteration's own progress counts in part."""
    within = progress.done / progress.total if progress.total else 1.0
    if progress.iteration is None or progress.iteration == (progress.done, progress.total):
        return within
    number, count = progress.iteration
    return (number - 1 + within) / count


def ends_iteration(progress: Progress) -> bool:
    """Whether an iteration of the stage is complete."""
    done = progress.done, progress.total
    return progress.iteration is not None and (done == progress.iteration or progress.done >= progress.total)


def clock_text(seconds: float) -> str:
    """Time as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
