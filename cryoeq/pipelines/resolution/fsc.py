"""``cryoeq fsc``: two maps, shell by shell."""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import FscConfig
from cryoeq.domain.atoms import is_atomic_model
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.volume import MapFrame, Volume, frame_differences, require_same_frame
from cryoeq.errors import ConfigError
from cryoeq.evaluation.hand import measure_hand
from cryoeq.evaluation.independence import (
    are_the_same,
    find_inverted_contrast,
    is_masked,
    reaches_nyquist,
    require_independent,
)
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, TRUTH_THRESHOLD, FscCurves, add_mask, compare_maps
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.density import read_density
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import header_notes, write_map
from cryoeq.io.text import write_json
from cryoeq.maps.alignment import MapAlignment, align_map
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.fsc_files import write_fsc_star, write_fsc_xml
from cryoeq.pipelines.resolution.fsc_mask import (
    average,
    curves_by_mask,
    find_region,
    given_mask_warnings,
    make_mask,
    mask_warnings,
    masked_curve_warnings,
)
from cryoeq.pipelines.resolution.half_map_names import MapPair, find_pair
from cryoeq.pipelines.resolution.postprocess import HalfMapResult, PostprocessMetrics, postprocess, sharpening_of
from cryoeq.runtime.device import choose_device


@dataclass(frozen=True)
class _Masked:
    """A mask, its kind, and the correlation under other masks, None where it is not needed."""

    mask: Volume | None
    kind: str
    by_mask: Mapping[str, Float[Tensor, " shells"]] | None


def fsc(config: FscConfig) -> Iterator[Event]:
    """Compare two maps, or a map and a model, and write the results; half maps are post-processed too.

    Yields:
        Notes on the input and on the result, and one report.

    Raises:
        ConfigError: the second map cannot be guessed, options contradict each other, or a folder is missing.
        MapFileError: a map or mask is damaged, they do not fit each other, or half maps are not independent.
    """
    _require_output(config)
    if config.second is not None and is_atomic_model(config.second):
        _require_only_maps(config)
        from cryoeq.pipelines.resolution.map_model import (
            compare_with_model,  # not above: its imports take a second
        )

        yield from compare_with_model(config, config.second)
    else:
        yield from _compare_pair(config, find_pair(config))


def _compare_pair(config: FscConfig, pair: MapPair) -> Iterator[Event]:
    folder, written = config.output, config.json_file
    if written is not None and written.is_file() and written.samefile(pair.second):
        found = f"--json {written} would be written over, which is the other half map"
        raise ConfigError(found, "", "Choose another name")
    with_postprocessing = pair.are_halves if config.postprocess is None else config.postprocess
    first, second = yield from _read_pair(config, pair)
    frame = read_map_frame(pair.second if config.with_alignment else pair.first, angpix=config.pixel_size_angstrom)
    alignment = None
    if config.with_alignment:
        alignment = align_map(first, second, with_hand=True)
        first = alignment.apply(first)
        yield Note(_alignment_text(alignment, second.pixel_size_angstrom))
        with_postprocessing = False
    curves = compare_maps(first, second)
    are_halves = pair.are_halves or with_postprocessing
    yield from _check_independence(curves, (first, second), pair if are_halves else None)
    masked = _make_mask(config, pair, (first, second), curves, compared=with_postprocessing and folder is not None)
    if masked.mask is not None:
        curves = add_mask(curves, first, second, masked.mask, torch.Generator().manual_seed(config.seed))
        yield from given_mask_warnings(config, pair.second if config.with_alignment else pair.first)
        yield from mask_warnings(masked.mask)
    yield from masked_curve_warnings(curves)
    sharpened = None
    if folder is not None and masked.by_mask is not None:
        result = HalfMapResult(
            pair, first, second, curves, masked.mask, masked.kind, masked.by_mask, frame.corner_angstrom
        )
        sharpened = yield from postprocess(make_folder(folder), result, sharpening_of(config.sharpening, curves))
    threshold = _threshold(config, pair)
    hand = measure_hand(average(first, second), curves.final_resolution_angstrom) if _are_halves(config, pair) else None
    rows = _rows(curves, sharpened, threshold) | ({} if hand is None else {"Hand": hand.text})
    yield Report(f"Resolution of {pair.first.name} and {pair.second.name}", rows)
    results = _as_json(config, pair, masked.kind, curves, alignment) | _sharpened_as_json(curves, sharpened)
    results["hand"] = None if hand is None else hand.to_json()
    results |= yield from _in_detail(config, first, second, masked.mask, frame)
    if config.json_file is not None:
        write_json(config.json_file, results)
        yield Note(f"Results: {config.json_file}")
    if folder is not None:
        write_json(make_folder(folder) / "fsc.json", results)
    if folder is not None and sharpened is None:
        yield from _write_curves(folder, pair, curves, threshold, first if alignment else None, frame)


def _in_detail(
    config: FscConfig, first: Volume, second: Volume, mask: Volume | None, frame: MapFrame
) -> Generator[Event, None, dict[str, object]]:
    """Resolution by direction and by position, where requested; the results of each under its name."""
    results: dict[str, object] = {}
    folder = None if config.output is None else make_folder(config.output)
    if config.with_directional:
        from cryoeq.pipelines.resolution.directional import directional_resolution

        results["directional"] = yield from directional_resolution(first, second, mask, folder)
    if config.with_local_resolution and folder is not None:
        from cryoeq.pipelines.resolution.local_resolution import local_resolution

        phases, corner = torch.Generator().manual_seed(config.seed), frame.corner_angstrom
        results["local_resolution"] = yield from local_resolution(
            first, second, mask, folder, generator=phases, corner_angstrom=corner
        )
    return results


def _require_output(config: FscConfig) -> None:
    if config.with_local_resolution and config.output is None:
        raise ConfigError("--local-resolution without a folder", "Its result is a map", "Give a folder with -o")
    if config.postprocess and (config.output is None or config.with_alignment):
        raise ConfigError(
            "--postprocess", "It needs a folder (-o), and half maps in one frame", "Give -o, and leave out --align"
        )


def _require_only_maps(config: FscConfig) -> None:
    if config.with_directional or config.with_local_resolution or config.postprocess:
        raise ConfigError(
            "--directional, --local-resolution or --postprocess with an atomic model",
            "They compare two half maps",
            "Give the half maps, or leave out the options",
        )


def _read_pair(config: FscConfig, pair: MapPair) -> Generator[Note, None, tuple[Volume, Volume]]:
    device, angpix, paths = choose_device(config.device), config.pixel_size_angstrom, (pair.first, pair.second)
    first, second = (read_density(path, angpix=angpix) for path in paths)
    require_same_frame(first, second)
    notes = [note for path in paths for note in header_notes(path)]
    if not config.with_alignment:
        notes += frame_differences(*(read_map_frame(path, angpix=angpix) for path in paths))
    yield from (Note(note, "warning") for note in notes)
    if angpix is None and first.pixel_size_angstrom == second.pixel_size_angstrom == 1.0:
        yield Note("A pixel size of 1 Å is often one that was never set; give the true one with --angpix.", "warning")
    return (
        first.to(device),
        second.to(device),
    )


def _make_mask(
    config: FscConfig, pair: MapPair, maps: tuple[Volume, Volume], curves: FscCurves, *, compared: bool
) -> _Masked:
    """The mask, made last: at 512 pixels it is half a gigabyte, and so is each mask that it is compared with."""
    kind = str(config.mask or "") or ("auto" if pair.are_halves and not config.with_alignment else "none")
    region = find_region(config.automask, average(*maps), curves) if kind == "auto" or compared else None
    by_mask = curves_by_mask(*maps, region) if compared and region is not None else None
    return _Masked(make_mask(config.automask, kind, maps[0], curves, region), kind, by_mask)


def _alignment_text(alignment: MapAlignment, pixel_size_angstrom: float) -> str:
    shift = float(alignment.shift_angstrom.norm())
    mirrored = "mirrored, " if alignment.is_mirrored else ""
    return (
        f"Aligned: {mirrored}rotated by {_rotation_deg(alignment):.2f}°, then shifted by {shift:.2f} Å "
        f"({shift / pixel_size_angstrom:.2f} px); mean FSC of the shells compared {alignment.correlation:.3f}."
    )


def _rotation_deg(alignment: MapAlignment) -> float:
    return math.degrees(rotation_angle_rad(torch.eye(3, device=alignment.rotation.device), alignment.rotation))


def _check_independence(curves: FscCurves, maps: tuple[Volume, Volume], halves: MapPair | None) -> Iterator[Note]:
    """Refuse half maps that are not independent, and warn where any two maps are the same."""
    if halves is not None:
        require_independent(curves, names=f"{halves.first} and {halves.second}")
        if reaches_nyquist(curves):
            yield Note(
                f"The FSC stays above {HALF_MAP_THRESHOLD:g} up to Nyquist ({2 * curves.pixel_size_angstrom:.3g} Å): "
                "either the voxels limit the resolution, or the half maps are filtered or not independent.",
                "warning",
            )
        if any(map(is_masked, maps)):
            yield Note(
                "The half maps were masked: many of their voxels are exactly 0. A mask correlates by itself, so the "
                "unmasked FSC is too high. Give half maps as they were reconstructed.",
                "warning",
            )
    elif are_the_same(curves):
        yield Note("The two maps are the same map: their FSC is 1 in every shell.", "warning")
    elif inverted := find_inverted_contrast(curves):
        yield Note(f"{inverted.found[0].upper()}{inverted.found[1:]}.", "warning")


def _threshold(config: FscConfig, pair: MapPair) -> float:
    """Correlation at which the resolution is read off: 0.143 between half maps, 0.5 between whole maps."""
    return HALF_MAP_THRESHOLD if _are_halves(config, pair) else TRUTH_THRESHOLD


def _are_halves(config: FscConfig, pair: MapPair) -> bool:
    return (pair.are_halves or bool(config.postprocess)) and not config.with_alignment


def _rows(curves: FscCurves, sharpened: PostprocessMetrics | None, threshold: float) -> dict[str, str]:
    rows = {"Box and pixel size": f"{curves.box_size_px} px, {curves.pixel_size_angstrom:.4g} Å"}
    compared = "half maps" if threshold == HALF_MAP_THRESHOLD else "whole maps"
    for name, resolution in curves.resolutions_angstrom(threshold).items():
        if resolution is not None:
            rows[f"FSC = {threshold:g} ({compared}), {name}"] = _resolution_text(resolution)
    if curves.masked is not None and threshold == HALF_MAP_THRESHOLD:
        rows["Final resolution"] = _resolution_text(curves.final_resolution_angstrom)
    if sharpened is not None:
        source = "fitted" if sharpened.fit else "as given"
        rows["B-factor"] = f"{sharpened.bfactor_angstrom2:.1f} Å² ({source})" if sharpened.bfactor_angstrom2 else "none"
    return rows


def _resolution_text(resolution: float) -> str:
    return f"{resolution:.2f} Å" if math.isfinite(resolution) else "none: below in the first shell"


def _as_json(
    config: FscConfig, pair: MapPair, mask: str, curves: FscCurves, alignment: MapAlignment | None
) -> dict[str, object]:
    side = curves.box_size_px * curves.pixel_size_angstrom
    named = {
        "unmasked": curves.unmasked,
        "masked": curves.masked,
        "randomised": curves.randomised,
        "corrected": curves.corrected,
    }
    return {
        "maps": [str(pair.first), str(pair.second)],
        "mask": None if mask == "none" else mask,
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


def _sharpened_as_json(curves: FscCurves, sharpened: PostprocessMetrics | None) -> dict[str, object]:
    if sharpened is None:
        return {}
    return {
        "final_resolution_angstrom": _finite({"final": curves.final_resolution_angstrom})["final"],
        "bfactor_angstrom2": sharpened.bfactor_angstrom2,
        "resolution_angstrom_by_mask": _finite(sharpened.resolutions_angstrom),
    }


def _finite(resolutions: Mapping[str, float | None]) -> dict[str, float | None]:
    """Resolutions for JSON, which has no infinity: null where there is none."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in resolutions.items()}


def _alignment_as_json(alignment: MapAlignment) -> dict[str, object]:
    return {
        "rotation": alignment.rotation.tolist(),
        "turn_deg": _rotation_deg(alignment),
        "shift_angstrom": alignment.shift_angstrom.tolist(),
        "is_mirrored": alignment.is_mirrored,
        "mean_fsc": alignment.correlation,
    }


def _write_curves(
    folder: Path, pair: MapPair, curves: FscCurves, threshold: float, aligned: Volume | None, frame: MapFrame
) -> Iterator[Note]:
    from cryoeq.outputs.evaluation_plots import plot_fsc  # see postprocess._draw

    write_fsc_star(folder / "fsc.star", curves)
    write_fsc_xml(folder / "fsc.xml", curves)
    plot_fsc(folder / "fsc.png", curves, title=f"{pair.first.name} and {pair.second.name}", threshold=threshold)
    names = "fsc.star, fsc.xml, fsc.png, fsc.json"
    if aligned is not None:
        label = "aligned by cryoeq fsc --align"
        write_map(folder / "aligned.mrc", aligned, label=label, origin_angstrom=frame.corner_angstrom)
        names += ", aligned.mrc"
    yield Note(f"Written to {folder}: {names}")
