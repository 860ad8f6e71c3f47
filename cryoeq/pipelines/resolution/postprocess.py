"""Post-processing of half maps: sharpening of their average, and files for RELION and EMDB."""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cryoeq.config.fsc import SharpenConfig
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves, resolution_angstrom
from cryoeq.evaluation.sharpening import GuinierFit, GuinierPlot, Sharpening, sharpen
from cryoeq.io import labels
from cryoeq.io.mrc import write_map
from cryoeq.io.mtf import read_mtf
from cryoeq.outputs.fsc_files import write_fsc_dat, write_fsc_xml, write_postprocess_star
from cryoeq.pipelines.resolution.fsc_mask import average
from cryoeq.pipelines.resolution.half_map_names import MapPair

_FEW_SHELLS = 10


@dataclass(frozen=True)
class PostprocessMetrics:
    """Metrics of a sharpened map.

    Args:
        bfactor_angstrom2: B-factor that was applied.
        fit: fit of the B-factor; None where it was given or could not be fitted.
        resolutions_angstrom: resolution at FSC 0.143 by the kind of mask.
    """

    bfactor_angstrom2: float
    fit: GuinierFit | None
    resolutions_angstrom: Mapping[str, float]


@dataclass(frozen=True)
class HalfMapResult:
    """Two half maps and their correlation.

    Args:
        pair: their files.
        first: a half map.
        second: the other half map.
        curves: their correlation.
        mask: mask of the curves; None without one.
        mask_kind: ``auto``, ``sphere``, ``none`` or a path.
        by_mask: correlation under other masks, by name.
        corner_angstrom: coordinates (x, y, z) of the first voxel by the header of the first map.
    """

    pair: MapPair
    first: Volume
    second: Volume
    curves: FscCurves
    mask: Volume | None
    mask_kind: str
    by_mask: Mapping[str, Float[Tensor, " shells"]]
    corner_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)


def sharpening_of(settings: SharpenConfig, curves: FscCurves) -> Sharpening:
    """Settings of the sharpening, with a low-pass filter at the final resolution where that is requested.

    Args:
        settings: as given.
        curves: curves of the half maps.

    Raises:
        MapFileError: the file of the MTF holds no MTF.
    """
    final = curves.final_resolution_angstrom if math.isfinite(curves.final_resolution_angstrom) else None
    return Sharpening(
        bfactor_angstrom2=settings.bfactor_angstrom2,
        fit_from_angstrom=settings.autob_lowres_angstrom,
        fit_to_angstrom=settings.autob_highres_angstrom,
        with_fsc_weighting=settings.with_fsc_weighting,
        low_pass_angstrom=final if settings.low_pass_angstrom < 0 else settings.low_pass_angstrom or None,
        mtf=read_mtf(settings.mtf) if settings.mtf else None,
        mtf_pixel_size_angstrom=settings.mtf_angpix,
    )


def postprocess(folder: Path, result: HalfMapResult, settings: Sharpening) -> Generator[Note, None, PostprocessMetrics]:
    """Sharpen the average of the half maps and write all files.

    Args:
        folder: folder of the files.
        result: the half maps and their curves.
        settings: settings of the sharpening.

    Yields:
        Warnings about the B-factor, and the names of the files.

    Returns:
        Metrics for the report and for JSON.
    """
    curves, corner = result.curves, result.corner_angstrom
    sharpened, guinier = sharpen(average(result.first, result.second), curves.final, settings)
    yield from _bfactor_warnings(guinier, settings, curves.final_resolution_angstrom)
    write_map(folder / "postprocess.mrc", sharpened, label="post-processed by cryoeq fsc", origin_angstrom=corner)
    names = {labels.HALF_MAP_1: str(result.pair.first), labels.HALF_MAP_2: str(result.pair.second)}
    if result.mask is not None:
        masked = Volume(sharpened.values * result.mask.values, sharpened.pixel_size_angstrom)
        label = "post-processed and masked by cryoeq fsc"
        write_map(folder / "postprocess_masked.mrc", masked, label=label, origin_angstrom=corner)
        names[labels.MASK_NAME] = result.mask_kind
    if result.mask is not None and result.mask_kind in {"auto", "sphere"}:
        label = f"{result.mask_kind} mask by cryoeq fsc"
        write_map(folder / "mask.mrc", result.mask, label=label, origin_angstrom=corner)
        names[labels.MASK_NAME] = str(folder / "mask.mrc")
    write_postprocess_star(folder / "postprocess.star", curves, guinier, names)
    write_fsc_xml(folder / "postprocess_fsc.xml", curves)
    write_fsc_dat(folder / "postprocess_fsc.dat", curves)
    by_mask = {"no mask": curves.unmasked, **result.by_mask}
    if curves.masked is not None:
        in_use = "tight" if result.mask_kind == "auto" else "mask in use"
        by_mask |= {in_use: curves.masked, "corrected": curves.final}
    _draw(folder, result.pair, curves, guinier, by_mask)
    yield Note(f"Written to {folder}: postprocess.mrc, postprocess.star and their pictures")
    n, pixel_size = curves.box_size_px, curves.pixel_size_angstrom
    resolutions = {
        name: resolution_angstrom(curve, HALF_MAP_THRESHOLD, n, pixel_size) for name, curve in by_mask.items()
    }
    return PostprocessMetrics(guinier.bfactor_angstrom2, guinier.fit, resolutions)


def is_reliable(guinier: GuinierPlot, settings: Sharpening, final_resolution_angstrom: float) -> bool:
    """Whether a fitted B-factor sharpens, and rests on ten shells with signal at least.

    Args:
        guinier: amplitudes with the fit.
        settings: settings of the sharpening.
        final_resolution_angstrom: resolution of the map.
    """
    n_signal = _count_signal(guinier, settings, final_resolution_angstrom)
    return guinier.fit is not None and n_signal >= _FEW_SHELLS and guinier.bfactor_angstrom2 <= 0


def _count_signal(guinier: GuinierPlot, settings: Sharpening, final_resolution_angstrom: float) -> int:
    """Shells with signal from the lowest resolution of the fit on."""
    x = guinier.inverse_square_resolution
    return int(((x >= settings.fit_from_angstrom**-2) & (x <= final_resolution_angstrom**-2)).sum())


def _bfactor_warnings(guinier: GuinierPlot, settings: Sharpening, final_resolution_angstrom: float) -> Iterator[Note]:
    lowest, n_signal = settings.fit_from_angstrom, _count_signal(guinier, settings, final_resolution_angstrom)
    if settings.bfactor_angstrom2 is None and guinier.fit is None:
        yield Note(
            f"The map is not sharpened: there is no signal beyond {lowest:g} Å to fit a B-factor to. "
            "Give one with --bfac if it looks blurred.",
            "warning",
        )
    elif guinier.fit is not None and n_signal < _FEW_SHELLS:
        yield Note(
            f"The B-factor of {guinier.bfactor_angstrom2:.0f} Å² is unreliable: only {n_signal} shells with signal "
            f"lie beyond {lowest:g} Å. Look at the map, and give a better one with --bfac.",
            "warning",
        )
    elif guinier.bfactor_angstrom2 > 0:
        yield Note(f"A B-factor of {guinier.bfactor_angstrom2:.0f} Å² above zero dampens the map.", "warning")


def _draw(
    folder: Path,
    pair: MapPair,
    curves: FscCurves,
    guinier: GuinierPlot,
    by_mask: Mapping[str, Float[Tensor, " shells"]],
) -> None:
    # Not above: matplotlib takes 40 MiB, which the maps need before.
    from cryoeq.outputs.evaluation_plots import plot_correlations, plot_fsc
    from cryoeq.outputs.guinier_plot import plot_guinier

    title = f"{pair.first.name} and {pair.second.name}"
    side = curves.box_size_px * curves.pixel_size_angstrom
    plot_fsc(folder / "postprocess_fsc.png", curves, title=title)
    plot_correlations(folder / "postprocess_masks.png", by_mask, side, title=title)
    plot_guinier(folder / "postprocess_guinier.png", guinier, title=title)
