"""The benchmark of classes: what counts as found, what the limit of the data is, and the tables."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.io.mrc import read_map, write_map
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, random_phantom

N, ANGPIX, COUNT = 20, 5.0, 120


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a script of this folder by name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield __import__
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(__file__).parent:
            del sys.modules[name]


def scores(kept: list[list[int]], *, medians: tuple[float, ...] = (2.0, 2.0)) -> dict[str, Any]:
    """Figures of two classes against two structures and junk."""
    return {
        "confusion": {"classes": [1, 2], "true_classes": [1, 2, 0], "kept": kept, "left_out": [0, 0, 10]},
        "classes": [
            {"class": 1, "true_class": 1, "is_matched": True, "rotation_deg": {"median": medians[0]}},
            {"class": 2, "true_class": 2, "is_matched": True, "rotation_deg": {"median": medians[1]}},
        ],
        "good_in_right_class": kept[0][0] + kept[1][1], "good": 200, "good_kept": 200, "kept": 202, "junk_kept": 2,
        "junk_by_kind": {"empty": {"images": 6, "kept": 0}, "edge": {"images": 6, "kept": 2}}, "junk_roc_auc": 0.98,
        "junk_calibration": [
            {"images": 150, "mean_probability": 0.1, "junk_share": 0.0},
            {"images": 50, "mean_probability": 0.9, "junk_share": 1.0},
        ],
    }  # fmt: skip


def record(mode: str, classes: str, *, cpu_s: float = 100.0, **more: object) -> dict[str, Any]:
    """One record of the set of two conformations."""
    options = {"search": ["--classes", classes], "relion": ["--K", classes], "limit": []}[mode]
    taken = {"cpu_s": cpu_s, "peak_rss_mib": 900.0, "predicted_mib": 1000, "exit_code": 0, "reported": []}
    return {"set": "conformations_50", "mode": mode, "seed": 0, "options": options, **taken, **more}


def test_a_structure_is_found_where_a_class_is_its_own_and_has_its_poses(scripts: Any) -> None:
    found = scripts("class_scores").structures_found
    assert found(scores([[95, 5, 1], [5, 95, 1]])) == 2
    assert found(scores([[95, 5, 1], [5, 95, 1]], medians=(2.0, 90.0))) == 1
    assert found(scores([[99, 95, 1], [1, 5, 1]])) == 1  # one class has both
    assert found(scores([[49, 5, 1], [51, 95, 1]])) == 1  # most of a structure is elsewhere


def test_the_tables_say_shares_of_the_limit_junk_and_cost(scripts: Any) -> None:
    told = scores([[95, 5, 1], [5, 95, 1]])
    records = [
        record("limit", "", right_to_shell={"10": 0.9, "31": 0.97}),
        record("search", "1", cpu_s=80.0),
        record("search", "2", scores=told, verdict="found", class_agreement=0.9),
        record("relion", "2", scores=told, cpu_s=900.0, is_cut=True),
    ]
    text = scripts("class_report").report(records)
    ours, theirs = (line for line in text.splitlines() if "2 of 2" in line)
    assert ours.split(" | ")[4].startswith("95.0 (91.0–97.3)")
    assert ours.split(" | ")[7] == "0.979"  # 0.95 / 0.97
    assert "RELION, 2" in theirs
    assert "| 1.0 (0.3–3.5) | 2 of 6 | 0 of 6 | 0.980 | 0.100 |" in text
    assert "| 100 | 1.25 | 1000 / 900 |" in text
    assert "at least 900" in text


def test_maps_that_are_alike_put_nothing_right_and_others_all(scripts: Any, tmp_path: Path) -> None:
    """The limit of the data, where they tell all and where they tell nothing."""
    first, second = chiral_phantom(34.0), random_phantom(14, 34.0, torch.Generator().manual_seed(3))
    for name, atoms in {"a": first, "b": second}.items():
        write_map(tmp_path / f"{name}.mrc", sample_atoms(atoms, N, ANGPIX))
    words = [str(tmp_path / "a.mrc"), "--model", f"{tmp_path / 'b.mrc'}:0.4", "-o", str(tmp_path / "particles")]
    options = ["-n", str(COUNT), "--snr", "1", "--shift-sigma", "4", "--junk", "0.2", "--device", "cpu"]
    assert run(["simulate", *words, *options]) == 0
    truth = tmp_path / "particles" / "truth.star"
    a, b = (read_map(tmp_path / "particles" / f"truth_volume_class00{number}.mrc") for number in (1, 2))
    limit = scripts("class_scores").limit_of_data
    figures = limit(truth, [a, b], (1000,))
    assert figures["right_to_shell"] == {"9": pytest.approx(1.0, abs=0.03)}
    assert figures["images"] < COUNT  # without the junk
    larger = max(0.6, 0.4)
    assert limit(truth, [a, a], (1000,))["right_to_shell"]["9"] == pytest.approx(larger, abs=0.01)
    assert limit(truth, [b, a], (1000,))["right_to_shell"]["9"] < 0.5


def test_every_set_is_simulated_as_it_says(scripts: Any) -> None:
    classes = scripts("classes")
    words = classes.simulation(classes.SETS["three"], Path("models"))
    assert words[:2] == ["simulate", "models/1wcm.pdb"]
    assert [word for word in words if ":" in word] == ["models/6msm.pdb:0.3333", "models/7ez0.pdb:0.3333"]
    assert "--junk" not in words
    assert classes.simulation(classes.SETS["molecules"], Path("models")).count("--junk") == 1


def test_the_last_iteration_is_the_last_whose_model_was_written(scripts: Any, tmp_path: Path) -> None:
    last = scripts("class_relion").last_iteration
    assert last(tmp_path) == 0
    for name in ("run_it002_model.star", "run_it010_model.star", "run_it011_data.star"):
        (tmp_path / name).touch()
    assert last(tmp_path) == 10


def test_real_particles_have_no_true_structures(scripts: Any, tmp_path: Path) -> None:
    classes = scripts("classes")
    bench = classes.Bench(tmp_path, tmp_path, tmp_path / "classes.json")
    assert bench.structures("ribosome", bench.prepare("ribosome", 0)) == []
