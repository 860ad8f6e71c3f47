"""Metrics of a run in words: phrases for progress lines, titles for plots."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class MetricText:
    """Words for one metric.

    Args:
        phrase: format string of a progress line, which takes the value.
        title: title of its plot, with unit.
    """

    phrase: str
    title: str


METRIC_TEXTS: Final[Mapping[str, MetricText]] = {
    "resolution_limit_angstrom": MetricText("data to {:.1f} Å", "resolution limit of the data in use (Å)"),
    "fsc_resolution_angstrom": MetricText("halves agree to {:.1f} Å", "half maps agree to (Å, FSC 0.143)"),
    "log_likelihood": MetricText("log-likelihood {:.2f}", "log-likelihood per particle (higher is better)"),
    "changed": MetricText("{:.1%} of poses changed", "fraction of poses changed"),
    "class_changed": MetricText("{:.1%} in another class", "fraction of particles in another class"),
    "loss": MetricText("loss {:.4g}", "mean squared residual"),
    "synthetic_error_deg": MetricText(
        "median error on synthetic projections {:.1f}°", "median rotation error on synthetic projections (°)"
    ),
    "pose_change_deg": MetricText("poses rotated by {:.2g}°", "rotation of poses since the last iteration (°)"),
    "max_probability": MetricText("best pose's probability {:.2f}", "mean probability of the best pose"),
}
"""Metrics by key, in the order of their importance to a reader."""


def metric_title(name: str) -> str:
    """Title of a metric's plot; the name itself where it has none."""
    text = METRIC_TEXTS.get(name)
    return name.replace("_", " ") if text is None else text.title


def metric_phrases(metrics: Mapping[str, float]) -> list[str]:
    """One phrase for each metric that has a value, the most important first."""
    return [_phrase(name, metrics[name]) for name in sorted(metrics, key=metric_rank) if math.isfinite(metrics[name])]


def metric_rank(name: str) -> int:
    """Position of a metric in the order of importance; unknown ones come last."""
    return list(METRIC_TEXTS).index(name) if name in METRIC_TEXTS else len(METRIC_TEXTS)


def _phrase(name: str, value: float) -> str:
    text = METRIC_TEXTS.get(name)
    return f"{name.replace('_', ' ')} {value:.4g}" if text is None else text.phrase.format(value)
