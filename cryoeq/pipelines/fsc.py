"""``cryoeq fsc``: two maps, shell by shell."""

import math
from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from cryoeq.config.fsc import FscConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError
from cryoeq.evaluation.alignment import MapAlignment, align_map
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, TRUTH_THRESHOLD, FscCurves, compare_maps
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.model import is_atomic_model
from cryoeq.io.mrc import header_notes, read_map, write_map
from cryoeq.io.text import write_json
from cryoeq.outputs.evaluation_plots import plot_fsc
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.fsc_files import write_fsc_star, write_fsc_xml
from cryoeq.pipelines.device import choose_device
from cryoeq.pipelines.directional import directional_resolution
from cryoeq.pipelines.local_resolution import local_resolution
from cryoeq.pipelines.model_density import compare_with_model

_HIGH_MASK_CORRELATION = 0.1


def fsc(config: FscConfig) -> Iterator[Event]:
    """Compare two maps, or a map and a model, report their resolution and write what was asked for.

    Args:
        config: the resolved settings.

    Yields:
        Notes on the input and on the result, and one report.

    Raises:
        MapFileError: a map or mask is damaged, or they do not fit each other.
        ConfigError: local resolution is asked for, and no folder is given.
    """
    if config.with_local_resolution and config.output is None:
        raise ConfigError("--local-resolution without a folder", "Its result is a map", "Say with -o where to write it")
    if is_atomic_model(config.second):
        _require_only_maps(config)
        yield from compare_with_model(config, config.second)
        return
    device = choose_device(config.device)
    for path in (config.first, config.second):
        yield from (Note(note, "warning") for note in header_notes(path))
    first, second = (_read(path, config.pixel_size_angstrom, device) for path in (config.first, config.second))
    mask = _read(config.mask, second.pixel_size_angstrom, device) if config.mask else None
    alignment = None
    if config.with_alignment:
        alignment = align_map(first, second, with_hand=True)
        first = alignment.apply(first)
        yield Note(_alignment_text(alignment, second.pixel_size_angstrom))
    curves = compare_maps(first, second, mask, generator=torch.Generator().manual_seed(config.seed))
    yield from _doubts(curves)
    yield Report(f"Resolution of {config.first.name} and {config.second.name}", _rows(curves))
    results = _as_json(config, curves, alignment)
    results |= yield from _in_detail(config, first, second, mask)
    if config.json_file is not None:
        write_json(config.json_file, results)
        yield Note(f"Figures: {config.json_file}")
    if config.output is not None:
        yield from _write_folder(make_folder(config.output), config, curves, results, first if alignment else None)


def _in_detail(
    config: FscConfig, first: Volume, second: Volume, mask: Volume | None
) -> Generator[Event, None, dict[str, object]]:
    """Resolution by direction and by place, where asked for; the figures of either under its name."""
    results: dict[str, object] = {}
    folder = None if config.output is None else make_folder(config.output)
    if config.with_directional:
        results["directional"] = yield from directional_resolution(first, second, mask, folder)
    if config.with_local_resolution and folder is not None:
        phases = torch.Generator().manual_seed(config.seed)
        results["local_resolution"] = yield from local_resolution(first, second, mask, folder, generator=phases)
    return results


def _require_only_maps(config: FscConfig) -> None:
    if config.with_directional or config.with_local_resolution:
        raise ConfigError(
            "--directional or --local-resolution with an atomic model",
            "They compare two half maps",
            "Give the half maps, or leave the options out",
        )


def _read(path: Path, angpix: float | None, device: torch.device) -> Volume:
    volume = read_map(path, angpix=angpix)
    return Volume(volume.values.to(device), volume.pixel_size_angstrom)


def _alignment_text(alignment: MapAlignment, pixel_size_angstrom: float) -> str:
    shift = float(alignment.shift_angstrom.norm())
    mirrored = "mirrored, " if alignment.is_mirrored else ""
    return (
        f"Aligned: {mirrored}turned by {_turn_deg(alignment):.2f} degrees, then moved by {shift:.2f} Å "
        f"({shift / pixel_size_angstrom:.2f} px); mean FSC of the shells compared {alignment.correlation:.3f}."
    )


def _turn_deg(alignment: MapAlignment) -> float:
    return math.degrees(rotation_angle_rad(torch.eye(3, device=alignment.rotation.device), alignment.rotation))


def _doubts(curves: FscCurves) -> Iterator[Note]:
    """Signs that a mask misleads."""
    if curves.masked is None:
        return
    if curves.corrected is None or curves.randomised is None:
        yield Note("The unmasked FSC never falls below 0.8, so the masked one cannot be corrected.", "warning")
        return
    resolutions = curves.resolutions_angstrom(HALF_MAP_THRESHOLD)
    unmasked, corrected = resolutions["unmasked"] or math.inf, resolutions["corrected"] or math.inf
    if corrected > unmasked:
        yield Note("The corrected resolution is worse than the unmasked one: the mask does not fit.", "warning")
    side = curves.box_size_px * curves.pixel_size_angstrom
    at_resolution = float(curves.randomised[round(side / corrected)])
    if math.isfinite(corrected) and at_resolution > _HIGH_MASK_CORRELATION:
        yield Note(
            f"The mask alone correlates by {at_resolution:.2f} at the resolution: it is too tight or too hard-edged.",
            "warning",
        )


def _rows(curves: FscCurves) -> dict[str, str]:
    rows = {"Box and pixel size": f"{curves.box_size_px} px, {curves.pixel_size_angstrom:.4g} Å"}
    for threshold, meaning in ((HALF_MAP_THRESHOLD, "half maps"), (TRUTH_THRESHOLD, "against a truth")):
        for name, resolution in curves.resolutions_angstrom(threshold).items():
            if resolution is not None:
                text = f"{resolution:.2f} Å" if math.isfinite(resolution) else "none: below it from the first shell on"
                rows[f"FSC = {threshold:g} ({meaning}), {name}"] = text
    return rows


def _as_json(config: FscConfig, curves: FscCurves, alignment: MapAlignment | None) -> dict[str, object]:
    side = curves.box_size_px * curves.pixel_size_angstrom
    named = {
        "unmasked": curves.unmasked,
        "masked": curves.masked,
        "randomised": curves.randomised,
        "corrected": curves.corrected,
    }
    return {
        "maps": [str(config.first), str(config.second)],
        "mask": str(config.mask) if config.mask else None,
        "box_size_px": curves.box_size_px,
        "pixel_size_angstrom": curves.pixel_size_angstrom,
        "seed": config.seed,
        "resolution_angstrom": _finite(curves.resolutions_angstrom(HALF_MAP_THRESHOLD)),
        "resolution_angstrom_half": _finite(curves.resolutions_angstrom(TRUTH_THRESHOLD)),
        "randomised_from_shell": curves.randomised_from_shell,
        "alignment": _alignment_as_json(alignment) if alignment else None,
        "frequency_per_angstrom": [shell / side for shell in range(len(curves.unmasked))],
        "fsc": {name: None if curve is None else curve.tolist() for name, curve in named.items()},
    }


def _finite(resolutions: dict[str, float | None]) -> dict[str, float | None]:
    """JSON knows no infinity: no resolution is null, like no curve."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in resolutions.items()}


def _alignment_as_json(alignment: MapAlignment) -> dict[str, object]:
    return {
        "rotation": alignment.rotation.tolist(),
        "turn_deg": _turn_deg(alignment),
        "shift_angstrom": alignment.shift_angstrom.tolist(),
        "is_mirrored": alignment.is_mirrored,
        "mean_fsc": alignment.correlation,
    }


def _write_folder(
    folder: Path, config: FscConfig, curves: FscCurves, results: dict[str, object], aligned: Volume | None
) -> Iterator[Note]:
    threshold = HALF_MAP_THRESHOLD if aligned is None else TRUTH_THRESHOLD
    write_fsc_star(folder / "fsc.star", curves)
    write_fsc_xml(folder / "fsc.xml", curves)
    plot_fsc(folder / "fsc.png", curves, title=f"{config.first.name} and {config.second.name}", threshold=threshold)
    write_json(folder / "fsc.json", results)
    names = "fsc.star, fsc.xml, fsc.png, fsc.json"
    if aligned is not None:
        write_map(folder / "aligned.mrc", aligned, label="aligned by cryoeq fsc --align")
        names += ", aligned.mrc"
    yield Note(f"Written to {folder}: {names}")
