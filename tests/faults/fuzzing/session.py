"""A session of fuzzing: draws mutants, runs them, judges them, keeps the faults."""

import gc
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import faults.fuzzing.cs_mutations
import faults.fuzzing.file_mutations
import faults.fuzzing.mrc_mutations
import faults.fuzzing.option_mutations
import faults.fuzzing.star_layouts
import faults.fuzzing.star_mutations  # noqa: F401 - they enter themselves into the index
from faults.fuzzing.bases import make_scenarios
from faults.fuzzing.cases import Mutant, Scenario, draw_mutant, unchanged
from faults.fuzzing.forks import Outcome, Running, finished, start
from faults.fuzzing.judge import Result, Verdict, judge, measure

_KEPT_OF_EACH = 2
_USED = (
    "cli.drawing", "cli.settings_text", "pipelines.reconstruct.reconstruct", "pipelines.resolution.fsc",
    "pipelines.resolution.map_model", "pipelines.orientations", "pipelines.evaluate", "pipelines.report",
    "pipelines.screening.screen", "pipelines.screening.score_particles", "pipelines.simulate.simulate",
    "pipelines.lattice.find", "pipelines.lattice.reduce", "pipelines.select",
)  # fmt: skip
_USED_BY_ENCODERS = ("pipelines.reconstruct.hybrid", "pipelines.infer")
_PICTURES_EVERY = 12  # inputs
_STAMP = (2000, 1, 1, 0, 0, 0)  # of the files in an archive, so that equal faults are equal files


@dataclass
class Tally:
    """What was tried, and how it ended."""

    inputs: int = 0
    cpu_s: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Session:
    """Scenarios with their results, and the tally of what was tried on them.

    Args:
        scenarios: what is mutated.
        seed: the mutants depend on it and on their number alone.
        keep: folder for the faults; None keeps none.
    """

    scenarios: list[Scenario]
    seed: int = 0
    keep: Path | None = None
    tally: Tally = field(default_factory=Tally)
    _usual: dict[str, tuple[Result, str]] = field(default_factory=dict)

    def mutant(self, number: int) -> Mutant:
        """The mutant of this number."""
        return draw_mutant(random.Random(f"{self.seed}:{number}"), self.scenarios)

    def go(self, *, inputs: int | None = None, seconds: float | None = None, jobs: int = 1, first: int = 0) -> Tally:
        """Run mutants until so many were tried, or so many seconds have passed."""
        end, number = time.monotonic() + (seconds or float("inf")), first
        running: list[Running] = []
        mutants: dict[Path, tuple[int, Mutant]] = {}
        while True:
            is_over = (inputs is not None and number - first >= inputs) or time.monotonic() > end
            while len(running) < jobs and not is_over:
                mutant, folder = self.mutant(number), Path(tempfile.mkdtemp(prefix="fuzz_"))
                mutants[folder] = (number, mutant)
                with_pictures = number % _PICTURES_EVERY == 0
                running.append(_begin(mutant, folder, None if with_pictures else leave_out_pictures))
                number += 1
                is_over = (inputs is not None and number - first >= inputs) or time.monotonic() > end
            if not running:
                return self.tally
            child, outcome = next(finished(running))
            self._count(*mutants.pop(child.folder), outcome, child.folder)
            shutil.rmtree(child.folder, ignore_errors=True)

    def verdict(self, mutant: Mutant, outcome: Outcome, folder: Path) -> Verdict:
        """What a mutant came to."""
        return judge(mutant, outcome, folder, *self.usual(mutant.scenario))

    def usual(self, name: str) -> tuple[Result, str]:
        """The result of a scenario without a change, and what it writes to standard error."""
        if name not in self._usual:
            scenario = next(each for each in self.scenarios if each.name == name)
            with tempfile.TemporaryDirectory(prefix="fuzz_") as there:
                outcome = run_mutant(unchanged(scenario), Path(there), leave_out_pictures)
                if outcome.code:
                    raise RuntimeError(f"{name}: {outcome.said}")
                self._usual[name] = (measure(Path(there), scenario.files, outcome.results), outcome.said)
        return self._usual[name]

    def _count(self, number: int, mutant: Mutant, outcome: Outcome, folder: Path) -> None:
        verdict = self.verdict(mutant, outcome, folder)
        self.tally.inputs += 1
        self.tally.cpu_s += outcome.cpu_s
        self.tally.ends[verdict.end] += 1
        self.tally.kinds.update(mutant.kinds)
        if not verdict.is_right:
            alike = self.tally.faults.setdefault(verdict.signature, [])
            alike.append(f"{self.seed}:{number}")
            if self.keep is not None and len(alike) <= _KEPT_OF_EACH:
                keep_fault(self.keep, mutant, verdict, outcome, f"{self.seed}:{number}")


def _begin(mutant: Mutant, folder: Path, before: Callable[[], None] | None) -> Running:
    for name, content in mutant.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return start(mutant.command, folder, before=before)


def open_session(seed: int, keep: Path | None = None, *, are_all: bool) -> Session:
    """Import what commands use, and make all scenarios, or those that need no encoder."""
    _prepare((*_USED, *_USED_BY_ENCODERS) if are_all else _USED)
    with tempfile.TemporaryDirectory(prefix="fuzz_bases_") as there:
        return Session(make_scenarios(Path(there), are_all=are_all), seed, keep)


def run_mutant(mutant: Mutant, folder: Path, before: Callable[[], None] | None = None) -> Outcome:
    """Run one mutant in a folder."""
    return next(finished([_begin(mutant, folder, before)]))[1]


def keep_fault(keep: Path, mutant: Mutant, verdict: Verdict, outcome: Outcome, number: str) -> Path:
    """Write a fault as one archive: the input files, and ``case.json`` with the command line."""
    keep.mkdir(parents=True, exist_ok=True)
    case = asdict(mutant) | asdict(verdict) | {"number": number, "code": outcome.code, "said": outcome.said[-2000:]}
    case["shell"] = "cryoeq " + " ".join(mutant.command)
    del case["files"]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("case.json", _STAMP), json.dumps(case, indent=1))
        for name, raw in mutant.files.items():
            archive.writestr(zipfile.ZipInfo(name, _STAMP), raw)
    slug = hashlib.sha256(verdict.signature.encode()).hexdigest()[:8]
    path = keep / f"{verdict.end.replace(' ', '-')}_{slug}_{number.replace(':', '-')}.zip"
    path.write_bytes(content.getvalue())
    return path


def read_fault(path: Path) -> Mutant:
    """The mutant in an archive."""
    with zipfile.ZipFile(path) as archive:
        case = json.loads(archive.read("case.json"))
        files = {name: archive.read(name) for name in archive.namelist() if name != "case.json"}
    names = ("command", "kinds", "subjects")
    return Mutant(
        case["scenario"], files=files, may=case["may"], what=case["what"], **{n: tuple(case[n]) for n in names}
    )


def _prepare(used: Sequence[str]) -> None:
    """Import these modules, and leave out what costs time and cannot fail: threads and Git."""
    import importlib

    import torch

    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    for name in used:
        importlib.import_module(f"cryoeq.{name}")
    from cryoeq.outputs import run_folder

    run_folder._commit = lambda: None
    gc.freeze()


def leave_out_pictures() -> None:
    """In a child: no pictures and no report after a reconstruction, which take most of its time."""
    for module in [module for name, module in sys.modules.items() if name.startswith("cryoeq.")]:
        for picture in [name for name in vars(module) if name.startswith("plot_")]:
            setattr(module, picture, lambda *_, **__: None)
    sys.modules["cryoeq.pipelines.reconstruct.reconstruct"].write_report = lambda *_: None
