"""Tables of the runs on experimental particles, from the records of ``real_particles.py`` and ``real_relion.py``."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ab_initio import Figure, latest, markdown_table, spread
from real_scores import fsc_at
from recorded_runs import Record
from scipy.stats import binomtest

RIBOSOME_SIDE_ANGSTROM = 80 * 5.36


def figure(record: Record, *names: str) -> float | None:
    """A figure some levels down in a record; None where it is missing."""
    found: object = record
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, float | int) else None


def at_least(bound: float, *names: str) -> Callable[[Record], bool]:
    """A test that a figure is there and not below a bound."""
    return lambda record: (value := figure(record, *names)) is not None and value >= bound


def at_most(bound: float, *names: str) -> Callable[[Record], bool]:
    """A test that a figure is there and not above a bound."""
    return lambda record: (value := figure(record, *names)) is not None and value <= bound


GOALS: Mapping[str, Mapping[str, Callable[[Record], bool]]] = {
    "ribosome": {
        "≤ 15 Å within the mask": at_most(15.0, "half_maps", "corrected"),
        "the same map, ≥ 0.9 to 30 Å": at_least(0.9, "same_as_first", "correlation"),
    },
    "betagal": {"FSC ≥ 0.5 at 14.5 Å": at_least(0.5, "against_reference", "fsc_at_14.5")},
    "betagal_c1": {"D2 is named": lambda record: record.get("named") == "D2"},
    "apoferritin": {
        "FSC 0.5 at ≤ 12 Å": at_most(12.0, "against_reference", "corrected", "shell_angstrom"),
        "≤ 150 CPU s": at_most(150.0, "cpu_s"),
    },
    "tilts": {"exit code 4": lambda record: record["exit_code"] == 4},
}
FIGURES: Mapping[str, Figure] = {
    "half maps, unmasked Å": lambda record: figure(record, "half_maps", "unmasked"),
    "within the mask, corrected Å": lambda record: figure(record, "half_maps", "corrected"),
    "same map to 30 Å": lambda record: figure(record, "same_as_first", "correlation"),
    "FSC 0.5 to reference Å": lambda record: figure(record, "against_reference", "corrected", "crossing_angstrom"),
    "FSC at 14.5 Å": lambda record: figure(record, "against_reference", "fsc_at_14.5"),
    "CPU s": lambda record: record["cpu_s"],
    "MiB": lambda record: record["peak_rss_mib"],
}


def shares(name: str, runs: Sequence[Record]) -> str:
    """How many runs reached each goal of their set, with Wilson's 95 % intervals.

    Args:
        name: of the set.
        runs: of it.
    """
    cells = []
    for goal, reached in GOALS[name].items():
        count = sum(map(reached, runs))
        interval = binomtest(count, len(runs)).proportion_ci(method="wilson")
        cells.append(f"{goal}: {count} of {len(runs)} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)")
    return "; ".join(cells)


def rows(records: Sequence[Record]) -> Iterator[list[str]]:
    """One row per set and way: runs that reached the goals, medians and ranges."""
    for name, mode in ((name, mode) for name in GOALS for mode in ("search", "limit")):
        if runs := latest(records, set=name, mode=mode):
            yield [
                name if mode == "search" else f"{name}, poses matched to the reference",
                shares(name, runs) if mode == "search" else "–",
                *(spread(value, runs) for value in FIGURES.values()),
                ", ".join(sorted({(run["commit"] or "–")[:7] for run in runs})),
            ]


def relion_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    """One row per command of the latest run of RELION."""
    for record in latest(records, set="ribosome", mode="relion")[-1:]:
        for name, stage in record["stages"].items():
            curve = [f"{fsc_at(stage['fsc'], RIBOSOME_SIDE_ANGSTROM, angstrom):.2f}" for angstrom in (60, 40, 30, 20)]
            yield [name, f"{stage['cpu_s']:.0f}", f"{stage['correlation']:.2f}", ", ".join(curve)]


def report(records: Sequence[Record]) -> str:
    """The tables in Markdown.

    Args:
        records: all of them.
    """
    text = markdown_table(["set", "reached (95 % Wilson)", *FIGURES, "code"], list(rows(records)))
    if theirs := list(relion_rows(records)):
        head = [
            "RELION",
            "CPU s",
            "correlation with cryoeq's map to 30 Å",
            "FSC with it within its mask at 60, 40, 30, 20 Å",
        ]
        text += "\n" + markdown_table(head, theirs)
    return text
