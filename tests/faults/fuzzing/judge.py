"""The ends that a command may come to, and the faults that all others are."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faults.fuzzing.cases import Mutant
from faults.fuzzing.forks import RESIDENT, Outcome
from faults.fuzzing.star_mutations import POSE, parse

RIGHT = ("same", "refused", "warned", "different")
Result = Mapping[str, Any]
_MESSAGE = re.compile(r"^(?:cryoeq: |cryoeq, process|Error: )", re.MULTILINE)
_PLACE = re.compile(r'File "[^"]*/(cryoeq/[\w/]+\.py)", line (\d+), in (\w+)')
_NUMBER = re.compile(r"[-+]?\b\d+(?:\.\d*)?(?:e[-+]?\d+)?\b", re.IGNORECASE)
_OF_THE_MOMENT = re.compile(r"^Warning: |per second")
_SPOKEN = {".stdout", ".stderr"}
_RELATIVE, _ABSOLUTE, _OF_MAP = 5e-3, 2e-3, 2e-3


@dataclass(frozen=True)
class Verdict:
    """What a mutant came to.

    Args:
        end: one of ``RIGHT``, or the name of a fault.
        why: the fault in words; empty without.
        signature: the same for faults that are one.
    """

    end: str
    why: str = ""
    signature: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is no fault."""
        return self.end in RIGHT


def measure(folder: Path, inputs: Mapping[str, bytes], said: str) -> Result:
    """The numbers of a result: maps, stacks, figures in JSON, and what was printed."""
    text = "\n".join(line for line in said.splitlines() if not _OF_THE_MOMENT.search(line))
    result: dict[str, Any] = {"text": _NUMBER.sub("#", text), "numbers": [float(n) for n in _NUMBER.findall(text)]}
    for path in _outputs(folder, inputs):
        if (content := _content(path)) is not None:
            result[str(path.relative_to(folder))] = content
    return result


def _content(path: Path) -> Any:
    """What is compared of a file; None for nothing."""
    try:
        if path.suffix in {".mrc", ".mrcs"}:
            return _mrc(path)
        if path.suffix == ".json" and path.name != "job.json":
            return list(_numbers(json.loads(path.read_text())))
    except ValueError:  # a file that the user gave another ending
        return path.stat().st_size
    return _poses(path) if path.name == "poses.star" else None


def _poses(path: Path) -> Any:
    """Poses, by number of the image."""
    table = (parse(path.read_bytes()) or [])[-1:]
    if not table or "rlnImageName" not in table[0].labels:
        return None
    number = [float(name.partition("@")[0]) for name in table[0].column("rlnImageName")]
    columns = [table[0].column(label) for label in POSE if label in table[0].labels]
    return np.array(sorted(zip(number, *(map(float, column) for column in columns), strict=True)))


def same(result: Result, expected: Result) -> bool:
    """Whether two results are one, up to rounding."""
    return result.keys() == expected.keys() and all(_close(result[key], expected[key]) for key in expected)


def judge(mutant: Mutant, outcome: Outcome, folder: Path, expected: Result, usual: str) -> Verdict:
    """What a mutant came to.

    Args:
        mutant: what was run.
        outcome: how it ended.
        folder: where it ran.
        expected: result of the scenario without a change.
        usual: what the scenario writes to standard error without a change.
    """
    fault = _crash(outcome, folder, mutant) or _half_done(mutant, outcome, folder)
    if fault is not None:
        return fault
    new = [line for line in outcome.said.splitlines() if line.startswith("Warning: ") and line not in usual]
    if outcome.code:
        return _refusal(mutant, outcome, "\n".join(new))
    if same(measure(folder, mutant.files, outcome.results), expected):
        return Verdict("same")
    if _is_named(mutant, "\n".join(new)):
        return Verdict("warned")
    if mutant.may == "any":
        return Verdict("different")
    end = "silent" if mutant.may == "broken" else "changed"
    return _fault(end, mutant, f"another result without a word{': ' * bool(new)}{' '.join(new)}")


def _fault(end: str, mutant: Mutant, why: str, key: str = "") -> Verdict:
    key = key or re.sub(r"\d+", "0", " + ".join(mutant.kinds) + mutant.what.partition(":")[2][:24])
    return Verdict(end, why, f"{end} | {mutant.command[0] if mutant.command else ''} | {key}")


def _crash(outcome: Outcome, folder: Path, mutant: Mutant) -> Verdict | None:
    if outcome.is_late:
        return _fault("hang", mutant, f"{outcome.cpu_s:.0f} s of CPU time")
    traces = [path.read_text(errors="replace") for path in folder.rglob("*traceback.txt")]
    trace = next((text for text in (*traces, outcome.said) if "Traceback (most recent call last)" in text), "")
    if trace or outcome.code not in {0, 2, 3, 4}:
        places = _PLACE.findall(trace)
        last = (trace or outcome.said).strip().splitlines()[-1:] or [""]
        where = "{}:{} {}".format(*places[-1]) if places else f"exit code {outcome.code}"
        kind = last[0].partition(":")[0][:60]
        return Verdict("crash", f"{where}: {last[0][:300]}", f"crash | {where} | {kind}")
    if outcome.peak_bytes > RESIDENT or ("not enough memory" in outcome.said and not _is_named(mutant, outcome.said)):
        return _fault("memory", mutant, f"{outcome.peak_bytes / 2**30:.1f} GiB: {outcome.said.strip()[-200:]}")
    return None


def _refusal(mutant: Mutant, outcome: Outcome, warnings: str) -> Verdict:
    places = [match.start() for match in _MESSAGE.finditer(outcome.said)]
    message = outcome.said[places[0] :].strip() if places else outcome.said.strip()[-300:]
    is_help = not places and outcome.code == 2 and "Usage: cryoeq" in outcome.said + outcome.results
    if is_help and mutant.may == "any":
        return Verdict("refused")
    if len(places) != 1:
        return _fault("no one message", mutant, f"{len(places)} messages: {message[:300]}")
    if mutant.may == "harmless":
        return _fault("false refusal", mutant, message[:400], _pattern(message))
    needs_name = mutant.may == "broken" or outcome.code != 4
    if needs_name and not _is_named(mutant, message + warnings):
        return _fault("nameless", mutant, message[:400], _pattern(message))
    return Verdict("refused")


def _pattern(message: str) -> str:
    """A message without what changes from case to case."""
    return re.sub(r"[\d.]+|'[^']*'|\S*/\S*", "*", message.splitlines()[-1])[:90]


def _is_named(mutant: Mutant, text: str) -> bool:
    text = text.lower().replace("_", "-")
    words = {word.lower().replace("_", "-") for word in mutant.subjects if word.strip()}
    words |= {word.replace("\n", "\\n") for word in words}
    words |= {word.encode("utf-8", "backslashreplace").decode() for word in words}  # as it is written
    return any(word in text if len(word) > 2 else re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)


def _half_done(mutant: Mutant, outcome: Outcome, folder: Path) -> Verdict | None:
    for name, content in mutant.files.items():
        path = folder / name
        if not name.startswith("out/") and (not path.is_file() or path.read_bytes() != content):
            return _fault("half done", mutant, f"the input {name} was changed")
    for path in _outputs(folder, mutant.files):
        if path.name in mutant.command:
            continue  # the user's own name for a file, whose ending says nothing
        if why := _damage(path, outcome.code):
            return _fault(
                "half done",
                mutant,
                f"{path.relative_to(folder)} {why} (exit code {outcome.code})",
                f"{path.name} {why}",
            )
    return None


def _outputs(folder: Path, inputs: Mapping[str, bytes]) -> list[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _SPOKEN)
    return [path for path in files if str(path.relative_to(folder)) not in inputs]


def _damage(path: Path, code: int) -> str:
    """What is wrong with a file of results; empty for a whole one."""
    try:
        if ".tmp" in path.name:
            return "was left"
        if path.suffix in {".mrc", ".mrcs"}:
            return "" if np.isfinite(_mrc(path)).all() else "holds values that are no numbers"
        if path.suffix == ".json":
            content = json.loads(path.read_text(), parse_constant=_no_constant)
            status = content.get("status") if path.name == "job.json" else None
            wrong = "running" if code else "failed"
            return f"says {wrong}" if status == wrong else ""
        return (
            "" if path.stat().st_size or path.suffix not in {".star", ".png", ".xml", ".html", ".yaml"} else "is empty"
        )
    except ValueError as error:
        return f"cannot be read ({error})"


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _mrc(path: Path) -> np.ndarray:
    raw = path.read_bytes()
    nx, ny, nz, mode = np.frombuffer(raw[:16], "<i4").tolist() if len(raw) >= 1024 else (0, 0, 0, -1)
    if mode != 2 or len(raw) != 1024 + 4 * nx * ny * nz:
        raise ValueError(f"{len(raw)} bytes for {nx} x {ny} x {nz} in mode {mode}")
    return np.frombuffer(raw, "<f4", offset=1024).reshape(nz, ny, nx)


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _numbers(tree[key])
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value)
    elif isinstance(tree, int | float):
        yield float(tree)


def _close(value: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        scale = float(expected.std()) or 1.0
        return np.shape(value) == expected.shape and bool(np.abs(value - expected).max() <= _OF_MAP * scale)
    if isinstance(expected, list) and expected and isinstance(expected[0], float):
        return len(value) == len(expected) and np.allclose(value, expected, _RELATIVE, _ABSOLUTE, equal_nan=True)
    return bool(value == expected)
