"""What the tests ask of the fuzzer, in one process without threads: a short session, and faults that are planted."""

import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults.fuzzing import forks
from faults.fuzzing.cases import MUTATIONS, Mutant, unchanged, with_change
from faults.fuzzing.session import Session, leave_out_pictures, open_session, run_mutant

Plant = Callable[[], None]


def answers(inputs: int, keep: Path) -> dict[str, Any]:
    """Ends and faults of a short session; then the end of a mutant for each fault that is planted."""
    session = open_session(0, are_all=False)
    tally = session.go(inputs=inputs)
    again = [session.mutant(number) for number in range(5)] == [session.mutant(number) for number in range(5)]
    return {
        "ends": dict(tally.ends), "faults": tally.faults, "again": again,
        "planted": {name: _end(session, *case) for name, case in _CASES.items()}, "kept": _kept(session, keep),
    }  # fmt: skip


def _kept(session: Session, keep: Path) -> list[str]:
    """Files that a session leaves of a fault that strikes always."""
    crashing = replace(session, scenarios=session.scenarios[:1], keep=keep, tally=type(session.tally)())
    sys.modules["faults.fuzzing.session"].leave_out_pictures = crash  # the session calls it in each child
    crashing.go(inputs=4)
    return sorted(path.name for path in keep.iterdir())


def _end(session: Session, kind: str, name: str, path: str, plant: Plant | None) -> str:
    mutant = unchanged(next(each for each in session.scenarios if each.name == "known"))
    if kind:
        mutant = _mutant(session, mutant, kind, f"{kind}: {name}", path)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as there:
        outcome = run_mutant(mutant, Path(there), plant or leave_out_pictures)
        return session.verdict(mutant, outcome, Path(there)).end


def _mutant(session: Session, mutant: Mutant, kind: str, name: str, path: str) -> Mutant:
    scenario = next(each for each in session.scenarios if each.name == mutant.scenario)
    entry = next(each for each in MUTATIONS[kind] if each.name == name)
    chance = random.Random(1)
    while (change := entry.apply(chance, mutant.files[path], scenario)) is None or change.subjects not in _PLAIN:
        pass
    return with_change(mutant, path, entry, change, entry.may)


def crash() -> None:
    """A bug of ours."""
    from cryoeq.io import star

    star.StarTable.require = lambda self, column, **_: self.particles[column][10**6]


def careless() -> None:
    """What is no number counts as another one, and nobody says so."""
    from cryoeq.io import star
    from cryoeq.io.star_text import text_column

    leave_out_pictures()
    numbers = star.StarTable._numbers

    def guess(self: Any, text: Any, *rest: Any, **named: Any) -> Any:
        return numbers(self, text_column([v if _is_number(v) else "15000.0" for v in text.tolist()]), *rest, **named)

    star.StarTable._numbers = guess


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text) and abs(float(text)) != float("inf")
    except ValueError:
        return False


def endless() -> None:
    """A loop without an end."""
    import resource

    from cryoeq.pipelines.reconstruct import reconstruct

    resource.setrlimit(resource.RLIMIT_CPU, (1, forks.CPU_LIMIT_S + 5))
    reconstruct.build_stack = _spin


def _spin(*_: object, **__: object) -> None:
    while True:
        pass


def vague() -> None:
    """An error that names nothing."""
    from cryoeq.errors import ParticleFileError
    from cryoeq.pipelines.reconstruct import reconstruct

    reconstruct.build_stack = _raise(ParticleFileError("something is wrong"))


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def greedy() -> None:
    """It asks for more memory than there is."""
    from cryoeq.pipelines.reconstruct import reconstruct

    reconstruct.build_stack = lambda *_, **__: bytearray(2 * forks.ADDRESS_SPACE)


def unfinished() -> None:
    """A map is left half written."""
    from cryoeq.pipelines.reconstruct import class_files

    leave_out_pictures()
    write = class_files.write_map

    def cut(path: Path, *rest: Any) -> None:
        write(path, *rest)
        path.write_bytes(path.read_bytes()[:5000])

    class_files.write_map = cut


def killed() -> None:
    """The process dies."""
    from cryoeq.pipelines.reconstruct import reconstruct

    reconstruct.build_stack = lambda *_, **__: signal.raise_signal(signal.SIGKILL)


def picky() -> None:
    """What means nothing is refused, by name."""
    from cryoeq.errors import ParticleFileError
    from cryoeq.pipelines.reconstruct import reconstruct

    reconstruct.build_stack = _raise(ParticleFileError("truth.star: an unknown column"))


_PLAIN = ((), ("rlnDefocusU",))  # of the changes that are tried
# The end that each comes to is in the test.
_CASES: dict[str, tuple[str, str, str, Plant | None]] = {
    "nothing": ("", "", "", None),
    "an unknown column": ("star", "column that nobody knows", "truth.star", None),
    "no number": ("star", "value that is no number", "truth.star", None),
    "no number, read by a careless reader": ("star", "value that is no number", "truth.star", careless),
    "no number, and an error that names nothing": ("star", "value that is no number", "truth.star", vague),
    "an unknown column, refused": ("star", "column that nobody knows", "truth.star", picky),
    "another layout, and a crash": ("star", "columns in another order", "truth.star", crash),
    "another layout, and a loop without an end": ("star", "columns in another order", "truth.star", endless),
    "another layout, and no memory": ("star", "columns in another order", "truth.star", greedy),
    "another layout, and half a map": ("star", "columns in another order", "truth.star", unfinished),
    "another layout, and a dead process": ("star", "columns in another order", "truth.star", killed),
}

if __name__ == "__main__":
    print(json.dumps(answers(int(sys.argv[1]), Path(sys.argv[2]))))
