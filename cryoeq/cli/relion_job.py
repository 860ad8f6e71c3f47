"""RELION's External job: how its pipeline learns that the command has ended, and how it stops it."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cryoeq.runtime.torchrun import torchrun_environment

_CALL = "--in-parts"
_ABORT = "RELION_JOB_ABORT_NOW"
_SUCCESS, _FAILURE, _ABORTED = (f"RELION_JOB_EXIT_{end}" for end in ("SUCCESS", "FAILURE", "ABORTED"))
_ENDS = {0: _SUCCESS, 130: _ABORTED, 143: _ABORTED}
_INTERVAL_S = 1.0


def run_for_relion(arguments: Sequence[str], command: Callable[[], int]) -> int:
    """Run a command and leave the marker of how it ended, where RELION's External job called it.

    While it runs, ``RELION_JOB_ABORT_NOW`` in the job's folder ends it like SIGTERM, after a checkpoint.

    Args:
        arguments: of the command line, aliases resolved.
        command: runs it and returns the exit code.

    Returns:
        That exit code.
    """
    folder = _job_folder(arguments)
    if folder is None or not torchrun_environment().is_main_process:
        return command()
    with suppress(OSError):  # the command itself will say what is wrong with the folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_ABORT, _SUCCESS, _FAILURE, _ABORTED):
            (folder / name).unlink(missing_ok=True)
    done = threading.Event()
    threading.Thread(target=_watch, args=(folder / _ABORT, done), daemon=True).start()
    code = 1
    try:
        code = command()
    finally:
        done.set()
        with suppress(OSError):
            (folder / _ENDS.get(code, _FAILURE)).touch()
            (folder / _ABORT).unlink(missing_ok=True)
    return code


def _job_folder(arguments: Sequence[str]) -> Path | None:
    """The folder of ``-o``, where RELION's way to name the particles is used."""
    if not any(argument.partition("=")[0] == _CALL for argument in arguments):
        return None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name in {"-o", "--output"}:
            return Path(value or following)
    return None


def _watch(abort: Path, done: threading.Event) -> None:
    while not done.wait(_INTERVAL_S):
        if abort.exists():
            os.kill(os.getpid(), signal.SIGTERM)
            return
