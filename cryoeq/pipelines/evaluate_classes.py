"""Classes and poses of a run of several against a truth of several molecules and junk."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.evaluation.class_confusion import ClassConfusion, confuse
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.evaluation.poses import MIN_IMAGES, PoseErrors, compare_poses
from cryoeq.io.labels import CLASS_NUMBER, JUNK_KIND, JUNK_PROBABILITY
from cryoeq.io.star import StarTable

_NO_KIND = "none"


@dataclass(frozen=True)
class ScoredClass:
    """A class against the true class that it shows.

    Args:
        number: of the class.
        true_number: of the true class.
        is_matched: whether the best assignment gives it this one; another class shows it, too, where not.
        errors: pose errors of the kept particles that are of both.
    """

    number: int
    true_number: int
    is_matched: bool
    errors: PoseErrors


@dataclass(frozen=True)
class ScoredClasses:
    """All classes against the truth.

    Args:
        classes: those whose poses were scored.
        results: figures for JSON.
    """

    classes: tuple[ScoredClass, ...]
    results: Mapping[str, object]


def score_classes(
    config: EvaluateConfig, tables: tuple[StarTable, StarTable], rows: np.ndarray, poses: tuple[Poses, Poses]
) -> Generator[Event, None, ScoredClasses]:
    """Match the classes to the true ones by their particles, and score the poses of each in its own frame.

    Args:
        config: settings of the command.
        tables: prediction and truth.
        rows: row of the truth of each predicted image.
        poses: predicted and true poses of these images.
    """
    predicted, truth = tables
    classes = torch.from_numpy(predicted.floats(CLASS_NUMBER, advice="Leave out --by-class")).long()
    everywhere = torch.from_numpy(truth.floats(CLASS_NUMBER, default=1.0)).long().clamp(min=0)
    true_classes, junk = everywhere[torch.from_numpy(rows)], _junk_probabilities(predicted)
    is_kept = torch.ones(len(classes), dtype=torch.bool) if junk is None else junk < config.junk_below
    confusion = confuse(classes, true_classes, is_kept)
    by_kind = _kept_by_kind(truth, rows, is_kept)
    results = _as_json(confusion, by_kind, int((everywhere > 0).sum()))
    if junk is not None and 0 < int((true_classes == 0).sum()) < len(classes):
        results["junk_roc_auc"] = roc_auc(junk, true_classes == 0)
    scored = []
    for number in confusion.classes:
        shown = confusion.shown(number)
        both = ((classes == number) & (true_classes == shown) & is_kept).nonzero().squeeze(1)
        if shown is None or len(both) < MIN_IMAGES:
            yield Note(f"Class {number} has too few particles for pose errors ({len(both)}).", "warning")
            continue
        device_rows = both.to(poses[1].rotations.device)
        errors = compare_poses(
            poses[0][device_rows],
            poses[1][device_rows],
            symmetry=config.symmetry,
            generator=torch.Generator().manual_seed(config.seed),
        )
        scored.append(ScoredClass(number, shown, number in confusion.matched, errors))
    yield Report(f"Classes of {len(classes)} images", dict(_rows(confusion, results)))
    return ScoredClasses(tuple(scored), results)


def _junk_probabilities(star: StarTable) -> Tensor | None:
    return torch.from_numpy(star.floats(JUNK_PROBABILITY)) if JUNK_PROBABILITY in star.particles else None


def _kept_by_kind(truth: StarTable, rows: np.ndarray, is_kept: Bool[Tensor, " images"]) -> dict[str, dict[str, int]]:
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


def _as_json(confusion: ClassConfusion, by_kind: Mapping[str, Mapping[str, int]], n_good: int) -> dict[str, object]:
    kept = int(confusion.counts.sum())
    return {
        "confusion": {
            "classes": list(confusion.classes),
            "true_classes": [*confusion.true_classes, 0],
            "kept": confusion.counts.tolist(),
            "left_out": confusion.left_out.tolist(),
        },
        "matched": {str(ours): true for ours, true in confusion.matched.items()},
        "good": n_good,
        "good_kept": kept - confusion.kept_junk,
        "good_in_right_class": confusion.right,
        "share_of_good_in_right_class": confusion.right / max(1, n_good),
        "junk_kept": confusion.kept_junk,
        "junk_share_of_kept": confusion.kept_junk / max(1, kept),
        "junk_by_kind": dict(by_kind),
    }


def _rows(confusion: ClassConfusion, results: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The confusion table in words, then its figures."""
    for number, counts in zip(confusion.classes, confusion.counts, strict=True):
        shown = confusion.shown(number)
        again = "" if number in confusion.matched else " too"
        what = "shows nothing" if shown is None else f"shows true class {shown}{again}"
        yield f"Class {number} {what}", _counts_text(confusion.true_classes, counts)
    if int(confusion.left_out.sum()):
        yield "Left out as junk", _counts_text(confusion.true_classes, confusion.left_out)
    good = results["good"]
    yield "Good and in the right class", f"{results['share_of_good_in_right_class']:.1%} of {good}"
    junk = f"{results['junk_share_of_kept']:.1%} of {int(confusion.counts.sum())}"
    kinds = results["junk_by_kind"]
    told = "" if not isinstance(kinds, dict) else ", ".join(
        f"{kind} {each['kept']} of {each['images']}" for kind, each in kinds.items()
    )  # fmt: skip
    yield "Junk among the kept", f"{junk}{f'; kept: {told}' if told else ''}"
    if "junk_roc_auc" in results:
        yield "Probability of junk (ROC AUC)", f"{results['junk_roc_auc']:.3f}"


def _counts_text(true_classes: tuple[int, ...], counts: Int[Tensor, " columns"]) -> str:
    *good, junk = counts.tolist()
    told = [f"true class {number}: {count}" for number, count in zip(true_classes, good, strict=True)]
    return ", ".join([*told, f"junk: {junk}"])
