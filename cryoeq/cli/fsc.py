"""``cryoeq fsc``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, IMAGING, INPUT, MASK, OUTPUT, SHARPENING, Device, JsonFile, Seed


def fsc(
    first: Annotated[
        Path, typer.Argument(metavar="A.mrc", help="A map, for example half map 1.", rich_help_panel=INPUT)
    ],
    second: Annotated[
        Path | None,
        typer.Argument(
            metavar="B.mrc",
            help="The other half map, a true map, or an atomic model [the other half map, by its name: half1, half2; "
            "_A, _B].",
            rich_help_panel=INPUT,
        ),
    ] = None,
    *,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å [that of the headers].", rich_help_panel=IMAGING)
    ] = None,
    model_bfac: Annotated[
        float | None,
        typer.Option(help="B-factor in Å² of all atoms of a model [those of its file].", rich_help_panel=IMAGING),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="[auto|sphere|none|MAP]", help="Mask [auto for half maps, else none].", rich_help_panel=MASK
        ),
    ] = None,
    mask_lowpass: Annotated[
        float | None,
        typer.Option(help="auto: low-pass filter before the threshold, in Å [15].", rich_help_panel=MASK),
    ] = None,
    mask_threshold: Annotated[
        float | None,
        typer.Option(help="auto: threshold of the filtered map [Otsu's].", rich_help_panel=MASK),
    ] = None,
    mask_extend: Annotated[
        float | None,
        typer.Option(help="auto: extension in Å [the unmasked resolution, 6 at least].", rich_help_panel=MASK),
    ] = None,
    mask_edge: Annotated[
        float | None,
        typer.Option(help="Soft edge in Å [1.5 times the unmasked resolution, 8 at least].", rich_help_panel=MASK),
    ] = None,
    mask_diameter: Annotated[
        float | None, typer.Option(help="sphere: diameter in Å [that of the box].", rich_help_panel=MASK)
    ] = None,
    postprocess: Annotated[
        bool | None,
        typer.Option(
            "--postprocess/--no-postprocess",
            help="Sharpen the average of the half maps into -o [if half maps].",
            rich_help_panel=SHARPENING,
        ),
    ] = None,
    bfac: Annotated[
        float | None,
        typer.Option(help="B-factor in Å², for example -100; 0 for none [fitted].", rich_help_panel=SHARPENING),
    ] = None,
    autob_lowres: Annotated[
        float | None,
        typer.Option(help="Lowest resolution of its fit, in Å [10].", rich_help_panel=SHARPENING),
    ] = None,
    autob_highres: Annotated[
        float | None,
        typer.Option(help="Highest resolution of its fit, in Å [Nyquist].", rich_help_panel=SHARPENING),
    ] = None,
    skip_fsc_weighting: Annotated[
        bool,
        typer.Option(
            "--skip-fsc-weighting",
            help="Leave out the weights sqrt(2 FSC / (1 + FSC)).",
            rich_help_panel=SHARPENING,
        ),
    ] = False,
    low_pass: Annotated[
        float | None,
        typer.Option(help="Low-pass filter in Å; negative: the final resolution [none].", rich_help_panel=SHARPENING),
    ] = None,
    mtf: Annotated[
        Path | None,
        typer.Option(help="Star file of the detector's MTF, to divide by [none].", rich_help_panel=SHARPENING),
    ] = None,
    mtf_angpix: Annotated[
        float | None,
        typer.Option(help="Pixel size of the micrographs in Å [that of the maps].", rich_help_panel=SHARPENING),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Bring A onto B first: rotation, shift and hand; not for half maps.",
            rich_help_panel=ANALYSIS,
        ),
    ] = False,
    directional: Annotated[
        bool,
        typer.Option(
            "--directional", help="Resolution by direction: cFAR, sphericity, 3DFSC.", rich_help_panel=ANALYSIS
        ),
    ] = False,
    local_resolution: Annotated[
        bool,
        typer.Option(
            "--local-resolution",
            help="Resolution at each voxel, and the map filtered to it; needs -o.",
            rich_help_panel=ANALYSIS,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for maps, curves and pictures; files of an earlier call are replaced [none].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: JsonFile = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Measure the resolution of maps; post-process half maps.

    Fourier shell correlation of two maps. Resolution at FSC 0.143 for half maps, at 0.5 against a true map or a model.
    Files of half maps are those of relion_postprocess. Half maps at 8 Angstrom or better are asked for their hand.

    Examples:
      cryoeq fsc run_half1_class001_unfil.mrc -o postprocess
      cryoeq fsc run_class001.mrc truth.mrc --align
      cryoeq fsc run_class001.mrc model.cif --mask auto
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.fsc import FscConfig
    from cryoeq.config.loading import load_config
    from cryoeq.domain.events import Note
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
        "sharpening.with_fsc_weighting": False if skip_fsc_weighting else None,
        "sharpening.low_pass_angstrom": low_pass, "sharpening.mtf": mtf, "sharpening.mtf_angpix": mtf_angpix,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(FscConfig, explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.fsc(config)))
