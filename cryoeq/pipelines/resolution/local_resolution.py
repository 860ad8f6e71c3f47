"""``cryoeq fsc --local-resolution``: resolution at each voxel."""

from collections.abc import Generator
from pathlib import Path

import torch

from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.volume import Volume, require_same_frame
from cryoeq.errors import MapFileError
from cryoeq.evaluation.local_resolution import (
    SAMPLING_ANGSTROM,
    LocalResolution,
    SlidingSphere,
    filter_locally,
    sphere_frequencies,
    spread_over_voxels,
    with_randomised,
)
from cryoeq.io.mrc import write_map
from cryoeq.outputs.local_resolution_plot import plot_local_resolution

_QUANTILES = {"5 % of the voxels below": 0.05, "Median": 0.5, "95 % of the voxels below": 0.95}


def local_resolution(
    first: Volume,
    second: Volume,
    mask: Volume | None,
    folder: Path,
    *,
    generator: torch.Generator,
    corner_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Generator[Event, None, dict[str, object]]:
    """Slide soft spheres over two half maps; write the resolution at each voxel and the map filtered to it.

    Args:
        first: a half map.
        second: the other half map.
        mask: region of the reported quantiles; the spheres slide over the whole box.
        folder: folder of local_resolution.mrc, local_filtered.mrc and local_resolution.png.
        generator: random number generator of the phases.
        corner_angstrom: coordinates (x, y, z) of the first voxel, for the headers of both maps.

    Yields:
        Progress, and a report.

    Returns:
        The metrics, for JSON.

    Raises:
        MapFileError: maps that do not fit each other, or too small for a sphere.
        OutputError: a file cannot be written.
    """
    require_same_frame(first, second)
    pixel = first.pixel_size_angstrom
    sphere = SlidingSphere.of(pixel, device=first.values.device)
    centres = _centres(sphere, first)
    maps = with_randomised(first, second, generator)
    frequencies, done = [], 0
    for chunk in centres.split(sphere.batch_size):
        frequencies.append(sphere_frequencies(maps, chunk, sphere, pixel))
        done += len(chunk)
        yield Progress("local resolution", done, len(centres))
    values = spread_over_voxels(torch.cat(frequencies), centres, sphere, first.box_size_px)
    mean = Volume((first.values + second.values) / 2, pixel)
    local = LocalResolution(Volume(values, pixel), filter_locally(mean, values))
    region = values > 0 if mask is None else (mask.values > 0.5) & (values > 0)
    quantiles = _quantiles(values, region)
    where = "in the sphere that fits into the box" if mask is None else "inside the mask"
    yield Report(
        f"Local resolution {where} ({len(centres)} spheres, {SAMPLING_ANGSTROM:g} Å apart)",
        {name: f"{value:.2f} Å" for name, value in quantiles.items()},
    )
    for name, volume, label in (
        ("local_resolution.mrc", local.resolution_angstrom, "local resolution in Angstrom"),
        ("local_filtered.mrc", local.filtered, "low-passed to the local resolution, not sharpened"),
    ):
        write_map(folder / name, volume, label=label, origin_angstrom=corner_angstrom)
    plot_local_resolution(folder / "local_resolution.png", local, region)
    yield Note(f"Written to {folder}: local_resolution.mrc, local_filtered.mrc, local_resolution.png")
    return {
        "sampling_angstrom": SAMPLING_ANGSTROM,
        "n_spheres": len(centres),
        "region": "sphere" if mask is None else "mask",
        "resolution_angstrom": {f"{fraction:g}": quantiles[name] for name, fraction in _QUANTILES.items()},
    }


def _centres(sphere: SlidingSphere, volume: Volume) -> torch.Tensor:
    centres = sphere.centres(volume.box_size_px)
    if not len(centres):
        side = volume.box_size_px * volume.pixel_size_angstrom
        raise MapFileError(
            f"the maps have a side of {side:.4g} Å",
            f"Expected more than {SAMPLING_ANGSTROM:g} Å, the diameter of the spheres that slide over them",
            "Leave out --local-resolution, or check the pixel size",
        )
    return centres


def _quantiles(values: torch.Tensor, region: torch.Tensor) -> dict[str, float]:
    """Quantiles inside the region, by sorting: ``torch.quantile`` takes 2^24 values at most."""
    ordered = values[region].sort().values
    if not len(ordered):
        return {}
    return {name: float(ordered[round(fraction * (len(ordered) - 1))]) for name, fraction in _QUANTILES.items()}
