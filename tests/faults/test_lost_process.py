"""One process of several is killed, or asked to stop: all end soon and say why; the job goes on from its checkpoint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cryoeq.io.mrc import read_map
from cryoeq.io.text import read_json

Start = Callable[..., list[ForkServerProcess]]
Wait = Callable[..., list[int]]
pytestmark = pytest.mark.timeout(600)
LIMIT_S = 300.0
# After a step the second process waits for its fate, and so the first for the second.
HALT = """
import time
fit = amortized.fit
def halting(*arguments):
    for event in fit(*arguments):
        if event.done == 4 and os.environ["RANK"] == "1":
            open({halted!r}, "w").close()
            time.sleep(600 if {forever} else 1)
        yield event
amortized.fit = halting
"""


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def step_of(folder: Path) -> int:
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert isinstance(step, int)
    return step


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to stop"])
def test_one_of_two_processes(
    start_job: Start, codes_of: Wait, tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...],
    number: signal.Signals,
) -> None:  # fmt: skip
    folder, halted = tmp_path / "run", tmp_path / "halted"
    command = ["reconstruct", str(tiny_particles / "particles.star"), "-o", str(folder), *tiny_training]
    is_killed = number == signal.SIGKILL
    processes = start_job(
        2, command, HALT.replace("{halted!r}", repr(str(halted))).replace("{forever}", str(is_killed))
    )
    wait_until(halted.exists)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, number)
    began_s = time.monotonic()
    codes = codes_of(processes)
    assert time.monotonic() - began_s < 60
    said = [path.read_text() if (path := tmp_path / f"said_{rank}").exists() else "" for rank in (0, 1)]
    if is_killed:
        assert codes == [4, -signal.SIGKILL]
        assert "process 1 of 2 lost touch with the others" in said[0]
        assert "--resume" in said[0]
    else:  # both after the same step
        assert codes == [143, 143]
        assert "process 1 of 2: stopped by a signal to another process" in said[0]
        assert "process 2 of 2: stopped by SIGTERM" in said[1]
    assert step_of(folder) == 4
    assert read_json(folder / "job.json")["status"] == ("failed" if is_killed else "stopped")
    assert codes_of(start_job(2, [*command, "--resume"])) == [0, 0]
    assert "Resumed at step 4" in (folder / "run.log").read_text()
    assert read_json(folder / "job.json")["status"] == "done"


@pytest.mark.slow
def test_torchrun_restarts_a_job(tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]) -> None:
    """A process is killed; torchrun ends the other and starts both again, which go on from the checkpoint."""
    folder = tmp_path / "run"
    command = [
        "reconstruct",
        str(tiny_particles / "particles.star"),
        *tiny_training,
        "--set",
        "training.epochs=40",
        "-o",
    ]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m",
    ]  # fmt: skip
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen([*torchrun, "cryoeq", *command, str(folder)], stdout=said, stderr=said)
        wait_until(lambda: (folder / "checkpoint.pt").exists() and step_of(folder) > 8)
        processes = [child for child in psutil.Process(job.pid).children() if "cryoeq" in " ".join(child.cmdline())]
        ranks = {child.environ()["RANK"]: child for child in processes}
        ranks["1"].kill()
        assert job.wait(LIMIT_S) == 0, (tmp_path / "said").read_text()
    assert "lost touch with the others" in (tmp_path / "said").read_text()
    assert "Resumed at step" in (folder / "run.log").read_text()
    assert read_json(folder / "job.json")["status"] == "done"
    whole = [*torchrun, "cryoeq", *command, str(tmp_path / "undisturbed")]
    subprocess.run(whole, check=True, capture_output=True, timeout=LIMIT_S)
    maps = [read_map(tmp_path / name / "run_class001.mrc").values for name in ("run", "undisturbed")]
    np.testing.assert_array_equal(*maps)
