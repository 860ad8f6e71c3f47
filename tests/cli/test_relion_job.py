"""RELION's External job: what its pipeline finds in the job's folder, however the command ends."""

import signal
import threading
from pathlib import Path

import pytest

from cryoeq.cli import relion_job
from cryoeq.cli.main import run
from cryoeq.cli.relion_job import run_for_relion
from cryoeq.io.text import read_json

ENDS = ("RELION_JOB_EXIT_SUCCESS", "RELION_JOB_EXIT_FAILURE", "RELION_JOB_EXIT_ABORTED")


def ends(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("RELION_JOB_*"))


@pytest.fixture
def project(tmp_path: Path, tiny_particles: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A RELION project, as its External jobs see it: they run in it, and their folder is there with RELION's files."""
    monkeypatch.chdir(tmp_path)
    job = tmp_path / "External" / "job012"
    job.mkdir(parents=True)
    (job / "job.star").write_text("data_job\n\n_rlnJobTypeLabel relion.external\n")
    (job / "run.out").touch()
    (tmp_path / "particles.star").write_text((tiny_particles / "truth.star").read_text())
    (tmp_path / "particles.mrcs").symlink_to(tiny_particles / "particles.mrcs")
    return tmp_path


@pytest.mark.usefixtures("without_pictures", "one_thread")
def test_a_job_that_succeeds(project: Path, tiny_particles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--o", "External/job012/", "--in_parts", "particles.star", "--in_3dref", "ref.mrc", "--in_mask", "mask.mrc"]
    (project / "ref.mrc").symlink_to(project / "External" / "job001.mrc")
    import mrcfile
    import numpy as np

    with mrcfile.new(project / "mask.mrc", np.ones((16, 16, 16), np.float32)) as mask:
        mask.voxel_size = 5.0
    first = ["reconstruct", *call[:4], "--pose_inference", "known", "--j", "1"]
    assert run(first) == 0
    job = project / "External" / "job012"
    assert ends(job) == ["RELION_JOB_EXIT_SUCCESS"]
    nodes = (job / "RELION_OUTPUT_NODES.star").read_text().split()
    assert nodes[:2] == ["data_output_nodes", "loop_"]
    assert nodes[2:6] == ["_rlnPipeLineNodeName", "#1", "_rlnPipeLineNodeTypeLabel", "#2"]
    assert dict(zip(nodes[6::2], nodes[7::2], strict=True)) == {
        "External/job012/run_data.star": "ParticleGroupMetadata.star.relion",
        "External/job012/run_class001.mrc": "DensityMap.mrc",
        "External/job012/run_half1_class001_unfil.mrc": "DensityMap.mrc.halfmap",
        "External/job012/run_half2_class001_unfil.mrc": "DensityMap.mrc.halfmap",
    }
    assert read_json(job / "job.json")["settings"]["threads"] == 1
    # A reference and a mask, and RELION's Continue: the same folder again.
    (job / "run_class001.mrc").rename(project / "External" / "job001.mrc")
    assert run([*first, *call[4:]]) == 0
    assert ends(job) == ["RELION_JOB_EXIT_SUCCESS"]
    assert read_json(job / "job.json")["results"]["reference_resolution_angstrom"] == pytest.approx(10.0)
    assert "MaskedMaps" in (job / "run_fsc.star").read_text()
    assert "agrees with the reference to (FSC 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--in_parts", "none.star"], 3), (["--in_parts", "particles.star", "--in_movies", "x"], 2)],
)
def test_a_job_that_fails(project: Path, options: list[str], code: int) -> None:
    job = project / "External" / "job012"
    (job / ENDS[0]).touch()  # of the time before
    assert run(["reconstruct", "--o", "External/job012", *options]) == code
    assert ends(job) == ["RELION_JOB_EXIT_FAILURE"]


def test_particles_are_needed_and_other_commands_leave_no_marker(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reconstruct", "-o", "x"]) == 2
    assert "particles" in capsys.readouterr().err
    assert run(["reconstruct", "--i", "none.star", "--o", "x"]) == 3
    assert not list(project.glob("x/RELION*"))


def test_a_job_that_is_aborted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGTERM, which elsewhere is shown to end a run after a checkpoint."""
    monkeypatch.setattr(relion_job, "_INTERVAL_S", 0.01)
    job, asked = project / "External" / "job012", threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def command() -> int:
        (job / "RELION_JOB_ABORT_NOW").touch()
        assert asked.wait(60)
        return 143

    try:
        assert run_for_relion(["reconstruct", "--output=External/job012", "--in-parts", "p.star"], command) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ends(job) == ["RELION_JOB_EXIT_ABORTED"]


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        (["reconstruct", "--i", "p.star", "--o", "d/"], ["reconstruct", "p.star", "--output", "d/"]),
        (["reconstruct", "--i=p.star", "--Apix=1.5"], ["reconstruct", "p.star", "--angpix=1.5"]),
        (["fsc", "--i", "a.mrc", "--i2", "b.mrc", "--auto_mask"], ["fsc", "a.mrc", "b.mrc", "--mask=auto"]),
        (["reconstruct", "--random_seed", "3", "--j", "4"], ["reconstruct", "--seed", "3", "--threads", "4"]),
        (["reconstruct", "p", "--in_mask", "m_1.mrc"], ["reconstruct", "p", "--mask", "m_1.mrc"]),
    ],
)
def test_names_of_other_programs(typed: list[str], understood: list[str]) -> None:
    from cryoeq.cli.main import normalise

    assert normalise(typed) == understood
