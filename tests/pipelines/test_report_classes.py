"""The report of a run of several classes: each beside the others, what moved between starts, and the junk."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.io.particles import write_particle_star
from cryoeq.io.star import decimals, read_star
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.report import write_report
from cryoeq.outputs.report_contents import ComparedParticles, RunContents
from cryoeq.pipelines.report import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def contents(class_run: Path) -> RunContents:
    return read_run(class_run)


def compared(contents: RunContents) -> list[ComparedParticles]:
    found = [each.particles for each in contents.classes if isinstance(each.particles, ComparedParticles)]
    assert len(found) == len(contents.classes)
    return found


def test_each_particle_is_in_one_class(class_run: Path, contents: RunContents) -> None:
    total = len(read_star(class_run / "run_data.star"))
    assert sum(each.total for each in compared(contents)) == total
    assert sum(len(each.poses or ()) for each in contents.classes) == total
    assert sum(map(len, contents.junk.values())) == total
    names = [name for each in compared(contents) for name in each.names]
    assert len(set(names)) == len(names)


def test_particles_fit_the_map_of_their_own_class(class_run: Path, tmp_path: Path, contents: RunContents) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    (folder / "run_class001.mrc").rename(folder / "kept.mrc")
    (folder / "run_class002.mrc").rename(folder / "run_class001.mrc")
    (folder / "kept.mrc").rename(folder / "run_class002.mrc")
    for own, other in zip(compared(contents), compared(read_run(folder)), strict=True):
        assert float(own.fits.correlations.median()) > 0.6
        assert float(other.fits.correlations.median()) < 0.5


def test_the_page_shows_all_classes(class_run: Path) -> None:
    page = (class_run / "report.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'class="plot" id="(\w+)"', page))
    axes = {f"slice_{axis}_{number}" for axis in "xyz" for number in (1, 2)}
    assert ids == {"surface_1", "surface_2", "orientations_1", "orientations_2", "fsc", "junk"} | axes
    figures = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert figures is not None
    for said in ("Classes of two starts agree", "In the matching class of another start", "the two agree by 0.81"):
        assert said in page
    assert page.count("Worst, worst first") == 2
    assert f"select run --junk-below {JUNK_CUT:g}" in page


def test_the_table_of_moves_is_that_of_the_record(class_run: Path) -> None:
    moves = read_json(class_run / "job.json")["results"]["class_moves"]
    page = (class_run / "report.html").read_text(encoding="utf-8")
    cells = re.findall(r"rgba\(86,180,233,([\d.]+)\)\">([\d,]+) ", page)
    assert [int(count) for _, count in cells] == [count for row in moves for count in row]
    shares = [count / sum(row) for row in moves for count in row]
    assert [float(share) for share, _ in cells] == pytest.approx(shares, abs=0.005)


def test_both_classes_are_found(contents: RunContents) -> None:
    assert contents.verdict.level == "found"
    assert contents.verdict.sentence.startswith("2 structures were found; their half maps agree to ")
    said = [reason.text for reason in contents.verdict.reasons]
    assert len([text for text in said if "hand cannot be determined" in text]) == 1, "what holds for all is said once"
    assert not [text for text in said if "two random starts converged" in text], "it is told class by class"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reproduced": 0.3}, "Class 2: Not reproduced: 30%"),
        ({"reproduced": None}, "Class 2: No other random start"),
        ({"unexplained_share": 0.4}, "Class 2: The map does not explain 40%"),
    ],
)
def test_doubt_on_one_class_is_told(class_run: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    job = read_json(folder / "job.json")
    job["results"]["classes"][1] |= change
    write_json(folder / "job.json", job)
    verdict = read_run(folder).verdict
    assert (verdict.level, verdict.sentence) == (
        "doubtful", "There are maps of 2 classes, but doubt is cast on class 2.",
    )  # fmt: skip
    assert [reason.text[: len(said)] for reason in verdict.doubts] == [said]


def test_a_run_of_one_class_shows_its_junk(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert not read_run(folder).junk
    star = read_star(folder / "run_data.star")
    probabilities = np.linspace(0, 1, len(star))
    columns = {"cryoeqJunkProbability": decimals(probabilities)}
    write_particle_star(folder / "run_data.star", star, None, extra_columns=columns)
    assert run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="junk"' in page
    count = int((probabilities >= JUNK_CUT).sum())
    assert f"Of 48 particles {count} ({count / 48:.1%}) are junk" in page
    torch.testing.assert_close(read_run(folder).junk[1], torch.from_numpy(probabilities), atol=1e-5, rtol=0)


def test_a_class_without_files_leaves_the_others(class_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    for path in [*folder.glob("*class002*")]:
        path.unlink()
    contents = read_run(folder)
    assert contents.classes[1].particles == "The class has no map or no particles."
    assert contents.classes[0].volume is not None
    write_report(folder / "report.html", contents)
    assert "surface_2" not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", ["x", [{"number": 1}], [{"number": 1, "particles": 3, "share": "half"}]])
def test_damaged_classes_are_named(
    class_run: Path, tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    job = read_json(folder / "job.json")
    job["results"]["classes"] = damage
    write_json(folder / "job.json", job)
    assert run(["report", str(folder)]) == 2
    assert "job.json is damaged: results.classes" in capsys.readouterr().err
