"""``cryoeq select``: some of the particles of a run or of a table."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

import cryoeq
from cryoeq.config.select import SelectConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import ConfigError, OutputError, ParticleFileError
from cryoeq.evaluation.selection import ViewBalance, balance_views, best_share
from cryoeq.io.cryosparc import CS_SUFFIX, cs_numbers, write_cs_rows
from cryoeq.io.cryosparc_group import group_beside, write_group
from cryoeq.io.image_places import record_beside
from cryoeq.io.images import image_keys
from cryoeq.io.labels import CLASS_NUMBER, HALF_SET, IMAGE_NAME, JUNK_PROBABILITY
from cryoeq.io.particle_figures import particle_figure
from cryoeq.io.particles import read_table, star_half_set, star_junk_probability, star_poses, write_particle_star
from cryoeq.io.recentring import write_recentred_cs, write_recentred_star
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.star_text import copy_rows
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_one_frame
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics

Mask = Bool[Tensor, " particles"]
_COMMAND = "cryoeq select"
_LEAST_PER_DIRECTION = 5
_NO_CLASSES = (
    "A run of one structure writes no classes, nor one that found its particles to be of one structure (run.log says "
    "so): leave --class out, or give the table of a classification"
)
_NO_JUNK = "--junk-below goes by probabilities of junk, --keep by other figures"
_NO_HALVES = "Give the star file of a reconstruction or refinement"


@dataclass(frozen=True)
class _Source:
    """The particles to choose from.

    Args:
        table: their columns.
        path: the file of the table.
        cs: the ``.cs`` that has the same rows; None without.
        fields: numbers of each particle in a ``.cs`` that was given, by field.
        symmetry: point group of the run; C1 without.
    """

    table: StarTable
    path: Path
    cs: Path | None = None
    fields: Mapping[str, Shaped[np.ndarray, " particles"]] = field(default_factory=dict)
    symmetry: str = "C1"


@dataclass(frozen=True)
class _Choice:
    """What a condition says of the particles that earlier ones left.

    Args:
        is_kept: whether each of them is kept.
        by: what decided, for the report.
        found: what there is instead, for an error where none is kept.
        notes: remarks for the user.
    """

    is_kept: Mask
    by: str
    found: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Condition:
    """One condition of the user.

    Args:
        option: as it was typed.
        choose: the choice among some rows of the table.
    """

    option: str
    choose: Callable[[StarTable, Int[Tensor, " rows"]], _Choice]


def select(config: SelectConfig) -> Iterator[Event]:
    """Write the particles that all conditions keep, one condition after the other.

    Yields:
        Notes, and one report.

    Raises:
        ConfigError: no condition, one that leaves nothing, or an output that the input cannot be written as.
        ParticleFileError: the particles cannot be read, or lack a column that a condition needs.
        OutputError: a file is there that is no earlier selection, or cannot be written.
    """
    source = _open(config)
    conditions = list(_conditions(config, source))
    if not conditions and not config.recenter:
        raise ConfigError(
            "No condition is given",
            "",
            "Choose by --class, --half, --junk-below, --only, --exclude, --keep or --balance-views, or give --recenter",
        )
    output = _output(config, source)
    rows = torch.arange(len(source.table))
    told: dict[str, str] = {}
    counts: list[dict[str, object]] = []
    for condition in conditions:
        choice = condition.choose(source.table, rows)
        kept = rows[choice.is_kept]
        if not len(kept):
            raise ConfigError(
                f"{condition.option} leaves none of {len(rows)} particles", choice.found, "Choose another value"
            )
        yield from (Note(note, "warning") for note in choice.notes)
        if len(kept) == len(rows):
            yield Note(f"{condition.option} keeps all of {len(rows)} particles.", "warning")
        told[condition.option] = f"{len(kept)} of {len(rows)}, by {choice.by}"
        counts.append({"condition": condition.option, "of": len(rows), "kept": len(kept), "by": choice.by})
        rows = kept
    if config.invert:
        rows = _others(rows, len(source.table))
        told["--invert"] = f"the other {len(rows)}"
    if config.recenter:
        told |= yield from _write_recentred(output, source, rows, config.micrograph_pixel_size_angstrom)
    else:
        yield from _write(output, source, rows)
    if output.suffix == CS_SUFFIX:
        told["For Import Result Group"] = str(write_group(output))
    _write_record(output, source, config, counts, len(rows))
    yield Report(f"{len(rows)} of {len(source.table)} particles selected", {**told, "Written to": str(output)})


def _open(config: SelectConfig) -> _Source:
    path = config.particles
    if not path.is_dir():
        table = read_table(path)
        is_cs = path.suffix == CS_SUFFIX
        return _Source(table, path, path if is_cs else None, cs_numbers(path) if is_cs else {})
    star = path / "run_data.star"
    if not star.is_file():
        found = f"{path} holds no {star.name}"
        raise ParticleFileError(found, "Expected the folder of a run that is done", "Give a star file or a .cs")
    cs, is_asked = path / "run_data.cs", config.balance_views and config.symmetry is None
    symmetry = _symmetry_of(RunFolder(path), config.classes or ()) if is_asked else "C1"
    return _Source(read_star(star), star, cs if cs.is_file() else None, symmetry=symmetry)


def _symmetry_of(run: RunFolder, chosen: tuple[int, ...]) -> str:
    """Point group of a run, or of its one class that is chosen; C1 where it has no record."""
    from cryoeq.pipelines.reconstruction_run import read_reconstruction_job  # not above, because of scipy

    if not run.path("job.json").is_file():
        return "C1"
    job = read_reconstruction_job(run, "Name the point group by --sym")
    classes = ReconstructionMetrics.from_json(job.get("results", {})).classes or ()
    symmetry: str = job["settings"]["search"]["symmetry"]
    return next((each.symmetry for each in classes if (each.number,) == chosen), symmetry)


def _conditions(config: SelectConfig, source: _Source) -> Iterator[_Condition]:
    """In the order in which they apply: those of single particles before those of all that are left."""
    if config.classes is not None:
        classes = config.classes
        yield _Condition(
            f"--class {','.join(map(str, classes))}", lambda table, rows: _of_classes(table, rows, classes)
        )
    if config.half is not None:
        half = config.half
        yield _Condition(f"--half {half}", lambda table, rows: _of_half(table, rows, half))
    if config.junk_below is not None:
        below = config.junk_below
        yield _Condition(f"--junk-below {below:g}", lambda table, rows: _no_junk(table, rows, below))
    for option, path in (("only", config.only), ("exclude", config.exclude)):
        if path is not None:
            yield _Condition(f"--{option} {path}", _of_file(path, is_wanted=option == "only"))
    if config.keep is not None:
        share = config.keep
        yield _Condition(f"--keep {share:g}", lambda _, rows: _best(config, source, rows, share))
    if config.balance_views:
        yield _Condition("--balance-views", lambda _, rows: _balanced(config, source, rows))


def _of_classes(table: StarTable, rows: Int[Tensor, " rows"], classes: tuple[int, ...]) -> _Choice:
    table.require(CLASS_NUMBER, advice=_NO_CLASSES)
    numbers = torch.from_numpy(table.floats(CLASS_NUMBER))[rows]
    present = numbers.unique().long().tolist()
    listed = ", ".join(map(str, present[:20])) + (", ..." if len(present) > 20 else "")
    missing = [str(number) for number in classes if number not in present]
    notes = (f"No particle is of class {', '.join(missing)}; there are {listed}.",) if missing else ()
    is_kept = torch.isin(numbers, numbers.new_tensor(classes))
    return _Choice(is_kept, table.name(CLASS_NUMBER), f"The classes are {listed}", notes)


def _of_half(table: StarTable, rows: Int[Tensor, " rows"], half: int) -> _Choice:
    half_set = star_half_set(table)
    if half_set is None:
        found = f"{table.where}: {table.wording.column} {table.name(HALF_SET)} is missing"
        raise ParticleFileError(found, "--half needs half sets", _NO_HALVES)
    return _Choice(half_set[rows] == half, table.name(HALF_SET), "All are of the other half set")


def _no_junk(table: StarTable, rows: Int[Tensor, " rows"], below: float) -> _Choice:
    values = star_junk_probability(table, advice=_NO_JUNK)[rows]
    found = f"{JUNK_PROBABILITY} is {float(values.min()):g} or more"
    return _Choice(values < below, JUNK_PROBABILITY, found)


def _of_file(path: Path, *, is_wanted: bool) -> Callable[[StarTable, Int[Tensor, " rows"]], _Choice]:
    def choose(table: StarTable, rows: Int[Tensor, " rows"]) -> _Choice:
        ours, theirs = image_keys(table), image_keys(read_table(path))
        named, known = set(theirs), set(ours)
        is_kept = torch.tensor([(ours[row] in named) == is_wanted for row in rows.tolist()], dtype=torch.bool)
        found = f"No image has a name of {path}" if is_wanted else f"{path} names them all"
        label, unknown = table.name(IMAGE_NAME), [name for name in theirs if name not in known]
        notes = (
            f"{len(unknown)} of {len(theirs)} images that {path} names are not in {table.where}, by {label}; the first"
            f" is {unknown[0]}.",
        ) if unknown else ()  # fmt: skip
        return _Choice(is_kept, f"{label} ({len(theirs)} names)", found, notes)

    return choose


def _best(config: SelectConfig, source: _Source, rows: Int[Tensor, " rows"], share: float) -> _Choice:
    figure = particle_figure(source.table, source.fields, config.by, config.best)
    values, generator = figure.values[rows], torch.Generator().manual_seed(config.seed)
    is_kept = best_share(values, share, is_highest_best=figure.better == "highest", generator=generator)
    equal = int(torch.isin(values[~is_kept], values[is_kept]).sum())
    note = f"{equal} particles were left out with a {figure.name} that kept ones have too: the choice is random."
    return _Choice(is_kept, f"{figure.name}, {figure.better} first", notes=(note,) if equal else ())


def _balanced(config: SelectConfig, source: _Source, rows: Int[Tensor, " rows"]) -> _Choice:
    symmetry, left = config.symmetry or source.symmetry, source.table.rows(rows.tolist())
    rows_of_one_frame(left, source.path, None)
    balance = balance_views(
        star_poses(left).rotations,
        symmetry=symmetry,
        healpix_order=config.healpix_order,
        percentile=config.balance_percentile,
        generator=torch.Generator().manual_seed(config.seed),
    )
    directions = len(balance.counts)
    few = (
        f"{len(rows)} particles are few for {directions} directions: chance decides which have more of them. Choose a "
        "smaller --healpix-order."
    )
    is_sparse = len(rows) < _LEAST_PER_DIRECTION * directions
    return _Choice(balance.is_kept, _told(balance, symmetry), notes=(few,) if is_sparse else ())


def _told(balance: ViewBalance, symmetry: str) -> str:
    crowded = balance.counts > balance.limits
    said = f"views ({symmetry.upper()}): {int(crowded.sum())} of {len(balance.counts)} directions thinned out"
    if not crowded.any():
        return said
    fullest = int((balance.counts / balance.limits.clamp(min=1)).argmax())
    return f"{said}, the fullest from {int(balance.counts[fullest])} to {int(balance.limits[fullest])}"


def _others(rows: Int[Tensor, " rows"], count: int) -> Int[Tensor, " others"]:
    is_other = torch.ones(count, dtype=torch.bool)
    is_other[rows] = False
    if not is_other.any():
        raise ConfigError(f"--invert leaves none of {count} particles", "The conditions keep all", "Leave it out")
    return is_other.nonzero().squeeze(1)


def _output(config: SelectConfig, source: _Source) -> Path:
    """The file to write, which is free or an earlier selection."""
    wants_cs = source.path.suffix == CS_SUFFIX if config.output is None else config.output.suffix == CS_SUFFIX
    if wants_cs and source.cs is None:
        found = f"-o {config.output}: {source.path} is no table of cryoSPARC"
        raise ConfigError(found, "A .cs can be written of a .cs alone", "Name a star file")
    if config.output is None:
        return _free_file("selected", CS_SUFFIX if wants_cs else ".star")
    for path in _files(config.output):
        if path.exists() and not _is_selection(config.output):
            found = f"{path} is there already, and no selection of cryoeq"
            raise OutputError(found, "Only an earlier selection is replaced", "Choose another -o")
    return config.output


def _files(output: Path) -> tuple[Path, ...]:
    """What is written for an output."""
    group = (group_beside(output),) if output.suffix == CS_SUFFIX else ()
    return (output, record_beside(output), *group)


def _free_file(stem: str, suffix: str) -> Path:
    path, number = Path(f"{stem}{suffix}"), 2
    while any(file.exists() for file in _files(path)):
        path, number = Path(f"{stem}_{number}{suffix}"), number + 1
    return path


def _is_selection(path: Path) -> bool:
    """Whether a file was written by this command, by the record beside it."""
    try:
        return bool(path.is_file() and read_json(record_beside(path))["command"] == _COMMAND)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _write_recentred(
    output: Path, source: _Source, rows: Int[Tensor, " rows"], micrograph_pixel_angstrom: float | None
) -> Generator[Event, None, dict[str, str]]:
    """Write the particles at their new coordinates; what the report says of it."""
    is_kept = _mask(source, rows)
    if output.suffix == CS_SUFFIX and source.cs is not None:
        moves = write_recentred_cs(output, source.cs, is_kept, micrograph_pixel_angstrom)
    elif source.path.suffix == CS_SUFFIX:
        raise ConfigError(f"-o {output}: coordinates of a .cs are kept in a .cs only", "", "Name it -o NAME.cs")
    else:
        moves = write_recentred_star(output, source.table, is_kept, micrograph_pixel_angstrom)
    if moves.outside:
        yield Note(f"{moves.outside} particles have their centre outside of their micrograph.", "warning")
    lengths = moves.pixels.norm(dim=1)
    return {"--recenter": f"moved by {float(lengths.median()):.3g} px (median), {float(lengths.max()):.3g} at most"}


def _mask(source: _Source, rows: Int[Tensor, " rows"]) -> Bool[np.ndarray, " particles"]:
    is_kept = np.zeros(len(source.table), dtype=bool)
    is_kept[rows.numpy()] = True
    return is_kept


def _write(output: Path, source: _Source, rows: Int[Tensor, " rows"]) -> Iterator[Note]:
    is_kept = _mask(source, rows)
    if output.suffix == CS_SUFFIX and source.cs is not None:
        write_cs_rows(output, source.cs, is_kept)
    elif source.path.suffix == CS_SUFFIX:
        write_particle_star(output, source.table.rows(rows.tolist()), None)
        read = (
            f"{output} holds what cryoeq reads of {source.path}: images, optics, CTF, alignments3D where there are any"
        )
        yield Note(f"{read}. All other fields are kept in a .cs only (-o NAME.cs).")
    else:
        copy_rows(source.path, output, source.table.block, is_kept.tolist())


def _write_record(
    output: Path, source: _Source, config: SelectConfig, counts: list[dict[str, object]], kept: int
) -> None:
    """What was chosen, and of what; ``io.image_places`` finds the images by it."""
    record = {
        "version": cryoeq.__version__,
        "command": _COMMAND,
        "working_directory": str(Path.cwd()),
        "inputs": [{"path": str(source.path.resolve())}],
        "settings": config.model_dump(mode="json"),
        "conditions": counts,
        "of": len(source.table),
        "kept": kept,
    }
    write_json(record_beside(output), record)
