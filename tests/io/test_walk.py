"""The walk page: every command of ours on it runs, in its order, and what comes out is what the page says.

RELION's commands run where its programs are on the PATH; without them its second extraction is done by the simulation.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from simulated_project import EXPORT, EXPORTED, EXTRACTED, Project, Simulation, make_project, write_export
from walk_page import CLASSES, OF_CRYOSPARC, commands

from cryoeq.cli.main import run
from cryoeq.config.loading import packaged_file
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

AGAIN = "Extract/job020"


def walk(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    wanted: Callable[[str], bool],
    extract_again: Callable[[], object],
    replaced: dict[str, str] | None = None,
) -> list[str]:
    """Run the commands of the page in a project, each of which must succeed; ours, as they were typed."""
    done = []
    monkeypatch.chdir(folder)
    for heading, typed in commands():
        if not wanted(heading):
            continue
        words = [(replaced or {}).get(word, word) for word in typed]
        if words[0] == "cryoeq":
            assert run(words[1:]) == 0, shlex.join(words)
            done.append(shlex.join(typed))
        elif words[0] == "cd":
            monkeypatch.chdir(words[1])
        elif shutil.which(words[0]) and not replaced:
            Path(AGAIN).mkdir(parents=True, exist_ok=True)
            subprocess.run(words, check=True, capture_output=True, timeout=280)
        elif words[0] == "relion_preprocess":
            extract_again()
        else:
            assert words[0].startswith("relion_"), words[0]
    monkeypatch.chdir(folder)
    return done


def evaluated(*words: str) -> Any:
    assert run(["evaluate", *words, "--json", "evaluated.json"]) == 0
    return read_json(Path("evaluated.json"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project", Simulation(packaged_file("data_samples/1wcm_ca.pdb.gz")))


def test_the_page_is_a_walk_from_end_to_end() -> None:
    ours = [words[1] for _, words in commands() if words[0] == "cryoeq"]
    assert {"reconstruct", "select", "refine", "fsc"} == set(ours)
    theirs = {words[0] for _, words in commands() if words[0].startswith("relion")}
    assert theirs == {"relion_refine", "relion_postprocess", "relion_star_handler", "relion_preprocess"}
    assert {heading for heading, _ in commands()} >= {"RELION", CLASSES, OF_CRYOSPARC}


@pytest.mark.timeout(600)
def test_one_structure_from_relion_and_from_cryosparc(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def extract_again() -> None:
        words = ["cryoeq/map", "--recenter", "--micrograph-angpix", "3.875", "-o", "cryoeq/moved.star"]
        assert run(["select", *words]) == 0
        project.extract_again(Path("cryoeq/moved.star"), AGAIN)

    walk(project.folder, monkeypatch, wanted=lambda heading: heading != CLASSES, extract_again=extract_again)
    first = evaluated("cryoeq/map", "truth.star")
    assert first["rotation_deg"]["median"] < 2
    _check_new_centres(project)
    external = Path("External/job030")
    assert (external / "RELION_JOB_EXIT_SUCCESS").is_file()
    assert "External/job030/run_data.star" in (external / "RELION_OUTPUT_NODES.star").read_text()
    _check_export(project)


def _check_new_centres(project: Project) -> None:
    """Picks missed the particles by 2.5 pixels on average; the centres that were found do not."""
    new = read_star(Path("cryoeq/recentred.star"))
    places = np.stack([new.floats(f"rlnCoordinate{axis}") for axis in "XY"], 1)
    assert np.linalg.norm(places - project.centres_px, axis=1).mean() < 1.3
    again = read_particles(Path(AGAIN) / "particles.star", with_poses=True).table
    assert again.poses is not None
    assert again.poses.shifts_angstrom.abs().max() < 3.875 * 0.51
    assert again.box_size_px == 64
    fine = read_star(Path("cryoeq/fine/run_data.star"))
    assert fine.particles["rlnRandomSubset"].tolist() == new.particles["rlnRandomSubset"].tolist()


def _check_export(project: Project) -> None:
    folder = project.folder / EXPORT
    before, chosen = np.load(folder / f"{EXPORTED}.cs"), np.load(folder / "J12_cryoeq.cs")
    assert set(chosen["uid"].tolist()) <= set(before["uid"].tolist())
    assert {"alignments3D/pose", "alignments3D/shift", "alignments3D/split"} <= set(chosen.dtype.names or ())
    for name in before.dtype.names or ():
        assert chosen[name].tolist() == before[np.isin(before["uid"], chosen["uid"])][name].tolist(), name
    results = yaml.safe_load((folder / "J12_cryoeq.csg").read_text())["results"]
    assert set(results) == {"blob", "ctf", "alignments3D", "location"}
    assert {each["metafile"] for each in results.values()} == {">J12_cryoeq.cs"}
    for path in {path.decode() for path in chosen["blob/path"]}:
        assert (folder / path.removeprefix(">")).is_file(), "images are found from the folder of the group file"
    moved = np.load(folder / "J12_recentred.cs")
    places = np.stack([moved["location/center_x_frac"], moved["location/center_y_frac"]], 1)
    places = places * moved["location/micrograph_shape"][:, ::-1]
    assert np.linalg.norm(places - project.centres_px, axis=1).mean() < 1.3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_several_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = tmp_path / "phantom.mrc"
    write_map(phantom, sample_atoms(chiral_phantom(85.0), 64, 3.875))
    model, second = packaged_file("data_samples/1wcm_ca.pdb.gz"), f"{phantom}:0.45"
    made = make_project(tmp_path / "project", Simulation(model, second, n_micrographs=12, snr=0.5))
    walk(made.folder, monkeypatch, wanted=lambda heading: heading == CLASSES, extract_again=pytest.fail)
    found = evaluated("cryoeq/classes", "truth.star")
    assert found["share_of_good_in_right_class"] > 0.98
    chosen = read_star(Path("cryoeq/class1.star"))
    assert set(chosen.particles["rlnClassNumber"].tolist()) == {"1"}


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(1800)
def test_experimental_particles(
    reference_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ribosome, under the names of the page, without micrographs: what is extracted again is the same images."""
    source, extracted = reference_data / "real_spa" / "ribosome80s_10028", tmp_path / EXTRACTED
    extracted.mkdir(parents=True)
    text = (source / "particles.star").read_text().replace("@particles.mrcs", f"@{EXTRACTED}/particles.mrcs")
    (extracted / "particles.star").write_text(text)
    (extracted / "particles.mrcs").symlink_to(source / "particles.mrcs")
    write_export(tmp_path, read_star(extracted / "particles.star"), 5.36, (1024, 1024))
    again = tmp_path / AGAIN / "particles.star"
    again.parent.mkdir()
    diameter = {"200": "320"}
    walk(
        tmp_path, monkeypatch, wanted=lambda heading: heading != CLASSES, replaced=diameter,
        extract_again=lambda: shutil.copy("cryoeq/good.star", again),
    )  # fmt: skip
    assert read_json(Path("cryoeq/map/job.json"))["verdict"]["answer"] == "found"
    assert read_json(Path(EXPORT) / "map" / "job.json")["verdict"]["answer"] == "found"
    classify, choose, *_ = [
        [diameter.get(word, word) for word in words] for heading, words in commands() if heading == CLASSES
    ]
    assert run(classify[1:]) == 0
    assert run(choose[1:]) == 3, "they are one structure, and the run says so"
    assert "A run of one structure writes no classes" in capsys.readouterr().err
