"""``cryoeq refine``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli import options as shared
from cryoeq.cli.options import COMPUTE, IMAGING, INPUT, OUTPUT, SEARCH
from cryoeq.cli.resume import is_finished, record_to_resume


def refine(
    particles: Annotated[
        Path | None,
        typer.Argument(
            metavar="PARTICLES",
            help="RELION .star (3.0 or later), cryoSPARC .cs, or a bare .mrcs with --angpix.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    *,
    ref: Annotated[
        Path | None,
        typer.Option("--ref", help="Map to start from, in the box of the particles.", rich_help_panel=INPUT),
    ] = None,
    datadir: shared.Datadir = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å; overrides that of the file.", rich_help_panel=IMAGING)
    ] = None,
    no_ctf: Annotated[
        bool, typer.Option("--no-ctf", help="Ignore the CTF of the star file.", rich_help_panel=IMAGING)
    ] = False,
    invert_data: shared.InvertData = None,
    ini_high: Annotated[
        float | None,
        typer.Option(
            help="Resolution in Å that the map is low-passed to; both half sets start from it [30].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sym: Annotated[
        str | None, typer.Option("--sym", help="Point group to impose: Cn, Dn, T, O, I [C1].", rich_help_panel=SEARCH)
    ] = None,
    particle_diameter: Annotated[
        float | None,
        typer.Option(help="Diameter of the particle in Å [0.84 of the box].", rich_help_panel=SEARCH),
    ] = None,
    shift_sigma: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the offsets in Å, 0 for centred particles [5 % of the box, or 6 % of "
            "--particle-diameter].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Start from the poses of the particle file, with local searches only.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    keep_half_sets: Annotated[
        bool,
        typer.Option(
            "--keep-half-sets",
            help="Take the half sets of the file (rlnRandomSubset) [new ones].",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    max_resolution: Annotated[
        float | None,
        typer.Option(help="Resolution in Å beyond which nothing is refined [that of Nyquist].", rich_help_panel=SEARCH),
    ] = None,
    ctf_refinement: Annotated[
        bool,
        typer.Option(
            "--ctf-refinement",
            help="Refine the defocus of each particle and the astigmatism of each micrograph too.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    non_uniform: Annotated[
        bool,
        typer.Option(
            "--non-uniform",
            help="Filter the references voxel by voxel, by cross-validation of the half maps.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Run folder; one that holds a run is refused without --resume.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("cryoeq_refinement"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in -o from its checkpoint.", rich_help_panel=OUTPUT),
    ] = False,
    compare_to: Annotated[
        Path | None,
        typer.Option(help="Map to compare the result with; the refinement does not see it.", rich_help_panel=OUTPUT),
    ] = None,
    device: shared.Device = None,
    threads: Annotated[
        int | None, typer.Option("-j", "--threads", help="CPU threads [all cores].", rich_help_panel=COMPUTE)
    ] = None,
    seed: shared.Seed = None,
    config: shared.ConfigFile = None,
    settings: shared.Settings = None,
) -> None:
    """Refine a map, or poses, that come from elsewhere.

    A global search at low resolution against --ref, then local searches up to the limit of the data, each half set
    against its own map. The results are those of `cryoeq reconstruct`.

    Examples:
      cryoeq refine particles.star --ref map.mrc --ini-high 30 -o refined
      cryoeq refine map/run_data.star --local --keep-half-sets -o refined
      cryoeq refine -o refined --resume
    """
    from cryoeq.config.loading import load_config
    from cryoeq.config.reconstruct import RefinementConfig

    record = record_to_resume(output, is_needed=not (particles or config)) if resume else None
    explicit = {
        "pose_inference": None if resume else "refine",  # also where --config is of a search
        "particles": particles, "output": output, "seed": seed, "device": device,
        "threads": threads, "refine.reference": ref, "refine.ini_high_angstrom": ini_high,
        "refine.local": local or None, "refine.keep_half_sets": keep_half_sets or None, "input.angpix": angpix,
        "input.datadir": datadir, "input.with_ctf": False if no_ctf else None,
        "input.contrast": shared.contrast_of(invert_data), "input.particle_diameter_angstrom": particle_diameter,
        "input.shift_sigma_angstrom": shift_sigma, "input.compare_to": compare_to, "search.symmetry": sym,
        "full_box.max_resolution_angstrom": max_resolution, "full_box.ctf_refinement": ctf_refinement or None,
        "full_box.non_uniform": non_uniform or None,
    }  # fmt: skip
    notes: list[str] = []
    resolved = load_config(
        RefinementConfig, record=record, file=config, overrides=settings or (), explicit=explicit, notes=notes
    )

    from cryoeq.cli.drawing import draw
    from cryoeq.pipelines.reconstruct import reconstruct as pipeline  # not above: settings are refused without torch

    if resume and is_finished(resolved):
        return
    draw(pipeline.reconstruct(resolved, resume=resume, doubts=notes), log=output / "run.log")
