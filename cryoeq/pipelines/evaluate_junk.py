"""Probabilities of junk against a truth that tells which images are no particles, and of what kind."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.domain.events import Report
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.io.labels import CLASS_NUMBER, JUNK_KIND, JUNK_PROBABILITY
from cryoeq.io.particles import star_junk_probability
from cryoeq.io.star import StarTable

_NO_KIND = "none"
_BINS = 10


def kept_particles(config: EvaluateConfig, predicted: StarTable) -> Bool[Tensor, " images"]:
    """Whether each image counts as kept: all do without probabilities of junk."""
    if JUNK_PROBABILITY not in predicted.particles:
        return torch.ones(len(predicted), dtype=torch.bool)
    return star_junk_probability(predicted) < config.junk_below


def score_junk(
    config: EvaluateConfig, tables: tuple[StarTable, StarTable], rows: Int[np.ndarray, " images"]
) -> dict[str, object]:
    """What was kept of particles and of junk, and how well the probabilities tell one from the other; for JSON.

    Args:
        config: settings of the command.
        tables: prediction and truth.
        rows: row of the truth of each predicted image.
    """
    predicted, truth = tables
    true_classes, is_kept = torch.from_numpy(truth.floats(CLASS_NUMBER, default=1.0)), kept_particles(config, predicted)
    is_junk = true_classes[torch.from_numpy(rows)] <= 0
    kept, kept_junk = int(is_kept.sum()), int((is_kept & is_junk).sum())
    results: dict[str, object] = {
        "good": int((true_classes > 0).sum()),
        "kept": kept,
        "good_kept": kept - kept_junk,
        "junk_kept": kept_junk,
        "junk_share_of_kept": kept_junk / max(1, kept),
        "junk_by_kind": _kept_by_kind(truth, rows, is_kept),
    }
    if JUNK_PROBABILITY in predicted.particles and is_junk.any() and not is_junk.all():
        junk = star_junk_probability(predicted)
        results |= {"junk_roc_auc": roc_auc(junk, is_junk), "junk_calibration": _calibration(junk, is_junk)}
    return results


def junk_rows(results: Mapping[str, object]) -> dict[str, str]:
    """Rows of the report on junk.

    Args:
        results: by ``score_junk``.
    """
    kinds = results["junk_by_kind"]
    counts = kinds.items() if isinstance(kinds, dict) else ()
    told = ", ".join(f"{kind} {each['kept']} of {each['images']}" for kind, each in counts)
    junk = f"{results['junk_share_of_kept']:.1%} of {results['kept']}"
    rows = {"Junk among the kept": f"{junk}{f'; kept: {told}' if told else ''}"}
    if "junk_roc_auc" in results:
        rows["Probability of junk (ROC AUC)"] = f"{results['junk_roc_auc']:.3f}"
    return rows


def junk_report(results: Mapping[str, object], images: int) -> Report:
    """The report on junk, of images of one structure.

    Args:
        results: by ``score_junk``.
        images: number of all images.
    """
    return Report(
        f"Junk among {images} images",
        {"Good and kept": f"{results['good_kept']} of {results['good']}"} | junk_rows(results),
    )


def _kept_by_kind(
    truth: StarTable, rows: Int[np.ndarray, " images"], is_kept: Bool[Tensor, " images"]
) -> dict[str, dict[str, int]]:
    """Images of each kind of junk in the truth, and how many of them were kept."""
    if JUNK_KIND not in truth.particles:
        return {}
    kinds = truth.particles[JUNK_KIND]
    kept = kinds[rows[is_kept.numpy()]]
    return {
        str(kind): {"images": int((kinds == kind).sum()), "kept": int((kept == kind).sum())}
        for kind in np.unique(kinds).tolist()
        if kind != _NO_KIND
    }


def _calibration(junk: Float[Tensor, " images"], is_junk: Bool[Tensor, " images"]) -> list[dict[str, float]]:
    """Of ten bins of the probability those with images: their number, mean probability and share of junk."""
    bins = (junk * _BINS).long().clamp(max=_BINS - 1)
    return [
        {
            "images": int((bins == number).sum()),
            "mean_probability": float(junk[bins == number].mean()),
            "junk_share": float(is_junk[bins == number].double().mean()),
        }
        for number in bins.unique().tolist()
    ]
