"""``cryoeq fsc``."""

from pathlib import Path
from typing import Annotated

import typer


def fsc(
    first: Annotated[Path, typer.Argument(metavar="A.mrc", help="A map, for example half map 1.")],
    second: Annotated[
        Path | None,
        typer.Argument(
            metavar="[B.mrc]", help="The other half map [guessed: half1, half2; _A, _B], a truth, or an atomic model."
        ),
    ] = None,
    *,
    mask: Annotated[
        Path | None, typer.Option(metavar="auto|sphere|none|MAP", help="Mask [auto for half maps, else none].")
    ] = None,
    mask_lowpass: Annotated[
        float | None, typer.Option(help="auto: filter to this resolution in Angstrom first [15].")
    ] = None,
    mask_threshold: Annotated[
        float | None, typer.Option(help="auto: density of the particle in the filtered map [Otsu's].")
    ] = None,
    mask_extend: Annotated[
        float | None, typer.Option(help="auto: extend by so many Angstrom [the unmasked resolution, 6 at least].")
    ] = None,
    mask_edge: Annotated[
        float | None, typer.Option(help="Soft edge in Angstrom [1.5 x the unmasked resolution, 8 at least].")
    ] = None,
    mask_diameter: Annotated[float | None, typer.Option(help="sphere: diameter in Angstrom [that of the box].")] = None,
    postprocess: Annotated[
        bool | None,
        typer.Option("--postprocess/--no-postprocess", help="Sharpen their average into -o [if half maps]."),
    ] = None,
    bfac: Annotated[float | None, typer.Option(help="B-factor in Angstrom^2, e.g. -100; 0 for none [fitted].")] = None,
    autob_lowres: Annotated[float | None, typer.Option(help="Fit it from this resolution in Angstrom on [10].")] = None,
    autob_highres: Annotated[float | None, typer.Option(help="Fit it up to this resolution [all shells].")] = None,
    skip_fsc_weighting: Annotated[
        bool, typer.Option("--skip-fsc-weighting", help="Do not multiply by sqrt(2 FSC / (1 + FSC)).")
    ] = False,
    low_pass: Annotated[
        float | None, typer.Option(help="Low-pass filter in Angstrom; negative: final resolution [none].")
    ] = None,
    mtf: Annotated[Path | None, typer.Option(help="Star file of the detector's MTF, to divide by.")] = None,
    mtf_angpix: Annotated[float | None, typer.Option(help="Pixel size of the micrographs [that of the maps].")] = None,
    align: Annotated[
        bool, typer.Option("--align", help="First bring A onto B: rotation, shift and hand. Not for half maps.")
    ] = False,
    directional: Annotated[
        bool, typer.Option("--directional", help="Resolution by direction: cFAR, sphericity, 3DFSC.")
    ] = False,
    local_resolution: Annotated[
        bool, typer.Option("--local-resolution", help="Resolution at each voxel, and the map filtered to it; needs -o.")
    ] = False,
    angpix: Annotated[float | None, typer.Option(help="Pixel size in Angstrom [that of the headers].")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for maps, curves and pictures [none].")
    ] = None,
    model_bfac: Annotated[
        float | None, typer.Option(help="B-factor of all atoms of a model, Angstrom^2 [those of its file].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random phases that measure what a mask adds [0].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
) -> None:
    """Compare two maps by Fourier shell correlation, and post-process half maps as RELION does.

    Resolution at 0.143 (half maps) and 0.5 (against a truth). Example: cryoeq fsc run_half1_class001_unfil.mrc -o fsc
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.fsc import FscConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines.resolution import fsc as pipeline

    explicit = {
        "first": first, "second": second, "mask": mask, "with_alignment": align, "pixel_size_angstrom": angpix,
        "with_directional": directional, "with_local_resolution": local_resolution,
        "model_bfactor_angstrom2": model_bfac,
        "json_file": json_file, "output": output, "seed": seed, "device": device, "postprocess": postprocess,
        "automask.low_pass_angstrom": mask_lowpass, "automask.threshold": mask_threshold,
        "automask.extension_angstrom": mask_extend, "automask.edge_angstrom": mask_edge,
        "automask.diameter_angstrom": mask_diameter, "sharpening.bfactor_angstrom2": bfac,
        "sharpening.autob_lowres_angstrom": autob_lowres, "sharpening.autob_highres_angstrom": autob_highres,
        "sharpening.with_fsc_weighting": not skip_fsc_weighting, "sharpening.low_pass_angstrom": low_pass,
        "sharpening.mtf": mtf, "sharpening.mtf_angpix": mtf_angpix,
    }  # fmt: skip
    draw(pipeline.fsc(load_config(FscConfig, explicit=explicit)))
