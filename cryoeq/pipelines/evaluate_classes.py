"""Classes and poses of a run of several against a truth of several molecules and junk."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.evaluation.class_confusion import ClassConfusion, confuse
from cryoeq.evaluation.poses import MIN_IMAGES, PoseErrors, compare_poses
from cryoeq.io.labels import CLASS_NUMBER
from cryoeq.io.star import StarTable
from cryoeq.pipelines.evaluate_junk import junk_rows, kept_particles, score_junk


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
    true_classes, is_kept = everywhere[torch.from_numpy(rows)], kept_particles(config, predicted)
    confusion = confuse(classes, true_classes, is_kept)
    results = _as_json(confusion) | score_junk(config, tables, rows)
    results["share_of_good_in_right_class"] = confusion.right / max(1, int((everywhere > 0).sum()))
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


def _as_json(confusion: ClassConfusion) -> dict[str, object]:
    return {
        "confusion": {
            "classes": list(confusion.classes),
            "true_classes": [*confusion.true_classes, 0],
            "kept": confusion.counts.tolist(),
            "left_out": confusion.left_out.tolist(),
        },
        "matched": {str(ours): true for ours, true in confusion.matched.items()},
        "good_in_right_class": confusion.right,
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
    yield "Good and in the right class", f"{results['share_of_good_in_right_class']:.1%} of {results['good']}"
    yield from junk_rows(results).items()


def _counts_text(true_classes: tuple[int, ...], counts: Int[Tensor, " columns"]) -> str:
    *good, junk = counts.tolist()
    told = [f"true class {number}: {count}" for number, count in zip(true_classes, good, strict=True)]
    return ", ".join([*told, f"junk: {junk}"])
