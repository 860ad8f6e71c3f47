"""Tables of the records of ``classes.py``."""

from collections.abc import Sequence

from ab_initio import latest, markdown_table
from class_scores import structures_found
from recorded_runs import Record
from scipy.stats import binomtest


def interval(count: int, total: int) -> str:
    """A share in per cent, with its 95 % Wilson interval.

    Args:
        count: how many.
        total: of how many.
    """
    if total == 0:
        return "–"
    bounds = binomtest(count, total).proportion_ci(method="wilson")
    return f"{100 * count / total:.1f} ({100 * bounds.low:.1f}–{100 * bounds.high:.1f})"


def report(records: Sequence[Record]) -> str:
    """All tables: runs with a truth, junk by kind, cost, runs without a truth.

    Args:
        records: all of them.
    """
    searches = sorted(latest(records, mode="search"), key=lambda each: (each["set"], each["options"], each["seed"]))
    scored = [each for each in searches if each.get("scores")]
    peers = [each for each in records if each["mode"] == "relion"]
    others = [each for each in searches if not each.get("scores") and each["options"] != ["--classes", "1"]]
    parts = [
        _score_table([*scored, *(each for each in peers if each.get("scores"))], records),
        _junk_table([each for each in scored if each["scores"]["junk_by_kind"]]),
        _cost_table([*searches, *peers]),
        _plain_table(others),
    ]
    return "\n".join(part for part in parts if part)


def _score_table(scored: Sequence[Record], records: Sequence[Record]) -> str:
    limits = {(each["set"], each["seed"]): each for each in records if each["mode"] == "limit"}
    rows = [[*_name(each), *_score_cells(each, limits.get((each["set"], each["seed"])))] for each in scored]
    head = [
        "set", "classes", "seed", "structures found", "good in the right class % (95 % Wilson)", "good kept %",
        "limit to shell 10, last %", "of the limit", "rotation median °", "agreement of starts", "verdict",
    ]  # fmt: skip
    return markdown_table(head, rows) if rows else ""


def _name(record: Record) -> list[str]:
    classes = record["options"][1] if record["mode"] == "search" else f"RELION, {record['options'][1]}"
    if classes == "auto":
        classes = f"auto: {len(record['reported']) or 1}"
    return [record["set"], classes, str(record["seed"])]


def _score_cells(record: Record, limit: Record | None) -> list[str]:
    scores = record["scores"]
    n_true, right = len(scores["confusion"]["true_classes"]) - 1, scores["good_in_right_class"]
    best = list(limit["right_to_shell"].values()) if limit else []
    errors = ", ".join(f"{each['rotation_deg']['median']:.1f}" for each in scores["classes"])
    agreement = record.get("class_agreement")
    return [
        f"{structures_found(scores)} of {n_true}",
        interval(right, scores["good"]),
        f"{100 * scores['good_kept'] / scores['good']:.1f}",
        ", ".join(f"{100 * share:.1f}" for share in best) or "–",
        f"{right / scores['good'] / best[-1]:.3f}" if best else "–",
        errors,
        "–" if agreement is None else f"{agreement:.2f}",
        record.get("verdict") or "–",
    ]


def _junk_table(scored: Sequence[Record]) -> str:
    kinds = sorted({kind for each in scored for kind in each["scores"]["junk_by_kind"]})
    rows = []
    for each in scored:
        scores = each["scores"]
        by_kind = [scores["junk_by_kind"].get(kind) for kind in kinds]
        cells = [f"{kind['kept']} of {kind['images']}" if kind else "–" for kind in by_kind]
        share = interval(scores["junk_kept"], scores["kept"])
        told = (
            [f"{scores['junk_roc_auc']:.3f}", f"{calibration_error(scores):.3f}"]
            if "junk_roc_auc" in scores
            else ["–"] * 2
        )
        rows.append([*_name(each), share, *cells, *told])
    head = ["set", "classes", "seed", "junk of the kept %", *kinds, "AUC", "calibration error"]
    return markdown_table(head, rows) if rows else ""


def calibration_error(scores: Record) -> float:
    """Mean difference of the probability of junk and its share, over ten bins by their images.

    Args:
        scores: of a run.
    """
    bins = scores["junk_calibration"]
    images = sum(each["images"] for each in bins)
    return sum(each["images"] * abs(each["mean_probability"] - each["junk_share"]) for each in bins) / images


def _cost_table(searches: Sequence[Record]) -> str:
    one = {(each["set"], each["seed"]): each for each in searches if each["options"] == ["--classes", "1"]}
    rows = []
    for each in searches:
        beside = one.get((each["set"], each["seed"]))
        least = "at least " if each.get("is_cut") else ""
        ratio = f"{least}{each['cpu_s'] / beside['cpu_s']:.2f}" if beside and beside is not each else "–"
        predicted = each.get("predicted_mib")
        memory = f"{predicted} / {each['peak_rss_mib']:.0f}" if predicted else "–"
        taken = f"{least}{each['cpu_s']:.0f}"
        rows.append([*_name(each), taken, ratio, memory])
    head = ["set", "classes", "seed", "CPU s", "of one class on the same set", "memory told / taken, MiB"]
    return markdown_table(head, rows) if rows else ""


def _plain_table(runs: Sequence[Record]) -> str:
    rows = []
    for each in runs:
        classes = each["reported"]
        rows.append(
            [
                *_name(each),
                ", ".join(f"{100 * one['share']:.0f}" for one in classes) or "–",
                ", ".join(_angstrom(one["half_map_resolution_angstrom"]) for one in classes) or "–",
                ", ".join(_angstrom(one["corrected_resolution_angstrom"]) for one in classes) or "–",
                ", ".join("–" if one["reproduced"] is None else f"{100 * one['reproduced']:.0f}" for one in classes),
                "–" if each.get("class_agreement") is None else f"{each['class_agreement']:.2f}",
                "–" if each.get("junk_share") is None else f"{100 * each['junk_share']:.0f}",
                each.get("verdict") or f"exit code {each['exit_code']}",
            ]
        )
    head = [
        "set", "classes", "seed", "shares %", "half maps Å", "in the mask, corrected Å", "found again %",
        "agreement of starts", "junk %", "verdict",
    ]  # fmt: skip
    return markdown_table(head, rows) if rows else ""


def _angstrom(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
