"""``cryoeq symmetry``: the point group of a map, its axes, and the map on them."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryoeq.config.map_symmetry import SymmetryConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.volume import HalfMaps, Volume, require_same_frame
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.evaluation.held_out_likelihood import SURE_SIGMAS, Gain, held_out_log_likelihoods
from cryoeq.evaluation.independence import require_independent
from cryoeq.evaluation.resolution import compare_maps
from cryoeq.io.density import read_density
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import header_notes, write_map
from cryoeq.io.particles import star_half_set, star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import write_json
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.point_group_search import find_point_groups
from cryoeq.maps.point_groups import GroupAgreement, PointGroups
from cryoeq.maps.symmetry import equivalent_poses, impose_symmetry
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_class
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.symmetry_check import averaged, cropped
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.pipelines.resolution.fsc_mask import average
from cryoeq.pipelines.resolution.half_map_names import halves_beside, other_half, require_file
from cryoeq.runtime.device import choose_device

_LAST_SHELL = 64
_MAX_BOX_PX = 64  # in which particles are compared
_PARTICLES = 3  # groups about which particles are asked
_FIRST_SHELLS, _SAME_MAP = slice(1, 6), 0.9  # correlation of a map with the average of its half maps there


@dataclass(frozen=True)
class _Maps:
    """Map and half maps, with their files."""

    whole: Volume
    halves: HalfMaps | None
    files: tuple[Path, Path] | None


def symmetry(config: SymmetryConfig) -> Iterator[Event]:
    """Score the point groups of a map, and write it on the axes of the best.

    Yields:
        Notes, and one report.

    Raises:
        ConfigError: C1 is to be scored.
        MapFileError: a map is damaged, or the half maps do not fit it or are not independent.
        OutputError: the run's folder holds no reconstruction, or a file cannot be written.
    """
    if config.symmetry is not None and config.symmetry.strip().upper() in {"C1", "D1"}:
        raise ConfigError(f"--sym {config.symmetry}", "Expected a group with an axis", "Leave out --sym to try all")
    require_file(config.volume)
    maps = yield from _read_maps(config)
    groups = find_point_groups(
        maps.whole,
        maps.halves,
        symmetry=config.symmetry,
        resolution_angstrom=config.resolution_angstrom,
        max_order=config.max_order,
        last_shell=_LAST_SHELL,
    )
    gains = {} if config.run is None else _ask_particles(config, config.run, maps.whole, groups)
    best = _named(groups, config)
    yield Report(f"Symmetry of {config.volume.name}", _rows(groups, best, gains, maps.whole))
    yield _conclusion(groups, config)
    yield from _objections(groups, best, gains)
    results = _as_json(config, maps, groups, gains)
    if config.json_file is not None:
        write_json(config.json_file, results)
        yield Note(f"Results: {config.json_file}")
    if config.output is not None:
        yield from _write_folder(config, make_folder(config.output), maps.whole, groups, results)


def _read_maps(config: SymmetryConfig) -> Generator[Note, None, _Maps]:
    angpix = config.pixel_size_angstrom
    files = config.half_maps or halves_beside(config.volume)
    device = choose_device(config.device)
    whole = read_density(config.volume, angpix=angpix).to(device)
    yield from (Note(note, "warning") for note in header_notes(config.volume))
    if files is None:
        limit = "" if config.resolution_angstrom else " Give --resolution as well."
        yield Note(
            "No half maps: the map is compared with itself, so that its noise speaks against every symmetry. Give them "
            f"with --half-maps.{limit}",
            "warning",
        )
        return _Maps(whole, None, None)
    first, second = (read_density(path, angpix=angpix).to(device) for path in files)
    require_same_frame(first, second, names="the half maps")
    require_same_frame(whole, first, names="the map and its half map")
    require_independent(compare_maps(first, second), names=f"{files[0]} and {files[1]}")
    yield Note(f"Half maps: {files[0].name}, {files[1].name}.")
    if other_half(config.volume) is not None:
        whole = average(first, second)
    return _Maps(whole, HalfMaps(first, second), files)


def _ask_particles(config: SymmetryConfig, folder: Path, whole: Volume, groups: PointGroups) -> Mapping[str, Gain]:
    """Log-likelihood that averaging over a group adds, of the groups with the highest scores, by their names."""
    run = RunFolder(folder)
    job = read_reconstruction_job(run, "Give the folder that cryoeq reconstruct -o made")
    number, halves = _class_of_map(config, run, job, whole)
    star = read_star(run.path("run_data.star"))
    rows = rows_of_class(star, number)
    of_class = star.rows(rows.tolist())
    poses, half_set = star_poses(of_class), star_half_set(of_class)
    if half_set is None:
        raise MapFileError(f"{run.path('run_data.star')} holds no half sets", "", "Run cryoeq reconstruct again")
    _, dataset = open_particles(
        job, config.datadir, count=len(star), box_size_px=whole.box_size_px, max_box_px=_MAX_BOX_PX, rows=rows,
        star=of_class,
    )  # fmt: skip
    halves = HalfMaps(*(cropped(half, dataset.box_size_px) for half in (halves.first, halves.second)))
    asked = sorted(groups.groups, key=lambda group: (group.holds, group.order if group.holds else group.score))
    asked = asked[-_PARTICLES:]
    gains = {}
    for group in asked:
        copies = equivalent_poses(poses, group.symmetry, group.fit)
        plain, symmetric = held_out_log_likelihoods(dataset, copies, half_set, [halves, averaged(halves, group)])
        gains[group.symmetry] = Gain.of(symmetric, plain)
    return gains


def _class_of_map(
    config: SymmetryConfig, run: RunFolder, job: Mapping[str, Any], whole: Volume
) -> tuple[int | None, HalfMaps]:
    """The class of the run whose map this is, at its place, with its half maps; None of a run of one class.

    Raises:
        MapFileError: it is none of them: its axes say nothing of the run's particles.
    """
    n_classes = ReconstructionMetrics.from_json(job.get("results", {})).n_classes
    found = list[tuple[float, int, HalfMaps]]()
    for number in range(1, n_classes + 1):
        names = map_names(number, n_classes)
        paths = [run.path(name) for name in (names.first_half, names.second_half)]
        if not all(path.is_file() for path in paths):
            continue
        first, second = (
            read_density(path, angpix=config.pixel_size_angstrom).to(whole.values.device) for path in paths
        )
        require_same_frame(whole, first, names=f"{config.volume} and the half maps of {run.folder}")
        agreement = float(compare_maps(whole, average(first, second)).unmasked[_FIRST_SHELLS].mean())
        found.append((agreement, number, HalfMaps(first, second)))
    if not found:
        raise MapFileError(
            f"{run.folder} holds no half maps", "Each particle is compared with the other half set's map"
        )
    agreement, number, halves = max(found, key=lambda each: each[0])
    if not agreement > _SAME_MAP:
        own = " or ".join(str(run.path(map_names(number, n_classes).whole)) for number in range(1, n_classes + 1))
        raise MapFileError(
            f"{config.volume} is not {'the' if n_classes == 1 else 'a'} map of {run.folder}, or not at its place: "
            f"their first shells correlate by {agreement:.2f}",
            "The poses of the particles are those of the run's own map",
            f"Give {own}, or leave out --run",
        )
    return (None if n_classes == 1 else number), halves


def _named(groups: PointGroups, config: SymmetryConfig) -> GroupAgreement | None:
    """The point group of the map; where one alone was asked about, that one, if it holds."""
    if config.symmetry is None:
        return groups.best
    only = groups.groups[0]
    return only if only.holds and not groups.is_round else None


def _rows(
    groups: PointGroups, best: GroupAgreement | None, gains: Mapping[str, Gain], volume: Volume
) -> dict[str, str]:
    side = volume.box_size_px * volume.pixel_size_angstrom
    rows = {"Compared to": f"{side / groups.last_shell:.1f} Å (shell {groups.last_shell})"}
    if best is not None:
        x, y, z = best.axis.tolist()
        rows["Point group"] = best.symmetry
        rows["Main axis"] = f"({x:.4f}, {y:.4f}, {z:.4f})"
        inside = [group.symmetry for group in groups.holding[1:]]
        if inside:
            rows["Hold as well"] = ", ".join(inside)
    for group in groups.groups:
        gain = gains.get(group.symmetry)
        told = "" if gain is None else f"; particles {gain.mean:+.2g} nats each, {gain.sigmas:.0f} σ"
        rows[group.symmetry] = (
            f"{group.score:.2f}, {group.sigmas:.0f} σ (coarse {group.coarse:.2f}, fine {group.fine:.2f}, weakest "
            f"{group.weakest:.2f}){told}"
        )
    return rows


def _conclusion(groups: PointGroups, config: SymmetryConfig) -> Note:
    if groups.is_round:
        return Note(
            f"The map is round: randomly rotated copies agree as well, but for {groups.contrast:.0%}, so that no point "
            "group can be named.",
            "warning",
        )
    if config.symmetry is not None:
        only = groups.groups[0]
        return Note(f"{only.symmetry} {'holds' if only.holds else 'does not hold'}; no other group was tried.")
    if groups.best is not None:
        best = groups.best
        return Note(f"The map looks like {best.symmetry}: its copies agree, with a score of {best.score:.2f}.")
    if groups.is_of_revolution:
        return Note(
            f"The map agrees with its copies at any angle about an axis: its order, if there is one, is beyond "
            f"{config.max_order} (--max-order), or not resolved.",
            "warning",
        )
    return Note("No point group holds.")


def _objections(groups: PointGroups, best: GroupAgreement | None, gains: Mapping[str, Gain]) -> Iterator[Note]:
    pseudo = groups.pseudo
    gain = None if best is None else gains.get(best.symmetry)
    if best is not None and gain is not None and gain.sigmas < SURE_SIGMAS:
        yield Note(
            f"{best.symmetry} holds in the map, but the particles do not speak for it: averaging changes their "
            f"log-likelihood by {gain.mean:+.2g} nats each ({gain.sigmas:.1f} σ).",
            "warning",
        )
    if pseudo is not None:
        yield Note(
            f"{pseudo.symmetry} is a pseudo-symmetry: the agreement is {pseudo.coarse:.2f} over the lower half of the "
            f"shells, {pseudo.fine:.2f} over the upper half, where 1 would be a symmetry.",
            "warning",
        )


def _as_json(config: SymmetryConfig, maps: _Maps, groups: PointGroups, gains: Mapping[str, Gain]) -> dict[str, object]:
    side = maps.whole.box_size_px * maps.whole.pixel_size_angstrom
    best, pseudo = _named(groups, config), groups.pseudo
    return {
        "map": str(config.volume),
        "half_maps": None if maps.files is None else [str(path) for path in maps.files],
        "point_group": "C1" if best is None else best.symmetry,
        "pseudo_symmetry": None if pseudo is None else pseudo.symmetry,
        "is_round": groups.is_round,
        "is_of_revolution": config.symmetry is None and groups.is_of_revolution,
        "contrast": groups.contrast,
        "resolution_angstrom": side / groups.last_shell,
        "groups": [_group_as_json(group, gains.get(group.symmetry)) for group in groups.groups],
        "frequency_per_angstrom": [shell / side for shell in range(len(groups.half_correlations))],
        "half_map_fsc": groups.half_correlations.tolist(),
        "random_fsc": groups.random_correlations.tolist(),
        "random_fsc_deviation": groups.random_deviations.tolist(),
    }


def _group_as_json(group: GroupAgreement, gain: Gain | None) -> dict[str, object]:
    return {
        "symmetry": group.symmetry,
        "holds": group.holds,
        "score": group.score,
        "weakest": group.weakest,
        "coarse": group.coarse,
        "fine": group.fine,
        "between": group.between,
        "sigmas": group.sigmas,
        "particles": None if gain is None else {"gain_nats": gain.mean, "sigmas": gain.sigmas},
        "axis": group.axis.tolist(),
        "rotation": group.fit.rotation.tolist(),
        "shift_angstrom": group.fit.shift_angstrom.tolist(),
        "fsc": group.correlations.tolist(),
    }


def _write_folder(
    config: SymmetryConfig, folder: Path, volume: Volume, groups: PointGroups, results: Mapping[str, object]
) -> Iterator[Note]:
    from cryoeq.outputs.symmetry_plot import plot_point_groups  # not above, because of matplotlib

    plot_point_groups(folder / "symmetry.png", groups, volume.box_size_px * volume.pixel_size_angstrom)
    write_json(folder / "symmetry.json", results)
    written = "symmetry.json, symmetry.png"
    group = groups.best if config.symmetry is None else groups.groups[0]
    if group is not None:
        fit, frame = group.fit, read_map_frame(config.volume, angpix=config.pixel_size_angstrom)
        aligned = rotate_map(volume.values, fit.rotation, fit.shift_angstrom / volume.pixel_size_angstrom)
        for name, values, what in (
            ("aligned", aligned, "on the axes of"),
            ("symmetrised", impose_symmetry(volume, group.symmetry, fit).values, "averaged over"),
        ):
            label = f"{what} {group.symmetry} by cryoeq symmetry"
            write_map(folder / f"{name}.mrc", replace(volume, values=values), label=label,
                      origin_angstrom=frame.corner_angstrom)  # fmt: skip
        written += ", aligned.mrc, symmetrised.mrc"
    yield Note(f"Written to {folder}: {written}")
