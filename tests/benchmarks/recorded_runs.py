"""Child processes whose cost is measured, and the JSON file to which each finished run is appended.

A run is known by its set, mode, seed and options: one that is recorded need not be done again.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cryoeq
from cryoeq.config.older_keys import RENAMED
from cryoeq.io.text import read_json, write_json

Record = dict[str, Any]
STAGES = {  # of a search, under the names that the records have for them
    "initial model": "starts",
    "consensus refinement": "joint iterations",
    "final iteration": "joint iterations",
    "global re-alignment": "second looks",
    "half-set refinement": "half sets",
    "local refinement": "local refinement",
}
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (?:([a-z][a-z -]*?)(?: \d+/\d+)?:)?")
_MEASURED_CHILD = Path(__file__).with_name("measured_child.py")
_NO_LIMIT_S = threading.TIMEOUT_MAX
CRYOEQ = str(Path(sys.executable).with_name("cryoeq"))


@dataclass(frozen=True)
class Cost:
    """What processes took; their children are counted.

    Args:
        wall_s: time that passed.
        cpu_s: time of all cores, user and system.
        peak_rss_mib: largest memory of any one process.
        exit_code: of the last one; -9 where it was killed.
        timed_out: it was killed at its time limit.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mib: float = 0.0
    exit_code: int = 0
    timed_out: bool = False

    def then(self, later: "Cost") -> "Cost":
        """The cost of both, one after the other."""
        return Cost(
            round(self.wall_s + later.wall_s, 2),
            round(self.cpu_s + later.cpu_s, 2),
            max(self.peak_rss_mib, later.peak_rss_mib),
            later.exit_code,
            later.timed_out,
        )


def measure(
    command: Sequence[str],
    *,
    log: Path,
    time_limit_s: float | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command and measure it; it and its children are killed at the time limit, or when this process is stopped.

    Python programs may keep their byte code, as they do unless told otherwise.

    Args:
        command: program and arguments.
        log: file to which its output is appended.
        time_limit_s: None for no limit.
        folder: in which it runs.
        environment: variables beside those of this process.
    """
    variables = {**os.environ, **(environment or {})}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("ab") as output, tempfile.TemporaryDirectory() as place:
        result = Path(place) / "cost.json"
        words = [sys.executable, "-I", "-S", str(_MEASURED_CHILD), str(result), str(time_limit_s or _NO_LIMIT_S)]
        process = subprocess.Popen(
            [*words, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=variables,
        )
        try:
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if not result.is_file():
            raise RuntimeError(f"{command[0]} could not be run; see {log}")
        return Cost(**read_json(result))


def stop_children_when_terminated() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that ``measure`` takes its child along."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def read_records(path: Path) -> list[Record]:
    """All records so far."""
    return read_json(path) if path.is_file() else []


def run_key(record: Mapping[str, Any]) -> tuple[str, str, int, tuple[str, ...]]:
    """What a run is known by, its settings under today's names: set, mode, seed and options.

    Args:
        record: a record, or the key of one.
    """
    return record["set"], record["mode"], record["seed"], tuple(map(_with_current_key, record["options"]))


def _with_current_key(option: str) -> str:
    """An option ``key=value`` of any version under today's key; other words as they are."""
    key, equals, value = option.partition("=")
    return f"{RENAMED.get(key, key)}{equals}{value}"


def find_record(records: Iterable[Record], key: Mapping[str, object]) -> Record | None:
    """The latest record of a run, whatever its settings were called when it was made.

    Args:
        records: in the order in which they were made.
        key: its set, mode, seed and options.
    """
    found = [record for record in records if run_key(record) == run_key(key)]
    return found[-1] if found else None


def append_record(path: Path, record: Record) -> None:
    """Append one record; the file is replaced in one go."""
    write_json(path, [*read_records(path), record])


def cost_record(cost: Cost, commands: Iterable[Sequence[str]], places: Mapping[str, Path]) -> Record:
    """What a record says beside its key and its scores: the commands, what they took, and of which commit.

    Args:
        cost: of all commands.
        commands: as they ran.
        places: folders by the names that stand for them in the record.
    """
    lines = [shlex.join(command) for command in commands]
    for name, place in sorted(places.items(), key=lambda item: -len(str(item[1]))):
        lines = [line.replace(str(place), name) for line in lines]
    return {
        "command": lines,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        **asdict(cost),
    }


def stage_seconds(log: Path) -> dict[str, float]:
    """Wall time of each stage of a search, from the clock of its log, which has whole seconds.

    What passed before a line belongs to the stage that the line names.

    Args:
        log: ``run.log`` of a run.
    """
    seconds = dict.fromkeys([*STAGES.values(), "other"], 0.0)
    before: datetime | None = None
    for match in filter(None, map(_LOG_LINE.match, log.read_text(encoding="utf-8").splitlines())):
        now = datetime.fromisoformat(match[1])
        seconds[STAGES.get(match[2], "other")] += (now - before).total_seconds() if before else 0.0
        before = now
    return seconds


def _commit() -> str | None:
    """The commit of cryoeq's checkout, marked where its code has changes."""
    checkout, git = Path(cryoeq.__file__).parents[1], shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    answers = [
        subprocess.run([git, "-C", str(checkout), *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "cryoeq", "configs"))
    ]
    return f"{answers[0]}, with changes" if answers[1] else answers[0]
