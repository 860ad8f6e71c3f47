"""GPUs by number: one is a device, several are as many processes; their exit code is ours."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.errors import ConfigError, Terminated
from cryoeq.io.text import read_json
from cryoeq.runtime import launch as launcher
from cryoeq.runtime.device import choose_device
from cryoeq.runtime.torchrun import TorchrunEnvironment, torchrun_environment


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the environment of torchrun."""

    def set_environment(rank: int, size: int, local_rank: int) -> None:
        environment = {
            "TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank,
            "TORCHELASTIC_RESTART_COUNT": 2, "GROUP_WORLD_SIZE": 2,
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return set_environment


def test_a_program_by_itself_is_one_process(monkeypatch: pytest.MonkeyPatch, as_process: Callable[..., None]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a scheduler, not of torchrun
    assert torchrun_environment() == TorchrunEnvironment(0, 1, 0, 0, 1)
    as_process(5, 8, 1)
    assert torchrun_environment() == TorchrunEnvironment(5, 8, 1, 2, 2)
    assert not torchrun_environment().is_main_process


@pytest.mark.usefixtures("four_gpus")
def test_gpus_by_number(as_process: Callable[..., None]) -> None:
    assert launcher.device_of("2") == "cuda:2"
    assert launcher.device_of("3,1") is None
    as_process(1, 2, 1)
    assert launcher.device_of("3,1") == "cuda:1"
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:3", "cpu")] == [
        "cuda:1", "cuda:1", "cuda:3", "cpu",
    ]  # fmt: skip
    as_process(5, 8, 5)
    with pytest.raises(ConfigError, match=r"sees 4 CUDA devices on process 5 of this machine\..*fewer processes"):
        choose_device("auto")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("gpus", ["", "a", "0,", "1,1", "0,4", "-1"])
def test_no_such_gpus(gpus: str) -> None:
    with pytest.raises(ConfigError):
        launcher.device_of(gpus)


@pytest.mark.usefixtures("four_gpus")
def test_the_command_is_repeated_in_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, list[str]]] = []

    def launch(count: int, arguments: list[str]) -> int:
        calls.append((count, arguments))
        return 3

    monkeypatch.setattr(launcher, "launch", launch)
    monkeypatch.setattr("sys.argv", ["cryoeq", "reconstruct", "p.star", "--gpu", "0,2,3"])
    assert run(["reconstruct", "p.star", "--gpu", "0,2,3"]) == 3
    assert calls == [(3, ["reconstruct", "p.star", "--gpu", "0,2,3"])]


@pytest.fixture
def entrypoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Lets torch's launcher do something else; what it was called with."""

    def put(outcome: Any) -> list[Any]:
        calls: list[Any] = []

        def elastic_launch(config: Any, program: str) -> Callable[..., None]:
            def start(*arguments: str) -> None:
                calls.append((config, program, arguments))
                if outcome is not None:
                    raise outcome

            return start

        monkeypatch.setattr(launcher, "elastic_launch", elastic_launch)
        return calls

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.getsignal(signal.SIGUSR1)
    yield put
    signal.signal(signal.SIGUSR1, before)


def test_what_is_started(entrypoint: Callable[[Any], list[Any]]) -> None:
    calls = entrypoint(None)
    assert launcher.launch(3, ["reconstruct", "p.star"]) == 0
    ((config, _, arguments),) = calls
    assert (config.nproc_per_node, config.max_nodes, config.max_restarts) == (3, 1, 0)
    assert arguments == ("-m", "cryoeq", "reconstruct", "p.star")


def test_signals_end_as_they_do_for_one_process(entrypoint: Callable[[Any], list[Any]]) -> None:
    entrypoint(launcher.SignalException("", signal.SIGTERM))
    with pytest.raises(Terminated, match="SIGTERM"):
        launcher.launch(2, [])
    entrypoint(launcher.SignalException("", signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        launcher.launch(2, [])


@pytest.mark.slow
def test_two_processes_of_this_machine(
    tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From beginning to end, wrong use, and a signal."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["reconstruct", str(tiny_particles / "particles.star"), *tiny_training, "-o", str(tmp_path / "run")]
    assert launcher.launch(2, command) == 0
    assert read_json(tmp_path / "run" / "job.json")["status"] == "done"
    assert launcher.launch(2, ["reconstruct", "nothing.star", "--device", "cpu", "-o", str(tmp_path / "none")]) == 3
    checkpoint = tmp_path / "long" / "checkpoint.pt"

    def ask() -> None:
        while not checkpoint.exists():
            time.sleep(0.05)
        psutil.Process().send_signal(signal.SIGUSR1)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Terminated):
        launcher.launch(2, [*command[:-1], str(tmp_path / "long"), "--set", "training.epochs=1000"])
    assert read_json(tmp_path / "long" / "job.json")["status"] == "stopped"
