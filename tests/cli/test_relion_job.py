"""RELION's External job: what its pipeline finds in the job's folder, however the command ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryoeq.cli.main import run
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


ASKED_IN_A_STEP = """
import os, threading
from pathlib import Path
from cryoeq.cli import relion_job
from cryoeq.pipelines import amortized
fit, kill, sent, relion_job._INTERVAL_S = amortized.fit, os.kill, threading.Event(), 0.01
def noted(*arguments):
    kill(*arguments)
    sent.set()
os.kill = noted
def asked_at_the_third(*arguments):
    for event in fit(*arguments):
        if event.done == 3:
            Path("External/job012/RELION_JOB_ABORT_NOW").touch()
            assert sent.wait(60)
        yield event
amortized.fit = asked_at_the_third
"""


def test_a_job_that_is_aborted(project: Path, tiny_training: tuple[str, ...]) -> None:
    command = ["reconstruct", "--o", "External/job012/", "--in_parts", "particles.star", *tiny_training]
    code = f"import sys\nfrom cryoeq.cli.main import main\n{ASKED_IN_A_STEP}\nsys.argv[1:] = {command}\nmain()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 143, ended.stderr
    job = project / "External" / "job012"
    assert ends(job) == ["RELION_JOB_EXIT_ABORTED"]
    assert (job / "checkpoint.pt").is_file()
    assert not (job / "RELION_OUTPUT_NODES.star").exists()


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
