"""A command runs in a fork of this process, which has imported everything, with limits of time and memory."""

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CPU_LIMIT_S = 20
WALL_LIMIT_S = 240.0  # on a machine that is shared
ADDRESS_SPACE = 10 * 2**30
RESIDENT = 3 * 2**30
LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: exit code, or minus the signal.
        said: what it wrote to standard error.
        results: what it wrote to standard output.
        cpu_s: its CPU time.
        peak_bytes: its largest resident memory.
        is_late: whether it ran past a limit of time.
    """

    code: int
    said: str
    results: str
    cpu_s: float
    peak_bytes: int
    is_late: bool


@dataclass
class Running:
    """A child that has not ended yet."""

    pid: int
    folder: Path
    started_s: float

    def outcome(self) -> Outcome | None:
        """How it ended, None while it runs; past the limit it is killed."""
        is_late = time.monotonic() - self.started_s > WALL_LIMIT_S
        if is_late:
            os.kill(self.pid, signal.SIGKILL)
        pid, status, used = os.wait4(self.pid, 0 if is_late else os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        said, results = (
            (self.folder / f".{name}").read_text(encoding="utf-8", errors="replace") for name in ("stderr", "stdout")
        )
        is_late = is_late or code == -signal.SIGXCPU
        return Outcome(code, said, results, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, is_late)


def start(command: tuple[str, ...], folder: Path, *, before: Callable[[], None] | None = None) -> Running:
    """Run ``cryoeq`` with these words in a folder.

    Args:
        command: the words.
        folder: working folder; what is said lies in ``.stderr`` and ``.stdout`` of it afterwards.
        before: called in the child first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return Running(child, folder, time.monotonic())
    code = 1
    try:
        _confine(folder)
        if before is not None:
            before()
        from cryoeq.cli.main import run

        sys.argv = ["cryoeq", *command]
        code = run(command)
    except BaseException:  # noqa: BLE001 - nothing of the child may go on in the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _confine(folder: Path) -> None:
    """Limits, working folder, and files for what is said."""
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder)
    import tempfile

    tempfile.tempdir = None
    for name, number in ((".stdout", 1), (".stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(command: tuple[str, ...], folder: Path, *, before: Callable[[], None] | None = None) -> Outcome:
    """Run one command and wait for its end."""
    return next(finished([start(command, folder, before=before)]))[1]


def finished(running: list[Running]) -> Iterator[tuple[Running, Outcome]]:
    """Children that have ended, as they end; they are taken from the list."""
    while running:
        for child in list(running):
            if (outcome := child.outcome()) is not None:
                running.remove(child)
                yield child, outcome
        time.sleep(0.003)
