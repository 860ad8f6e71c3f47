"""Files of a run of several classes: a map, half maps, mask and curves of each, and one table of all."""

from pathlib import Path

import pytest
import starfile

from cryoeq.io.mrc import read_map
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics


def test_each_class_has_all_files(class_run: Path) -> None:
    names = [map_names(number, 2) for number in (1, 2)]
    of_classes = {
        name
        for each in names
        for name in (each.whole, each.first_half, each.second_half, each.mask, each.postprocessed, each.slices,
                     each.projections, *(f"{each.fsc}.{ending}" for ending in ("star", "xml", "png")))
    }  # fmt: skip
    written = {path.name for path in class_run.iterdir()}
    record = {"job.json", "config.yaml", "command.txt", "report.html", "run_data.star", "run_model.star"}
    assert written == of_classes | record


def test_the_classes_are_different_maps(class_run: Path) -> None:
    first, second = (read_map(class_run / map_names(number, 2).whole).values for number in (1, 2))
    assert float((first * second).sum() / (first.norm() * second.norm())) < 0.8


def test_the_table_of_classes_is_that_of_the_record(class_run: Path) -> None:
    metrics = ReconstructionMetrics.from_json(RunFolder(class_run).job()["results"])
    assert metrics.classes is not None
    blocks = starfile.read(class_run / "run_model.star", always_dict=True)
    rows = blocks["model_classes"]
    assert rows["rlnReferenceImage"].tolist() == [str(class_run / f"run_class00{number}.mrc") for number in (1, 2)]
    assert rows["rlnClassDistribution"].tolist() == pytest.approx([each.share for each in metrics.classes], abs=1e-6)
    assert sum(rows["rlnClassDistribution"]) == pytest.approx(1)
    for number, each in enumerate(metrics.classes, 1):
        assert each.half_map_resolution_angstrom == pytest.approx(rows["rlnEstimatedResolution"][number - 1], rel=0.3)
        shells = blocks[f"model_class_{number}"]
        fsc = starfile.read(class_run / f"run_fsc_class00{number}.star")["fsc"]
        ours = fsc["rlnFourierShellCorrelationUnmaskedMaps"]
        assert shells["rlnGoldStandardFsc"].tolist() == pytest.approx(ours.tolist(), abs=1e-5)
        assert shells["rlnFourierCompleteness"].between(0, 1).all()
        assert rows["rlnOverallFourierCompleteness"][number - 1] > 0.8
