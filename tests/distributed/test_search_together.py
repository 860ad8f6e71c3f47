"""Searches and trainings whose work is shared out: the map of one process, files of the first process alone."""

from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoeq.io.star import read_star
from cryoeq.io.text import read_json

Start = Callable[..., list[ForkServerProcess]]
Wait = Callable[..., list[int]]


def correlation(first: Path, second: Path) -> float:
    return float(np.corrcoef(mrcfile.read(first).ravel(), mrcfile.read(second).ravel())[0, 1])


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_search(
    start_job: Start, codes_of: Wait, tmp_path: Path, searched_particles: Path, searched_run: Path,
    search_options: tuple[str, ...], count: int,
) -> None:  # fmt: skip
    particles, folder = str(searched_particles / "particles.star"), tmp_path / "run"
    processes = start_job(count, ["reconstruct", particles, "-o", str(folder), *search_options])
    assert codes_of(processes) == [0] * count
    for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
        assert correlation(folder / name, searched_run / name) > 0.9999, name
    ours, theirs = read_star(folder / "run_data.star"), read_star(searched_run / "run_data.star")
    for column in ("rlnImageName", "rlnRandomSubset"):
        assert ours.particles[column].tolist() == theirs.particles[column].tolist()
    for column in (
        "rlnAngleRot",
        "rlnAngleTilt",
        "rlnAnglePsi",
        "rlnOriginXAngst",
    ):  # some are ties, decided by rounding
        differ = np.abs(ours.floats(column) - theirs.floats(column)) > 0.01
        assert differ.mean() < 0.02, column
    assert read_json(folder / "job.json")["status"] == "done"
    assert f"{count} processes" in (folder / "run.log").read_text()
    for rank in range(1, count):
        assert (tmp_path / f"said_{rank}").read_text() == ""


def test_known_poses(
    start_job: Start, codes_of: Wait, tmp_path: Path, tiny_particles: Path
) -> None:  # fmt: skip
    from cryoeq.cli.main import run

    command = ["reconstruct", str(tiny_particles / "truth.star"), "--pose-inference", "known", "--device", "cpu", "-o"]
    assert run([*command, str(tmp_path / "alone")]) == 0
    assert codes_of(start_job(2, [*command, str(tmp_path / "run")])) == [0, 0]
    assert correlation(tmp_path / "alone" / "run_class001.mrc", tmp_path / "run" / "run_class001.mrc") > 1 - 1e-6


@pytest.mark.slow
def test_a_hybrid_run(
    start_job: Start, codes_of: Wait, tmp_path: Path, searched_particles: Path, search_options: tuple[str, ...]
) -> None:  # fmt: skip
    from cryoeq.cli.main import run

    particles = str(searched_particles / "particles.star")
    short = [
        "--set",
        "hybrid.training_steps=40",
        "--set",
        "hybrid.final_training_steps=20",
        "--set",
        "hybrid.batch_size=64",
    ]
    command = ["reconstruct", particles, "--pose-inference", "hybrid", *search_options, *short, "-o"]
    assert run([*command, str(tmp_path / "alone")]) == 0
    assert codes_of(start_job(2, [*command, str(tmp_path / "run")])) == [0, 0]
    assert (tmp_path / "run" / "encoder.pt").is_file()
    assert correlation(tmp_path / "alone" / "run_class001.mrc", tmp_path / "run" / "run_class001.mrc") > 0.99


def test_commands_that_do_not_share_are_refused(start_job: Start, codes_of: Wait, tmp_path: Path) -> None:
    assert codes_of(start_job(2, ["doctor"])) == [2, 2]
    assert "2 processes for one cryoeq doctor. only cryoeq reconstruct shares" in (tmp_path / "said_1").read_text()
