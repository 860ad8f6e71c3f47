"""A fuzzer: sound input is mutated, and every command must refuse it by name, warn, or give the same result.

python tests/faults/fuzz.py --minutes 10 --keep faults
python tests/faults/fuzz.py --replay faults/crash_0123abcd_0-17.zip
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.fuzzing.judge import RIGHT
from faults.fuzzing.session import Session, open_session, read_fault, run_mutant


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="how long to go on [1, or as long as --inputs takes]")
    parser.add_argument("--inputs", type=int, help="how many inputs to try at most")
    parser.add_argument("--seed", type=int, default=0, help="seed; an input depends on it and on its number alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time")
    parser.add_argument("--keep", type=Path, help="folder for what was found: one archive each, two of a kind")
    parser.add_argument("--log", type=Path, help="file to which a line of figures is appended")
    parser.add_argument("--replay", type=Path, nargs="+", help="run archives of --keep again")
    return parser


def main(words: list[str] | None = None) -> int:
    """Exit code 0 where nothing was found, else 1."""
    options = arguments().parse_args(words)
    session = open_session(options.seed, options.keep, are_all=True)
    if options.replay:
        return max(_replay(session, path) for path in options.replay)
    minutes = options.minutes if options.minutes or options.inputs else 1.0
    started_s = time.monotonic()
    try:
        session.go(inputs=options.inputs, seconds=minutes and minutes * 60, jobs=options.jobs, first=options.first)
    finally:  # also of a session that was stopped
        _show(session, time.monotonic() - started_s)
        if options.log:
            _log(session, options.log, options.first)
    return int(bool(session.tally.faults))


def _replay(session: Session, path: Path) -> int:
    mutant = read_fault(path)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as there:
        outcome = run_mutant(mutant, Path(there))
        verdict = session.verdict(mutant, outcome, Path(there))
    print(
        f"{path.name}: {verdict.end} {verdict.why}\n  cryoeq {' '.join(mutant.command)}\n  {mutant.may}: {mutant.what}"
    )
    print(*(f"  | {line}" for line in (outcome.said + outcome.results).splitlines()[-12:]), sep="\n")
    return int(not verdict.is_right)


def _show(session: Session, seconds: float) -> None:
    tally = session.tally
    print(
        f"{tally.inputs} inputs in {seconds:.0f} s ({tally.cpu_s:.0f} s of CPU time), "
        f"{len(tally.kinds)} kinds of mutation"
    )
    for end, count in tally.ends.most_common():
        print(f"  {count:6d}  {'' if end in RIGHT else 'FAULT '}{end}")
    for signature, numbers in sorted(tally.faults.items(), key=lambda item: -len(item[1])):
        print(f"  {len(numbers):6d} x {signature}  ({numbers[0]})")


def _log(session: Session, path: Path, first: int) -> None:
    tally = session.tally
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    line = {
        "seed": session.seed, "first": first, "inputs": tally.inputs, "ends": dict(tally.ends),
        "kinds": dict(tally.kinds),
        "faults": {signature: len(numbers) for signature, numbers in tally.faults.items()},
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in used), 1),
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
