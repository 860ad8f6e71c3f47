"""Frequency marching and learning rates over a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Frequency marching and the decay of the learning rate.

    Args:
        total_steps: number of optimizer steps of the training.
        first_shell: radius at the start, in cycles per box.
        last_shell: radius at the end, in cycles per box.
        marching: fraction of the training after which the last shell is reached.
        constant: fraction of the training with a constant learning rate; from there it falls linearly.
        final_rate: last learning rate as a fraction of the first.
    """

    total_steps: int
    first_shell: float
    last_shell: float
    marching: float = 0.6
    constant: float = 0.7
    final_rate: float = 0.05

    def radius(self, step: int) -> float:
        """Highest spatial frequency in use, in cycles per box."""
        progress = min(1.0, step / max(1.0, self.marching * self.total_steps))
        return self.first_shell + (self.last_shell - self.first_shell) * progress

    def rate(self, step: int) -> float:
        """Factor on the learning rates."""
        remaining = (self.total_steps - step) / ((1 - self.constant) * self.total_steps)
        return min(1.0, max(self.final_rate, remaining))
