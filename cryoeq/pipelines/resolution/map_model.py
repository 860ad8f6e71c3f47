"""``cryoeq fsc MAP MODEL``: a map against an atomic model, shell by shell."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import FscConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.evaluation.model_mask import soft_mask_around
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, FscCurves, compare_maps, require_mask
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.density import read_density
from cryoeq.io.map_frame import origin_notes, read_map_corner
from cryoeq.io.model import AtomicModel, read_model
from cryoeq.io.mrc import header_notes, read_map, write_map
from cryoeq.io.text import write_json
from cryoeq.maps.alignment import MapAlignment, align_map
from cryoeq.outputs.evaluation_plots import plot_fsc
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.fsc_files import write_fsc_star, write_fsc_xml
from cryoeq.pipelines.resolution.fsc_mask import given_mask_warnings
from cryoeq.runtime.device import choose_device

# The mask is 1 within this radius of an atom, then falls to 0 over the edge.
_MASK_RADIUS_ANGSTROM, _MIN_MASK_RADIUS_PX, _MASK_EDGE_PX = 5.0, 2.0, 6.0
_LOW_SHELLS = slice(1, 6)
_MIN_LOW_CORRELATION = 0.3  # mean FSC of the first shells, below which map and model are not of one molecule
_MAX_OUTSIDE = 0.01  # fraction of the atoms


@dataclass(frozen=True)
class _Frame:
    """Grid of a map in the frame of its model.

    Args:
        box_size_px: side of the box.
        pixel_size_angstrom: pixel size of the map.
        corner_angstrom: position (x, y, z) of the first voxel.
    """

    box_size_px: int
    pixel_size_angstrom: float
    corner_angstrom: Float[Tensor, " 3"]

    @property
    def centre_angstrom(self) -> Float[Tensor, " 3"]:
        """Position of voxel n // 2."""
        return self.corner_angstrom + self.box_size_px // 2 * self.pixel_size_angstrom

    def positions_px(self, model: AtomicModel) -> Float[Tensor, "atoms 3"]:
        """Positions of the atoms (x, y, z), in voxels from the first one."""
        return (model.positions_angstrom - self.corner_angstrom) / self.pixel_size_angstrom

    def density(self, model: AtomicModel, config: FscConfig) -> Volume:
        """Density of the model on this grid."""
        return model.density(
            self.box_size_px,
            self.pixel_size_angstrom,
            self.corner_angstrom,
            bfactor_angstrom2=config.model_bfactor_angstrom2,
        )


def compare_with_model(config: FscConfig, path: Path) -> Iterator[Event]:
    """Compare a map with the density of an atomic model, without a mask and within a soft one around the model.

    The map is left unchanged; the model stays in the frame of the map's header or, with alignment, is rotated and
    shifted onto the map. B-factors are those of the file, or one for all.

    Args:
        config: settings of the command; ``first`` is the map.
        path: file of the model.

    Yields:
        Notes on the input and on the result, and one report.

    Raises:
        MapFileError: map or model are damaged, or the model lies outside the map.
    """
    device = choose_device(config.device)
    volume, model = read_density(config.first, angpix=config.pixel_size_angstrom), read_model(path)
    pixel = volume.pixel_size_angstrom
    notes = (*header_notes(config.first), *(() if config.with_alignment else origin_notes(config.first, pixel)))
    yield from (Note(note, "warning") for note in notes)
    frame = _Frame(volume.box_size_px, pixel, read_map_corner(config.first, pixel))
    volume = volume.to(device)
    alignment = None
    if config.with_alignment:
        model, alignment = yield from _aligned(model, volume, frame, config)
    yield from _require_overlap(model, frame, path, config.first)
    density = frame.density(model, config)
    mask = _read_mask(config, model, frame)
    require_mask(mask, volume, name=f"the mask {config.mask or 'of the model'}")
    yield from given_mask_warnings(config, config.first)
    on_device = [part.to(device) for part in (density, mask)]
    curves = compare_maps(volume, *on_device)
    yield from _warnings(curves, is_aligned=alignment is not None)
    yield Report(f"{config.first.name} against the model {path.name}", _rows(curves, model, config))
    results = {"model": str(path)} | _as_json(config, curves, alignment)
    if config.json_file is not None:
        write_json(config.json_file, results)
        yield Note(f"Results: {config.json_file}")
    if config.output is not None:
        folder = make_folder(config.output)
        _write_curves(folder, f"{config.first.name} against {path.name}", curves, results)
        names = ["fsc.star", "fsc.xml", "fsc.png", "fsc.json", *_write_maps(folder, frame, density, mask)]
        if alignment is not None and not alignment.is_mirrored:
            model.write(folder / "aligned_model.cif")
            names.append("aligned_model.cif")
        yield Note(f"Written to {folder}: {', '.join(names)}")


def _aligned(
    model: AtomicModel, volume: Volume, frame: _Frame, config: FscConfig
) -> Generator[Event, None, tuple[AtomicModel, MapAlignment]]:
    """The model, rotated and shifted onto the map from wherever it was; mirrored where the map has the other hand."""
    centroid = model.positions_angstrom.mean(0)
    centred = model.moved(torch.eye(3), frame.centre_angstrom - centroid)
    density = frame.density(centred, config)
    moving = replace(density, values=density.values.to(volume.values.device))
    found = align_map(moving, volume, with_hand=True)
    rotation = found.rotation.cpu() @ torch.diag(torch.tensor([1.0, 1.0, -1.0 if found.is_mirrored else 1.0]))
    shift = frame.centre_angstrom + found.shift_angstrom.cpu() - rotation @ frame.centre_angstrom
    if found.is_mirrored:
        yield Note("The mirror image of the model fits better: the map has the other hand.", "warning")
    text = f"mean FSC of the shells compared {found.correlation:.3f}"
    yield Note(f"Aligned: the model was rotated by {_rotation_deg(found):.1f}° and shifted onto the map; {text}.")
    return centred.moved(rotation, shift), found


def _rotation_deg(alignment: MapAlignment) -> float:
    return math.degrees(rotation_angle_rad(torch.eye(3), alignment.rotation.cpu()))


def _require_overlap(model: AtomicModel, frame: _Frame, path: Path, map_path: Path) -> Iterator[Note]:
    """Refuse a model that lies mostly outside the box, and warn of one that does in part."""
    positions = frame.positions_px(model)
    outside = float(((positions < 0) | (positions >= frame.box_size_px)).any(1).float().mean())
    if outside > 0.5:
        low, high = (_as_text(positions.amin(0)), _as_text(positions.amax(0))) if len(positions) else ("", "")
        raise MapFileError(
            f"{path}: {outside:.0%} of the atoms lie outside {map_path}, in whose grid they have voxels "
            f"({low}) to ({high}) of 0 to {frame.box_size_px - 1}",
            "Expected a model in the frame of the map, as the map's header (ORIGIN, NXSTART) gives it",
            "Pass --align to have the model placed, or check the pixel size (--angpix)",
        )
    if outside > _MAX_OUTSIDE:
        yield Note(f"{outside:.0%} of the model's atoms lie outside the box and are left out.", "warning")


def _as_text(position: Float[Tensor, " 3"]) -> str:
    return ", ".join(f"{value:.0f}" for value in position.tolist())


def _read_mask(config: FscConfig, model: AtomicModel, frame: _Frame) -> Volume:
    pixel = frame.pixel_size_angstrom
    kind = str(config.mask or "auto")
    if kind in {"none", "sphere"}:
        raise ConfigError(
            f"--mask {kind} with an atomic model",
            "Expected auto, the mask around the model, or a map",
            "Leave out --mask",
        )
    if config.mask is not None and kind != "auto":
        return read_map(config.mask, angpix=pixel)
    radius_px = max(_MASK_RADIUS_ANGSTROM / pixel, _MIN_MASK_RADIUS_PX)
    values = soft_mask_around(frame.positions_px(model), frame.box_size_px, radius_px=radius_px, edge_px=_MASK_EDGE_PX)
    return Volume(values, pixel)


def _warnings(curves: FscCurves, *, is_aligned: bool) -> Iterator[Note]:
    low = float(curves.unmasked[_LOW_SHELLS].mean())
    if low < _MIN_LOW_CORRELATION:
        advice = "check pixel size, hand and model" if is_aligned else "try --align, and check the pixel size"
        yield Note(
            f"Even in the first shells the map and the model hardly correlate (mean FSC {low:.2f}): they do not "
            f"overlap, or are not of the same molecule; {advice}.",
            "warning",
        )


def _rows(curves: FscCurves, model: AtomicModel, config: FscConfig) -> dict[str, str]:
    resolutions = curves.resolutions_angstrom(TRUTH_THRESHOLD)
    where = "within the mask" if config.mask else "within a soft mask around the model"
    bfactor = config.model_bfactor_angstrom2
    return {
        "Box and pixel size": f"{curves.box_size_px} px, {curves.pixel_size_angstrom:.4g} Å",
        "Atoms, B-factors": f"{len(model.positions_angstrom)}, "
        + ("those of the file" if bfactor is None else f"{bfactor:g} Å² for all"),
        f"FSC = {TRUTH_THRESHOLD:g} (map and model), unmasked": _resolution_text(resolutions["unmasked"]),
        f"FSC = {TRUTH_THRESHOLD:g} (map and model), {where}": _resolution_text(resolutions["masked"]),
    }


def _resolution_text(resolution_angstrom: float | None) -> str:
    is_finite = resolution_angstrom is not None and math.isfinite(resolution_angstrom)
    return f"{resolution_angstrom:.2f} Å" if is_finite else "none: below in the first shell"


def _as_json(config: FscConfig, curves: FscCurves, alignment: MapAlignment | None) -> dict[str, object]:
    side = curves.box_size_px * curves.pixel_size_angstrom
    resolutions = curves.resolutions_angstrom(TRUTH_THRESHOLD)
    return {
        "map": str(config.first),
        "mask": str(config.mask) if config.mask else "around the model",
        "model_bfactor_angstrom2": config.model_bfactor_angstrom2,
        "box_size_px": curves.box_size_px,
        "pixel_size_angstrom": curves.pixel_size_angstrom,
        "resolution_angstrom_half": {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in resolutions.items()
            if name != "corrected"
        },
        "alignment": None
        if alignment is None
        else {
            "rotation": alignment.rotation.tolist(),
            "is_mirrored": alignment.is_mirrored,
            "mean_fsc": alignment.correlation,
        },
        "frequency_per_angstrom": [shell / side for shell in range(len(curves.unmasked))],
        "fsc": {
            name: None if curve is None else curve.tolist()
            for name, curve in (("unmasked", curves.unmasked), ("masked", curves.masked))
        },
    }


def _write_curves(folder: Path, title: str, curves: FscCurves, results: dict[str, object]) -> None:
    write_fsc_star(folder / "fsc.star", curves)
    write_fsc_xml(folder / "fsc.xml", curves)
    plot_fsc(folder / "fsc.png", curves, title=title, threshold=TRUTH_THRESHOLD)
    write_json(folder / "fsc.json", results)


def _write_maps(folder: Path, frame: _Frame, density: Volume, mask: Volume) -> list[str]:
    """Write the model's density and the mask, in the frame of the map; their names."""
    x, y, z = frame.corner_angstrom.tolist()
    write_map(folder / "model.mrc", density, label="density of an atomic model", origin_angstrom=(x, y, z))
    write_map(folder / "model_mask.mrc", mask, label="soft mask around an atomic model", origin_angstrom=(x, y, z))
    return ["model.mrc", "model_mask.mrc"]
