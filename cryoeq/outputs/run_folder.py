"""Run folder: settings, provenance, status and results of one run.

``job.json`` holds version, commit, settings, seed, input checksums, device, times, status and results; ``config.yaml``
the settings alone, for ``--config``; ``command.txt`` the command, one line per start.
"""

import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

import cryoeq
from cryoeq.domain.events import Note
from cryoeq.errors import ConfigError, OutputError
from cryoeq.io.text import read_json, write_json, write_text
from cryoeq.outputs.folder import make_folder

Status = Literal["running", "done", "failed", "stopped"]

# A stack of a million particles is not read for its checksum alone: beyond this its head and its size identify it.
_HASHED_BYTES = 64 * 1024**2
# Files of a run: our own, and those with RELION's names.
_RUN_FILES = ("job.json", "command.txt", "job.star", "run_*")
_RECORD = {"job.json", "command.txt", "config.yaml", "run.log", "progress.csv", "report.html", "traceback.txt"}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run.

    As a context manager it marks the run as failed or stopped when the block is left by an error or a signal. Settings
    that cannot work leave nothing: the record of a new run that wrote no result goes with them.

    Args:
        folder: path of the folder.
        earlier: files that the folder held before a new run; None where the run is not a new one.
        is_made: whether the folder was made for the run.
    """

    folder: Path
    earlier: frozenset[str] | None = None
    is_made: bool = False

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        command: Sequence[str],
        settings: Mapping[str, object],
        inputs: Sequence[Path] = (),
        device: str | None = None,
        resume: bool = False,
    ) -> "RunFolder":
        """Start a run in a folder, or resume it.

        Args:
            path: the folder; made where it is missing.
            command: program and arguments.
            settings: the resolved configuration, in types of JSON; ``seed`` is repeated at the top of ``job.json``.
            inputs: files whose checksums are recorded.
            device: the device that ``auto`` chose; None repeats the settings.
            resume: whether to resume the run in the folder, its record brought up to the settings given; an empty or
                missing folder starts a new one.

        Returns:
            The folder, its status "running".

        Raises:
            OutputError: the folder holds another run, unless that one failed before it wrote anything but its record;
                or it cannot be written.
        """
        is_made = not path.exists()
        run = cls(make_folder(path))
        present = next(_present_files(path), None)
        if present is not None and not resume and not _is_empty_run(run):
            raise OutputError(
                f"{path} holds another run ({present.name})",
                "Each run needs a folder of its own",
                "Choose another -o, delete the folder, or add --resume to continue it",
            )
        is_old = resume and run.path("job.json").is_file()
        run = replace(run, earlier=None if is_old else frozenset(run._names()), is_made=is_made)
        write_text(run.path("command.txt"), _earlier_commands(run) + shlex.join(command) + "\n")
        if is_old:
            for unfinished in path.glob(".*.tmp*"):  # left by a process that was killed while it wrote
                unfinished.unlink()
            record = _new_job(command, settings, inputs, device)
            current = {key: record[key] for key in ("settings", "seed", "device", "inputs", "working_directory")}
            run._update(**current, status="running", resumed=[*run.job().get("resumed", []), _now()])
        else:
            for stale in ("progress.csv", "report.html"):
                run.path(stale).unlink(missing_ok=True)
            write_json(run.path("job.json"), _new_job(command, settings, inputs, device))
        write_text(run.path("config.yaml"), yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        return run

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        with suppress(OutputError):  # a disk that is full now: the error that comes through here says so
            if self.job()["status"] == "running":
                status: Status = "failed" if issubclass(kind, Exception) else "stopped"
                self.finish(status, {"error": str(error)} if error else {})
        if issubclass(kind, ConfigError) and self.earlier is not None:
            self._remove_record(self._names() - self.earlier)

    def path(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.folder / name

    def job(self) -> dict[str, Any]:
        """Content of ``job.json``."""
        job: dict[str, Any] = read_json(self.path("job.json"))
        return job

    def notes(self) -> tuple[Note, ...]:
        """Notes in ``job.json``.

        Raises:
            OutputError: they are damaged.
        """
        try:
            return tuple(Note(**note) for note in self.job().get("notes", []))
        except TypeError as error:
            raise OutputError(f"{self.path('job.json')} is damaged: notes", str(error), "Restore the file") from error

    def keep_notes(self, notes: Sequence[Note]) -> None:
        """Write all notes of the run to ``job.json``."""
        self._update(notes=[asdict(note) for note in notes])

    def finish(self, status: Status, results: Mapping[str, object]) -> None:
        """Close the record.

        Args:
            status: status at the end.
            results: metrics and times, in types of JSON.
        """
        self._update(status=status, finished=_now(), results=dict(results))

    def keep_verdict(self, verdict: Mapping[str, object]) -> None:
        """Write the verdict on the run to ``job.json``.

        Args:
            verdict: answer, sentence and reasons, in types of JSON.
        """
        self._update(verdict=dict(verdict))

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def _remove_record(self, written: set[str]) -> None:
        """Remove what the run wrote, and the folder that was made for it, unless there are results."""
        if not written <= _RECORD:
            return
        for name in written:
            self.path(name).unlink()
        if self.is_made:
            self.folder.rmdir()

    def _update(self, **changes: object) -> None:
        write_json(self.path("job.json"), self.job() | changes)


def free_folder(name: str) -> Path:
    """Default of ``-o``: this name in the working folder, numbered where it exists already."""
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(f"{name}_{number}"), number + 1
    return path


def _present_files(path: Path) -> Iterator[Path]:
    return (file for pattern in _RUN_FILES for file in sorted(path.glob(pattern)))


def _is_empty_run(run: RunFolder) -> bool:
    """Whether a folder holds nothing but the record of a run that failed, such as one with a wrong option."""
    names = {path.name for path in run.folder.iterdir()}
    if "job.json" not in names or not names <= _RECORD:
        return False
    try:
        return run.job().get("status") == "failed"
    except ValueError:  # a job.json of another program
        return False


def _earlier_commands(run: RunFolder) -> str:
    path = run.path("command.txt")
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""


def _new_job(
    command: Sequence[str], settings: Mapping[str, object], inputs: Sequence[Path], device: str | None
) -> dict[str, object]:
    return {
        "version": cryoeq.__version__,
        "commit": _commit(),
        "command": list(command),
        "working_directory": str(Path.cwd()),
        "settings": dict(settings),
        "seed": settings.get("seed"),
        "device": device or settings.get("device"),
        "inputs": [_fingerprint(path) for path in inputs],
        "started": _now(),
        "status": "running",
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _fingerprint(path: Path) -> dict[str, object]:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()
    of = "the whole file" if size <= _HASHED_BYTES else f"the first {_HASHED_BYTES} bytes"
    return {"path": str(path.resolve()), "bytes": size, "sha256": digest, "sha256_of": of}


def _commit() -> str | None:
    """Commit of cryoeq's own checkout, marked where it has changes; None for an installed wheel."""
    checkout, git = Path(cryoeq.__file__).parents[1], shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    try:
        commit = _git(git, checkout, "rev-parse", "HEAD")
        changes = _git(git, checkout, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # git refuses a checkout of another owner
        return None
    return f"{commit}, with changes" if changes else commit


def _git(git: str, checkout: Path, *arguments: str) -> str:
    command = [git, "-C", str(checkout), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - no user input
    return result.stdout.strip()
