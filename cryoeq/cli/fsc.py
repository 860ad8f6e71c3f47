"""``cryoeq fsc``."""

from pathlib import Path
from typing import Annotated

import typer


def fsc(
    first: Annotated[Path, typer.Argument(metavar="A.mrc", help="A map, for example half map 1.")],
    second: Annotated[
        Path, typer.Argument(metavar="B.mrc", help="The other half map, the truth with --align, or an atomic model.")
    ],
    *,
    mask: Annotated[Path | None, typer.Option(help="Map of values from 0 to 1 with a soft edge.")] = None,
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
        Path | None, typer.Option("-o", "--output", help="Folder for fsc.star, fsc.xml, fsc.png, fsc.json [none].")
    ] = None,
    model_bfac: Annotated[
        float | None, typer.Option(help="B-factor of all atoms of a model, Angstrom^2 [those of its file].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random phases that measure what a mask adds [0].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
) -> None:
    """Compare two maps by Fourier shell correlation; resolution at 0.143 (half maps) and 0.5 (against a truth)."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.fsc import FscConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines import fsc as pipeline

    explicit = {
        "first": first, "second": second, "mask": mask, "with_alignment": align,
        "with_directional": directional, "with_local_resolution": local_resolution, "pixel_size_angstrom": angpix,
        "model_bfactor_angstrom2": model_bfac, "json_file": json_file, "output": output, "seed": seed, "device": device,
    }  # fmt: skip
    draw(pipeline.fsc(load_config(FscConfig, explicit=explicit)))
