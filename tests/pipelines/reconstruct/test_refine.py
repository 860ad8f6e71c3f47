"""``cryoeq refine``, from a map or from poses; and the refinement at the full box as the last part of a search."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.poses import compare_poses
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

QUICK = ("--set", "search.half_sets.iterations=1", "--set", "full_box.iterations=2", "--seed", "4", "-j", "1")
POSES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset")
Refine = Callable[..., int]


@pytest.fixture
def refine(searched_particles: Path, tmp_path: Path) -> Refine:
    def call(*options: str, star: Path | None = None, output: str = "run") -> int:
        given = star or searched_particles / "particles.star"
        return run(["refine", str(given), "-o", str(tmp_path / output), *QUICK, *options])

    return call


def median_error_deg(star: Path, truth: Path) -> float:
    found, true = (read_particles(path, datadir=truth.parent, with_poses=True).table.poses for path in (star, truth))
    assert found is not None
    assert true is not None
    return math.degrees(float(compare_poses(found, true).rotation_rad.median()))


def same_poses(first: Path, second: Path) -> bool:
    ours, theirs = (read_star(path / "run_data.star").particles for path in (first, second))
    return all(ours[column].tolist() == theirs[column].tolist() for column in POSES)


@pytest.mark.slow
def test_a_map_gives_poses_whatever_its_grey_scale(refine: Refine, searched_particles: Path, tmp_path: Path) -> None:
    truth = read_map(searched_particles / "truth_volume.mrc")
    errors = []
    for factor in (1.0, 50.0):
        write_map(tmp_path / "ref.mrc", Volume(factor * truth.values, truth.pixel_size_angstrom))
        output = f"by_{factor:g}"
        assert refine("--ref", str(tmp_path / "ref.mrc"), "--ini-high", "25", output=output) == 0
        errors.append(median_error_deg(tmp_path / output / "run_data.star", searched_particles / "truth.star"))
    assert max(errors) < 8
    job = read_json(tmp_path / "by_1" / "job.json")
    assert job["verdict"]["answer"] == "found"
    shared = [reason["text"] for reason in job["verdict"]["reasons"] if "shared a reference" in reason["text"]]
    assert len(shared) == 1
    assert "25 Å up to which both half sets" in shared[0]


@pytest.mark.slow
def test_neither_poses_nor_half_sets_are_seen_unless_asked_for(
    refine: Refine, searched_particles: Path, tmp_path: Path
) -> None:
    ref = ("--ref", str(searched_particles / "truth_volume.mrc"))
    truth = searched_particles / "truth.star"
    assert refine(*ref, output="blind") == 0
    assert refine(*ref, star=truth, output="seeing") == 0
    assert same_poses(tmp_path / "blind", tmp_path / "seeing")
    assert refine(*ref, "--keep-half-sets", star=truth, output="kept") == 0
    kept = read_star(tmp_path / "kept" / "run_data.star").particles["rlnRandomSubset"].tolist()
    assert kept == read_star(truth).particles["rlnRandomSubset"].tolist()


@pytest.mark.slow
def test_poses_of_the_file_are_refined_without_a_map(refine: Refine, searched_particles: Path, tmp_path: Path) -> None:
    truth = searched_particles / "truth.star"
    stack = read_particles(truth, with_poses=True)
    poses = stack.table.poses
    assert poses is not None
    axes = torch.nn.functional.normalize(torch.randn(len(poses), 3, generator=torch.Generator().manual_seed(2)), dim=1)
    moved = type(poses)(rotation_from_vector(0.12 * axes) @ poses.rotations.float(), poses.shifts_angstrom.float())
    for name in ("particles.mrcs", "truth.star"):
        shutil.copy(searched_particles / name, tmp_path / name)
    write_particle_star(tmp_path / "moved.star", stack.star, moved, confidence=torch.full((len(poses),), 0.01))
    assert refine("--local", "--ini-high", "25", star=tmp_path / "moved.star") == 0
    found = median_error_deg(tmp_path / "run" / "run_data.star", truth)
    assert found < 0.8 * median_error_deg(tmp_path / "moved.star", truth)
    assert "rlnMaxValueProbDistribution" not in read_star(tmp_path / "run" / "run_data.star").particles, "of old poses"
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "half-set refinement" not in log
    assert "full-box refinement 2/2" in log


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "give a map with --ref, or --local"),
        (("--local",), 3, "column rlnAngleRot is missing"),
        (("--ref", "none.mrc"), 3, "none.mrc"),
    ],
)
def test_what_cannot_be_refined_is_refused(
    refine: Refine, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, said: str
) -> None:
    assert refine(*options) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_settings_of_a_search_do_not_make_a_search_of_it(
    refine: Refine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.yaml").write_text("pose_inference: search\n", encoding="utf-8")
    assert refine("--config", str(tmp_path / "search.yaml")) == 2
    assert "give a map with --ref, or --local" in " ".join(capsys.readouterr().err.split())


def test_half_sets_that_are_not_there_are_refused_before_the_run(
    refine: Refine, searched_particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refine("--ref", str(searched_particles / "truth_volume.mrc"), "--keep-half-sets") == 3
    assert "does not name two half sets" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_map_without_the_symmetry_that_is_imposed_is_doubted(
    refine: Refine, searched_particles: Path, tmp_path: Path
) -> None:
    assert refine("--ref", str(searched_particles / "truth_volume.mrc"), "--sym", "C3") in {0, 4}
    assert "does not have the symmetry C3 about the usual axes" in (tmp_path / "run" / "run.log").read_text("utf-8")


def test_poses_in_another_frame_than_the_symmetry_are_refused(
    searched_particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D2 in its own frame is taken; turned by half a radian it is no symmetry about the usual axes."""
    molecule, stack = searched_particles.parent / "molecule.mrc", tmp_path / "stack"
    simulation = ["-n", "120", "--snr", "1", "--shift-sigma", "4", "--sym", "D2", "--device", "cpu"]
    assert run(["simulate", str(molecule), "-o", str(stack), *simulation]) == 0
    given = read_particles(stack / "truth.star", with_poses=True)
    poses = given.table.poses
    assert poses is not None
    turn = rotation_from_vector(torch.tensor([0.5, 0.2, 0.1])).to(poses.rotations)
    write_particle_star(stack / "turned.star", given.star, replace(poses, rotations=poses.rotations @ turn))
    local = ["--local", "--sym", "D2", "--set", "full_box.iterations=0", "-j", "1"]
    assert run(["refine", str(stack / "turned.star"), "-o", str(tmp_path / "run"), *local]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the map of the given poses does not have the symmetry D2 about the usual axes" in said
    assert not (tmp_path / "run").exists()
    assert run(["refine", str(stack / "truth.star"), "-o", str(tmp_path / "run"), *local]) in {0, 4}
    assert "does not have the symmetry" not in (tmp_path / "run" / "run.log").read_text(encoding="utf-8")


def test_a_refinement_runs_in_one_process_and_says_so(refine: Refine, capsys: pytest.CaptureFixture[str]) -> None:
    assert refine("--local", "--gpu", "0,1") == 2
    assert "a refinement runs in one process. Give --device cuda:N" in " ".join(
        capsys.readouterr().err.split()
    ).replace("A refinement", "a refinement")


@pytest.mark.slow
def test_a_search_in_a_smaller_box_ends_at_the_full_one(
    searched_particles: Path, search_options: tuple[str, ...], tmp_path: Path
) -> None:
    """Unless the limit, or the setting, keeps it from it."""
    star, search = str(searched_particles / "particles.star"), ("-D", "16", "-j", "1", *search_options)
    assert run(["reconstruct", star, "-o", str(tmp_path / "run"), *search]) == 0
    log = (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    assert "full-box refinement 1/" in log
    assert log.index("global re-alignment") < log.index("full-box refinement 0/") < log.index("reconstructing")
    off = ("--set", "full_box.iterations=0")
    assert run(["reconstruct", star, "-o", str(tmp_path / "off"), *search, *off]) == 0
    assert "full-box refinement" not in (tmp_path / "off" / "run.log").read_text(encoding="utf-8")
    truth = searched_particles / "truth.star"
    refined, left = (median_error_deg(tmp_path / name / "run_data.star", truth) for name in ("run", "off"))
    assert refined < 1.1 * left


@pytest.mark.slow
def test_symmetry_is_imposed_about_the_usual_axes(searched_particles: Path, tmp_path: Path) -> None:
    molecule, stack = searched_particles.parent / "molecule.mrc", tmp_path / "stack"
    simulation = ["-n", "200", "--snr", "1", "--shift-sigma", "4", "--sym", "D2", "--device", "cpu"]
    assert run(["simulate", str(molecule), "-o", str(stack), *simulation]) == 0
    start = ["--ref", str(stack / "truth_volume.mrc"), "--sym", "D2"]
    assert run(["refine", str(stack / "particles.star"), "-o", str(tmp_path / "run"), *start, *QUICK]) == 0
    assert "does not have the symmetry" not in (tmp_path / "run" / "run.log").read_text(encoding="utf-8")
    found, true = (
        read_particles(path, datadir=stack, with_poses=True).table.poses
        for path in (tmp_path / "run" / "run_data.star", stack / "truth.star")
    )
    assert found is not None
    assert true is not None
    assert math.degrees(float(compare_poses(found, true, symmetry="D2").rotation_rad.median())) < 8
    volume = read_map(tmp_path / "run" / "run_class001.mrc").values
    turned = volume.flip(0, 1).roll((1, 1), (0, 1))  # half a turn about x
    assert float(fourier_shell_correlation(volume, turned)[1:8].min()) > 0.99
