"""``cryoeq reconstruct --classes``: two molecules found in a mixture, and what such a run leaves."""

import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile
import torch

from cryoeq.cli.main import run
from cryoeq.domain.events import Event, Note
from cryoeq.io.labels import CLASS_NUMBER, JUNK_PROBABILITY
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.star import StarTable, read_star, write_star
from cryoeq.io.text import read_json
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.report import read_run
from cryoeq.reconstruction import classification
from cryoeq.reconstruction.class_refinement import begin_classes
from cryoeq.reconstruction.classification import Classification, PartitionAgreement
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, random_phantom

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

FILES = {
    "run_class{}.mrc", "run_half1_class{}_unfil.mrc", "run_half2_class{}_unfil.mrc", "run_fsc_class{}.star",
    "run_fsc_class{}.xml",
}  # fmt: skip
TWO_STARTS = ("--set", "search.multi_start.min=2", "--set", "search.initial_model.iterations=25")


@pytest.fixture(scope="module")
def two_molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    other = random_phantom(6, 34.0, torch.Generator().manual_seed(5))
    for name, atoms in {"a": chiral_phantom(36.0), "b": other}.items():
        write_map(folder / f"{name}.mrc", sample_atoms(atoms, 20, 5.0))
    models = [str(folder / "a.mrc"), "--model", f"{folder / 'b.mrc'}:0.4"]
    options = ["-n", "160", "--snr", "4", "--shift-sigma", "4", "--device", "cpu"]
    assert run(["simulate", *models, "-o", str(folder / "particles"), *options]) == 0
    star = read_star(folder / "particles" / "particles.star")
    # What another run told, of which nothing may remain.
    earlier = {JUNK_PROBABILITY: np.full(160, "0.25"), CLASS_NUMBER: np.full(160, "7")}
    write_star(folder / "particles" / "particles.star", StarTable(star.optics, star.particles | earlier))
    return folder / "particles"


@pytest.fixture(scope="module")
def classes_run(two_molecules: Path, search_options: tuple[str, ...]) -> Path:
    output = two_molecules.parent / "run"
    particles = str(two_molecules / "particles.star")
    words = ["reconstruct", particles, "-o", str(output), "--classes", "2", "-j", "1", *search_options, *TWO_STARTS]
    assert run(words) == 0
    return output


def classes_of(star: Path) -> np.ndarray[Any, Any]:
    return read_star(star).floats(CLASS_NUMBER).astype(int)


def test_both_molecules_are_found(classes_run: Path, two_molecules: Path) -> None:
    found, true = classes_of(classes_run / "run_data.star"), classes_of(two_molecules / "truth.star")
    right = float((found == true).mean())
    assert max(right, 1 - right) > 0.95
    assert (found == 1).sum() >= (found == 2).sum()


def test_a_class_with_another_map_in_another_start_is_searched_alone(
    two_molecules: Path, search_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its particles are known, its map is not: one start of several classes may end in a wrong optimum."""
    monkeypatch.setattr(classification, "detail_agreement", lambda *_: 0.1)
    output = two_molecules.parent / "alone"
    particles = str(two_molecules / "particles.star")
    words = ["reconstruct", particles, "-o", str(output), "--classes", "2", "-j", "1", *search_options, *TWO_STARTS]
    assert run(words) == 0
    said = " ".join(note["text"] for note in read_json(output / "job.json")["notes"])
    for number in (1, 2):
        assert f"Class {number}: another start has another map of it (mean FSC 0.10)" in said
        assert f"Class {number}: new random starts with its particles alone" in said or f"Class {number}, its" in said
    found, true = classes_of(output / "run_data.star"), classes_of(two_molecules / "truth.star")
    right = float((found == true).mean())
    assert max(right, 1 - right) > 0.95


def test_what_is_left_of_each_class(classes_run: Path) -> None:
    names = {path.name for path in classes_run.iterdir()}
    assert {name.format(f"{number:03d}") for name in FILES for number in (1, 2)} <= names
    assert not {"run_fsc.star", "run_mask.mrc", "checkpoints"} & names
    assert float(read_map(classes_run / "run_class002.mrc").values.std()) > 0
    results = read_json(classes_run / "job.json")["results"]
    sizes = [each["particles"] for each in results["classes"]]
    assert sizes == np.bincount(classes_of(classes_run / "run_data.star"))[1:].tolist()
    assert sum(map(sum, results["class_moves"])) == 160
    assert results["class_agreement"] > 0.8
    assert all(each["reproduced"] > 0.8 for each in results["classes"])
    model = starfile.read(classes_run / "run_model.star")
    assert model["model_general"]["rlnNrClasses"] == 2
    assert model["model_classes"]["rlnAccuracyRotations"].between(0.01, 30).all()
    assert model["model_classes"]["rlnClassDistribution"].tolist() == pytest.approx([size / 160 for size in sizes])


def test_the_run_can_be_read_again(classes_run: Path) -> None:
    contents = read_run(classes_run)
    assert len(contents.classes) == 2
    assert contents.verdict.level != "not found"
    assert RunFolder(classes_run).job()["status"] == "done"


def test_junk_that_an_earlier_run_told_is_not_passed_on(
    classes_run: Path, two_molecules: Path, tmp_path: Path, search_options: tuple[str, ...]
) -> None:
    particles = two_molecules / "particles.star"
    assert JUNK_PROBABILITY in read_star(particles).particles
    words = ["reconstruct", str(particles), "-o", str(tmp_path / "one"), "-j", "1", *search_options]
    assert run([*words, "--set", "search.initial_model.iterations=5"]) in {0, 4}  # 4: there is more than one structure
    for folder in (classes_run, tmp_path / "one"):  # 160 particles are too few to tell junk
        assert JUNK_PROBABILITY not in read_star(folder / "run_data.star").particles


def test_half_sets_hold_every_particle_once(classes_run: Path) -> None:
    halves = read_star(classes_run / "run_data.star").floats("rlnRandomSubset")
    assert np.bincount(halves.astype(int)).tolist() == [0, 80, 80]


@pytest.mark.slow
def test_classes_of_a_search_in_a_smaller_box_end_at_the_full_one(
    two_molecules: Path, tmp_path: Path, search_options: tuple[str, ...]
) -> None:
    words = ["reconstruct", str(two_molecules / "particles.star"), "--classes", "2", "-j", "1", *search_options]
    quick = (*TWO_STARTS, "-D", "16", "--set", "full_box.iterations=1")
    assert run([*words, *quick, "-o", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert len(re.findall("full-box refinement: .* poses rotated by", log)) == 2
    assert log.index("poses rotated by") < log.index("reconstructing")
    found, true = (classes_of(path) for path in (tmp_path / "run" / "run_data.star", two_molecules / "truth.star"))
    right = float((found == true).mean())
    assert max(right, 1 - right) > 0.95
    for number in (1, 2):
        assert read_map(tmp_path / "run" / f"run_class{number:03d}.mrc").box_size_px == 20


def test_one_structure_is_searched_for_as_without_classes(
    two_molecules: Path, tmp_path: Path, search_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no second class is left with particles: files, checks and verdict are those of a search for one."""

    def classified(
        particles: ParticleTransforms, half_set: torch.Tensor, settings: AbInitioSettings, **_: object
    ) -> Generator[Event, None, Classification]:
        yield Note("one is left")
        model = InitialModel(torch.ones(1, 14, 14, 14), torch.zeros(len(particles), 2), 0.0)
        return Classification(begin_classes(model, particles, half_set, settings.refinement, 6), None)

    monkeypatch.setattr("cryoeq.pipelines.reconstruct.classes.classify", classified)
    options = ["-n", "80", "--snr", "4", "--shift-sigma", "4", "--device", "cpu"]
    assert run(["simulate", str(two_molecules.parent / "a.mrc"), "-o", str(tmp_path / "a"), *options]) == 0
    words = ["reconstruct", str(tmp_path / "a" / "particles.star"), "-j", "1", *search_options]
    assert run([*words, "-o", str(tmp_path / "map"), "--classes", "2"]) == 0
    assert {"run_class001.mrc", "run_half1_class001_unfil.mrc", "run_fsc.star"} <= {
        path.name for path in (tmp_path / "map").iterdir()
    }
    verdict, said = read_run(tmp_path / "map").verdict, "2 classes were asked for; 1 emptied: one structure is left."
    assert said in [reason.text for reason in verdict.reasons]
    assert any("one random start only" in reason.text for reason in verdict.reasons)  # of the search for one
    assert Note(said, "warning") in RunFolder(tmp_path / "map").notes()
    different = [*words, "-o", str(tmp_path / "other"), "--classes", "2", "--sym", "C2,C1"]
    assert run(different) == 4  # which of them it has, none can know
    assert not (tmp_path / "other" / "run_class001.mrc").exists()


def test_particles_of_a_class_of_junk_are_in_the_classes_that_are_structures(
    two_molecules: Path, tmp_path: Path, search_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three classes by the evidence, of which one holds 24 particles, all of them junk: two structures."""
    is_third = torch.arange(160) < 24

    def three(
        particles: ParticleTransforms, half_set: torch.Tensor, settings: AbInitioSettings, **_: object
    ) -> Generator[Event, None, Classification]:
        of_two = replace(settings, initial_model=replace(settings.initial_model, n_classes=2))
        state = (yield from classification.classify(particles, half_set, of_two, least_particles=20)).state
        state = state.of_classes(torch.tensor([0, 1, 0]))
        probability = state.probability * torch.tensor([1.0, 1.0, 0.0])
        probability[is_third] = 0.4 * probability[is_third] + torch.tensor([0.0, 0.0, 0.6])
        moves = torch.diag(probability.argmax(1).bincount(minlength=3))
        return Classification(replace(state, probability=probability), PartitionAgreement(moves))

    def junk(*_: object) -> Generator[Event, None, torch.Tensor]:
        yield Note("24 of them")
        return is_third

    monkeypatch.setattr("cryoeq.pipelines.reconstruct.classes.classify_by_evidence", three)
    monkeypatch.setattr("cryoeq.pipelines.reconstruct.classes.probably_junk", junk)
    words = ["reconstruct", str(two_molecules / "particles.star"), "-j", "1", *search_options, *TWO_STARTS]
    assert run([*words, "-o", str(tmp_path / "map"), "--classes", "auto"]) == 0
    names = {path.name for path in (tmp_path / "map").iterdir()}
    assert "run_class002.mrc" in names
    assert "run_class003.mrc" not in names
    said = " ".join(note["text"] for note in read_json(tmp_path / "map" / "job.json")["notes"])
    assert "Class 3: 0 of 24 particles are probably no junk" in said
    assert "--classes auto: 2 structures are left." in said
    found, true = classes_of(tmp_path / "map" / "run_data.star"), classes_of(two_molecules / "truth.star")
    assert set(found) == {1, 2}
    right = float((found == true).mean())
    assert max(right, 1 - right) > 0.9


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "2", "--pose-inference", "known"], "classes are found by a search only"),
        (["--classes", "2", "--sym", "C4,C2,C1"], "names 3 point groups, for 2 classes"),
        (["--sym", "C4,C1"], "names 2 point groups, for 1 classes"),
        (["--classes", "0"], "--classes is '0'"),
        (["--classes", "some"], "--classes is 'some'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    two_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    output = tmp_path / "run"
    text = refused(["reconstruct", str(two_molecules / "particles.star"), "-o", str(output), *words], capsys)
    assert said in text
    assert not output.exists()
