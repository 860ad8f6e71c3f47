"""A run that was stopped at any moment goes on, and ends where the uninterrupted one ends."""

import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.io.text import read_json, write_json
from older_runs import flat, with_older_keys

RESULTS = ("run_data.star", "run_fsc.star", "run_fsc.xml")
pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

MAPS = (
    "run_class001.mrc",
    "run_half1_class001_unfil.mrc",
    "run_half2_class001_unfil.mrc",
    "decoder_class001.mrc",
)


@pytest.fixture
def command(tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]) -> list[str]:
    return ["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path / "run"), *tiny_training]


@pytest.fixture
def stopped(tmp_path: Path, tiny_run: Path) -> Path:
    """A copy of the run, stopped before its maps were written, to be damaged or resumed."""
    copied = shutil.copytree(tiny_run, tmp_path / "run")
    write_json(copied / "job.json", read_json(copied / "job.json") | {"status": "stopped"})
    return copied


KILLED_WHILE_WRITING = """
import os, signal
from cryoeq.io import atomic
force_to_disk, seen = atomic._force_to_disk, []
def kill_at_the_fifth(path):
    force_to_disk(path)
    seen.extend(["one more"] * path.name.startswith(".checkpoint."))
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
atomic._force_to_disk = kill_at_the_fifth
"""

TERMINATED_IN_A_STEP = """
import os, signal
from cryoeq.pipelines.reconstruct import amortized
fit = amortized.fit
def stop_at_the_fifth(*arguments):
    for event in fit(*arguments):
        if event.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        yield event
amortized.fit = stop_at_the_fifth
"""


Until = Callable[[str, list[str]], tuple[int, str]]


@pytest.fixture
def run_until(
    start_code: Callable[[str], ForkServerProcess], codes_of: Callable[..., list[int]], tmp_path: Path
) -> Until:
    """The program in a process of its own, with a signal to itself at a moment that does not depend on the machine.

    Its exit code, and what it says.
    """

    def run_it(stop: str, command: list[str]) -> tuple[int, str]:
        said = tmp_path / "said"
        redirected = f"sys.stderr = sys.stdout = open({str(said)!r}, 'a', buffering=1)"
        start = f"import sys, torch\ntorch.set_num_threads(1)\n{redirected}\n{stop}"
        (code,) = codes_of([start_code(f"{start}\nfrom cryoeq.cli.main import main\nsys.argv[1:] = {command}\nmain()")])
        return code, said.read_text()

    return run_it


def steps_of(folder: Path) -> int:
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert isinstance(step, int)
    return step


def assert_same_results(folder: Path, expected: Path) -> None:
    for name in RESULTS:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    for name in MAPS:
        np.testing.assert_array_equal(mrcfile.read(folder / name), mrcfile.read(expected / name), err_msg=name)


def test_killed_while_a_checkpoint_is_written(
    tmp_path: Path, command: list[str], tiny_run: Path, run_until: Until
) -> None:
    folder = tmp_path / "run"
    assert run_until(KILLED_WHILE_WRITING, command)[0] == -signal.SIGKILL
    assert steps_of(folder) == 4
    assert not list(folder.glob("run_*.mrc"))
    assert read_json(folder / "job.json")["status"] == "running"
    assert run([*command, "--resume"]) == 0
    assert_same_results(folder, tiny_run)
    job = read_json(folder / "job.json")
    assert (job["status"], len(job["resumed"])) == ("done", 1)
    assert len((folder / "command.txt").read_text().splitlines()) == 2
    assert "Resumed at step 4." in (folder / "run.log").read_text()


def test_terminated_during_a_step(tmp_path: Path, command: list[str], tiny_run: Path, run_until: Until) -> None:
    folder = tmp_path / "run"
    rarely = ["--set", "training.checkpoint_seconds=1000"]  # the checkpoint is then made for the signal's sake
    code, said = run_until(TERMINATED_IN_A_STEP, [*command, *rarely])
    assert said.splitlines()[-1] == "cryoeq: stopped by SIGTERM. What was saved stays; --resume goes on from there."
    assert code == 143
    assert "Traceback" not in said
    assert steps_of(folder) == 5
    assert read_json(folder / "job.json")["status"] == "stopped"
    assert not [path for path in folder.iterdir() if ".tmp" in path.name]
    assert run([*command, "--resume"]) == 0
    assert_same_results(folder, tiny_run)


@pytest.mark.parametrize("is_there", [False, True])
def test_resuming_nothing_starts_a_new_run(
    tmp_path: Path, command: list[str], tiny_run: Path, is_there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_there:
        (tmp_path / "run").mkdir()
    assert run([*command, "--resume"]) == 0
    assert "Resumed" not in capsys.readouterr().err
    assert_same_results(tmp_path / "run", tiny_run)


def test_a_finished_run_has_nothing_to_resume(
    tmp_path: Path, command: list[str], tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for words in (command, ["reconstruct", "-o", str(folder)]):
        assert run([*words, "--resume"]) == 0
        said = capsys.readouterr().err
        assert "Nothing to resume" in said
        assert f"Verdict: {read_json(folder / 'job.json')['verdict']['answer']}: " in said
    assert run([*command, "--resume", "--seed", "5"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_run_without_a_structure_stays_a_failure(
    tmp_path: Path, command: list[str], tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    job = read_json(folder / "job.json")
    write_json(folder / "job.json", job | {"verdict": job["verdict"] | {"answer": "not found"}})
    assert run([*command, "--resume"]) == 4
    assert "found no structure. Read its report.html" in capsys.readouterr().err


def test_a_finished_run_whose_results_are_lost_makes_them_again(
    tmp_path: Path, command: list[str], tiny_run: Path
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for name in (*RESULTS, *MAPS):
        (folder / name).unlink()
    assert run([*command, "--resume"]) == 0
    assert_same_results(folder, tiny_run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "encoder.heads=3"], "encoder.heads was 2, and is now 3"),
        (["--seed", "5"], "seed was 4, and is now 5"),
        (["--set", "encoder.channels=[8,32]"], "encoder.channels was None, and is now [8, 32]"),
        (["--pose-inference", "known"], "pose_inference was amortized, and is now known"),
    ],
)
def test_other_settings_cannot_go_on(
    stopped: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
    tiny_particles: Path,
) -> None:
    if "known" in options:
        command[1] = str(tiny_particles / "truth.star")
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.name != "run.log"}
    assert run([*command, *options, "--resume"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in message
    named = options[0] if options[0] != "--set" else "the setting"
    assert f"Leave {named} out" in message
    # The run that was there, its record included, is as it was.
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.name != "run.log"} == before


def test_settings_that_change_nothing_may_differ(stopped: Path, command: list[str], tiny_particles: Path) -> None:
    """The particles may have moved, and checkpoints be wanted less often."""
    elsewhere = shutil.copytree(tiny_particles, stopped.parent / "elsewhere")
    command[1] = str(elsewhere / "particles.star")
    options = ["--set", "training.checkpoint_seconds=60", "--datadir", str(elsewhere)]
    assert run([*command, *options, "--resume"]) == 0


def fewer_particles(folder: Path, tiny_particles: Path) -> list[str]:
    lines = (tiny_particles / "particles.star").read_text().splitlines()
    rows = [number for number, line in enumerate(lines) if "@" in line]
    kept = [line for number, line in enumerate(lines) if number not in rows[-8:]]
    (folder / "fewer.star").write_text("\n".join(kept) + "\n")
    return ["--datadir", str(tiny_particles)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-999]), "cannot be read as a checkpoint"),
        (lambda path: path.write_bytes(b"nothing of the kind"), "cannot be read as a checkpoint"),
        (lambda path: torch.save({"weights": torch.zeros(3)}, path), "does not hold the state of a reconstruction"),
    ],
    ids=["truncated", "other bytes", "other content"],
)
def test_a_damaged_checkpoint(
    stopped: Path, command: list[str], capsys: pytest.CaptureFixture[str], damage: object, said: str
) -> None:
    assert callable(damage)
    damage(stopped / "checkpoint.pt")
    assert run([*command, "--resume"]) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint.pt" in message
    assert said in message
    assert "new run" in message


@pytest.mark.parametrize("record", ["{", "[]", '{"program": "another"}', '{"settings": 3}'])
def test_the_record_of_another_program(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str], record: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text(record)
    assert run([*command, "--resume"]) == 3
    assert "job.json is not the record of a run of cryoeq" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["job.json"]
    if '"settings"' not in record:
        assert run(["reconstruct", "-o", str(tmp_path / "run"), "--resume"]) == 2
        assert "job.json is not the record of a run" in capsys.readouterr().err


def test_other_particles_cannot_go_on(
    stopped: Path, command: list[str], tiny_particles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = fewer_particles(stopped.parent, tiny_particles)
    command[1] = str(stopped.parent / "fewer.star")
    assert run([*command, *options, "--resume"]) == 3
    assert "is of 48 particles" in (message := capsys.readouterr().err)
    assert "fewer.star holds 40" in message


def test_a_stray_checkpoint_is_no_start(tmp_path: Path, command: list[str], tiny_run: Path) -> None:
    """Only --resume looks at it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"of another program")
    assert run(command) == 0
    assert_same_results(tmp_path / "run", tiny_run)


def test_a_training_of_version_0_1_goes_on(tmp_path: Path, command: list[str], tiny_run: Path, stopped: Path) -> None:
    """Its record and its checkpoint hold the settings under their older names."""
    job = read_json(stopped / "job.json")
    write_json(stopped / "job.json", job | {"settings": with_older_keys(job["settings"])})
    checkpoint = torch.load(stopped / "checkpoint.pt", weights_only=True)
    assert "loss.wta_epsilon" in checkpoint["settings"]
    checkpoint["settings"] = flat(with_older_keys(checkpoint["settings"]))
    assert "loss.leak" in checkpoint["settings"]
    torch.save(checkpoint, stopped / "checkpoint.pt")
    for name in (*RESULTS, *MAPS):
        (stopped / name).unlink()
    assert run([*command, "--resume"]) == 0
    assert "Resumed at step 9." in (stopped / "run.log").read_text()
    assert read_json(stopped / "job.json")["settings"]["loss"].keys() == job["settings"]["loss"].keys()
    assert_same_results(stopped, tiny_run)


def test_resume_alone_goes_on_with_all_that_the_record_holds(
    tmp_path: Path, command: list[str], tiny_run: Path, run_until: Until
) -> None:
    """Particles, mode, settings and seed."""
    folder = tmp_path / "run"
    assert run_until(KILLED_WHILE_WRITING, command)[0] == -signal.SIGKILL
    assert run(["reconstruct", "-o", str(folder), "--resume"]) == 0
    assert "Resumed at step 4." in (folder / "run.log").read_text()
    assert_same_results(folder, tiny_run)


def test_resume_alone_may_be_given_what_changes_nothing(stopped: Path, tmp_path: Path) -> None:
    assert run(["reconstruct", "-o", str(stopped), "--resume", "--threads", "1"]) == 0
    assert run(["reconstruct", "-o", str(stopped), "--resume", "--sym", "C2"]) == 2


def test_resume_alone_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconstruct", "-o", str(tmp_path / "none"), "--resume"]) == 2
    assert f"{tmp_path / 'none'} holds no run to resume. Check -o, or give PARTICLES" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_needs_particles(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconstruct"]) == 2
    assert "No particles given. Usage: cryoeq reconstruct PARTICLES.star" in capsys.readouterr().err
