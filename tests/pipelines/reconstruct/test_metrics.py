"""The record of a run gives its metrics back."""

import json

import pytest

from cryoeq.pipelines.reconstruct.metrics import ClassMetrics, ReconstructionMetrics

FIRST = ClassMetrics(1, 70, 0.7, 9.1, 8.2, 8.4, "C3", 0.96, unexplained_share=0.1)
SECOND = ClassMetrics(2, 30, 0.3)


@pytest.mark.parametrize(
    "metrics",
    [
        ReconstructionMetrics(log_evidence=2.5, dependent_halves="they share images"),
        ReconstructionMetrics(classes=(FIRST, SECOND), class_agreement=0.9, class_moves=((68, 2), (3, 27))),
    ],
)
def test_metrics_come_back_from_a_record(metrics: ReconstructionMetrics) -> None:
    assert ReconstructionMetrics.from_json(json.loads(json.dumps(metrics.to_json()))) == metrics


def test_a_run_of_one_class_records_nothing_of_classes() -> None:
    assert ReconstructionMetrics(half_map_resolution_angstrom=9.0).to_json() == {"half_map_resolution_angstrom": 9.0}


def test_entries_of_a_later_version_are_left_out() -> None:
    record = ReconstructionMetrics(classes=(FIRST,)).to_json() | {"seconds": 3.0}
    record["classes"][0]["colour"] = "blue"
    assert ReconstructionMetrics.from_json(record).classes == (FIRST,)


def test_a_class_has_its_own_metrics_and_those_of_the_run() -> None:
    metrics = ReconstructionMetrics(log_evidence=2.5, unexplained_share=0.5, classes=(FIRST, SECOND))
    first, second = metrics.of_class(1), metrics.of_class(2)
    assert (first.log_evidence, first.half_map_resolution_angstrom, first.unexplained_share) == (2.5, 9.1, 0.1)
    assert (second.half_map_resolution_angstrom, second.unexplained_share) == (None, None)
