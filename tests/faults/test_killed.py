"""Runs that are killed, or asked to stop: no file is damaged, little is lost, and what follows ends as if undisturbed.

The program runs in processes of its own, forked from one that has imported everything already.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.io.star import read_star
from cryoeq.io.text import read_json

# Without pictures, which take half of such a run, and with a file that tells how far the training or the search is.
PREPARE = """
import sys, torch
torch.set_num_threads(1)
from cryoeq.cli.main import main
from cryoeq.pipelines.reconstruct import amortized, checkpoints, class_files, reconstruct
amortized.plot_training = class_files.plot_map = class_files.plot_fsc = reconstruct.write_report = lambda *_, **__: None
sys.stderr = sys.stdout = open(progress + ".said", "a")
fit, save = amortized.fit, checkpoints.save_checkpoint
def tell(text):
    with open(progress, "a") as file:
        file.write(text + "\\n")
def told_fit(*arguments):
    for event in fit(*arguments):
        tell(str(event.done))
        yield event
def told_save(path, state):
    save(path, state)
    if path.parent.name == "checkpoints":
        tell(path.stem)
amortized.fit, checkpoints.save_checkpoint = told_fit, told_save
"""
LIMIT_S = 300.0
pytestmark = pytest.mark.timeout(1200)  # each run starts processes, which a busy machine may keep waiting
Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts ``cryoeq`` with these arguments; its steps are told to the file ``progress``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cryoeq.pipelines.reconstruct.amortized", "cryoeq.pipelines.reconstruct.reconstruct"]
    )

    def run(command: list[str], progress: Path, more: str = "") -> ForkServerProcess:
        code = f"progress = {str(progress)!r}\n{PREPARE}\n{more}\nsys.argv[1:] = {command!r}\nmain()"
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    return run


def code_of(process: ForkServerProcess) -> int:
    """The exit code; a process that does not end is killed, which fails."""
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"still running after {LIMIT_S:g} s")
    return process.exitcode


def told(progress: Path) -> list[str]:
    return progress.read_text().split() if progress.exists() else []


def stop_after(process: ForkServerProcess, progress: Path, count: int, number: int, delay_s: float = 0.0) -> None:
    """Send a signal when so many more steps were told, or leave it if the process ends before."""
    wanted, end = len(told(progress)) + count, time.monotonic() + LIMIT_S
    while len(told(progress)) < wanted and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay_s)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, number)


def assert_nothing_is_damaged(folder: Path) -> None:
    """Files have their names only when they are whole."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".pt":
            assert torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            assert read_json(path)
        elif path.suffix == ".mrc":
            assert mrcfile.validate(path)
        elif path.suffix == ".star" and path.name != "run_fsc.star":
            assert len(read_star(path))


def assert_same_results(folder: Path, expected: Path) -> None:
    names = sorted(path.name for path in expected.glob("*.mrc"))
    assert len(names) >= 3
    assert sorted(path.name for path in folder.glob("*.mrc")) == names
    for name in names:
        np.testing.assert_array_equal(mrcfile.read(folder / name), mrcfile.read(expected / name), err_msg=name)
    assert (folder / "run_data.star").read_bytes() == (expected / "run_data.star").read_bytes()
    assert read_json(folder / "job.json")["status"] == "done"
    assert not [path for path in folder.iterdir() if ".tmp" in path.name]


@pytest.fixture(params=["training", "search"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_training: tuple[str, ...], search_options: tuple[str, ...]
) -> tuple[list[str], Path]:
    """A command that writes to ``tmp_path / "run"``, and the folder of the same run undisturbed."""
    is_training = request.param == "training"
    particles = request.getfixturevalue("tiny_particles" if is_training else "searched_particles")
    expected = request.getfixturevalue("tiny_run" if is_training else "searched_run")
    options = tiny_training if is_training else search_options
    return ["reconstruct", str(particles / "particles.star"), "-o", str(tmp_path / "run"), *options], expected


def kill_and_resume(start: Start, case: tuple[list[str], Path], folder: Path, seed: int, kills: int) -> None:
    command, expected = case
    random = np.random.default_rng(seed)
    progress = folder.with_name("progress")
    steps = 9 if "amortized" in command else 5
    for _ in range(kills):
        process = start([*command, "--resume"], progress)
        stop_after(process, progress, int(random.integers(0, steps)), signal.SIGKILL, float(random.uniform(0, 0.1)))
        assert code_of(process) in {-signal.SIGKILL, 0}
        assert_nothing_is_damaged(folder)
        # Nothing that was told before the last step is lost.
        for name in told(progress)[:-1]:
            if not name.isdigit() and (folder / "job.json").exists() and process.exitcode:
                assert (folder / "checkpoints" / f"{name}.pt").is_file()
        seen = [int(name) for name in told(progress) if name.isdigit()]
        if len(seen) > 1:
            assert torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"] >= seen[-1] - 1
    assert code_of(start([*command, "--resume"], progress)) == 0
    assert_same_results(folder, expected)
    assert not (folder / "checkpoints").exists()


def test_killed_twice(start: Start, case: tuple[list[str], Path], tmp_path: Path) -> None:
    kill_and_resume(start, case, tmp_path / "run", seed=4, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_killed_at_random_moments(start: Start, case: tuple[list[str], Path], tmp_path: Path, seed: int) -> None:
    kill_and_resume(start, case, tmp_path / "run", seed=seed, kills=1)


def test_asked_to_stop(start: Start, case: tuple[list[str], Path], tmp_path: Path) -> None:
    """By a scheduler that is about to take the node away."""
    command, expected = case
    folder, progress = tmp_path / "run", tmp_path / "progress"
    number, rarely = signal.SIGTERM, []
    if "amortized" in command:
        number, rarely = signal.SIGUSR1, ["--set", "training.checkpoint_seconds=1000"]
    process = start([*command, *rarely], progress)
    stop_after(process, progress, 2, number)
    asked_s = time.monotonic()
    assert code_of(process) == 143
    assert time.monotonic() - asked_s < 30
    assert f"stopped by {number.name}" in progress.with_name("progress.said").read_text()
    assert read_json(folder / "job.json")["status"] == "stopped"
    assert_nothing_is_damaged(folder)
    assert code_of(start([*command, "--resume"], progress)) == 0
    assert "Resumed" in (folder / "run.log").read_text()
    assert_same_results(folder, expected)


FULL = """
import resource
step_told = tell
def tell(text):
    step_told(text)
    if text == "5":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_a_checkpoint_that_finds_no_room(
    start: Start, tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...], tiny_run: Path
) -> None:
    folder, progress = tmp_path / "run", tmp_path / "progress"
    command = ["reconstruct", str(tiny_particles / "particles.star"), "-o", str(folder), *tiny_training]
    assert code_of(start(command, progress, FULL)) == 2
    said = progress.with_name("progress.said").read_text()
    assert "checkpoint.pt could not be written: the file is larger than is allowed" in said
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"] == 4
    assert read_json(folder / "job.json")["status"] == "failed"
    assert code_of(start([*command, "--resume"], progress)) == 0
    assert_same_results(folder, tiny_run)
