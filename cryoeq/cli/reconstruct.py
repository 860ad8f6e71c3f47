"""``cryoeq reconstruct``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli import options as shared
from cryoeq.cli.options import COMPUTE, EXPERT, IMAGING, INPUT, OUTPUT, SEARCH
from cryoeq.cli.resume import is_finished, record_to_resume, run_folder
from cryoeq.config.choices import PoseInference
from cryoeq.runtime.torchrun import torchrun_environment


def reconstruct(
    particles: Annotated[
        Path | None,
        typer.Argument(
            metavar="PARTICLES",
            help="RELION .star (3.0 or later), cryoSPARC .cs, or a bare .mrcs with --angpix.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    *,
    datadir: shared.Datadir = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å; overrides that of the file.", rich_help_panel=IMAGING)
    ] = None,
    no_ctf: Annotated[
        bool, typer.Option("--no-ctf", help="Ignore the CTF of the star file.", rich_help_panel=IMAGING)
    ] = False,
    invert_data: shared.InvertData = None,
    pose_inference: Annotated[
        PoseInference | None,
        typer.Option(
            help="search: find the poses; hybrid: a search, and encoders for `cryoeq infer`, with the same map; "
            "amortized: an encoder trained with the map, only for high SNR; known: the poses of the "
            "star file; refine: as `cryoeq refine` does [search].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="K|auto",
            help="Number of structures to tell apart, each refined with half sets of its own; auto: as many as "
            "held-out particles support [1].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sym: Annotated[
        str | None,
        typer.Option(
            "--sym",
            help="Point group to impose: Cn, Dn, T, O, I; not with amortized. With --classes one for all, or one for "
            "each: C4,C1 [C1].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    particle_diameter: Annotated[
        float | None,
        typer.Option(
            help="Diameter of the particle in Å: of the mask and of the circle outside of which an image is background "
            "[0.84 and 0.75 of the box].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    shift_sigma: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the offsets in Å, 0 for centred particles [5 % of the box, or 6 % of "
            "--particle-diameter].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    box: Annotated[
        int | None,
        typer.Option(
            "-D",
            "--box",
            help="Even box in px to which images are cropped in Fourier space for the search [64 at most; amortized "
            "32].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_resolution: Annotated[
        float | None,
        typer.Option(
            help="Resolution in Å beyond which the refinement at the full box does not go [that of Nyquist].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Run folder; one that holds a run is refused without --resume [cryoeq_reconstruction].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in -o from its checkpoint, with its own settings and particles.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    both_hands: Annotated[
        bool,
        typer.Option(
            "--both-hands", help="Write the mirror image of the map and its poses too.", rich_help_panel=OUTPUT
        ),
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(help="Mask for the FSC of the half maps, with known poses only.", rich_help_panel=OUTPUT),
    ] = None,
    compare_to: Annotated[
        Path | None,
        typer.Option(
            help="Map to compare the result with; the search does not see it (cryoeq refine starts from a map).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(hidden=True, help="Former name of --compare-to.")] = None,
    device: shared.Device = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Number of a GPU, or of several that share the work.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("-j", "--threads", help="CPU threads [all cores].", rich_help_panel=COMPUTE)
    ] = None,
    scratch_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="RELION_SCRATCH_DIR",
            help="Folder on a local disk for images beyond 1 GiB, amortized only [none].",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    seed: shared.Seed = None,
    config: shared.ConfigFile = None,
    settings: shared.Settings = None,
    in_plane_symmetry: Annotated[
        bool,
        typer.Option(
            "--in-plane-symmetry",
            help="Test the images for astigmatism, coma or drift beyond the CTF.",
            rich_help_panel=EXPERT,
        ),
    ] = False,
    in_parts: Annotated[
        Path | None,
        typer.Option(
            help="PARTICLES, as an External job of RELION passes them; leaves its job markers in -o.",
            rich_help_panel=EXPERT,
        ),
    ] = None,
) -> None:
    """Reconstruct a map from particles, poses unknown or known.

    Exit code 4 where no map is reproducible.

    Examples:
      cryoeq reconstruct particles.star -o map
      cryoeq reconstruct particles.star -o maps --classes 2 --sym C4,C1
      cryoeq reconstruct -o map --resume
    """
    if gpu is not None:
        from cryoeq.runtime.launch import device_of, launch

        if (device := device_of(gpu)) is None:
            raise typer.Exit(launch(gpu.count(",") + 1, sys.argv[1:]))

    from cryoeq.config.loading import load_config
    from cryoeq.config.reconstruct import ReconstructConfig

    # RELION's Continue repeats the command in the same folder, and so does torchrun after the loss of a process.
    repeats = in_parts is not None or torchrun_environment().restarts > 0
    folder = run_folder(output, resumes=resume or repeats)
    record = record_to_resume(folder, is_needed=not (particles or config)) if resume else None
    explicit = {
        "input.particle_diameter_angstrom": particle_diameter, "full_box.max_resolution_angstrom": max_resolution,
        "input.contrast": shared.contrast_of(invert_data), "in_plane_symmetry": in_plane_symmetry or None, "seed": seed,
        "input.with_ctf": False if no_ctf else None, "input.shift_sigma_angstrom": shift_sigma, "input.angpix": angpix,
        "particles": particles or in_parts, "pose_inference": pose_inference, "input.scratch_dir": scratch_dir,
        "both_hands": both_hands or None, "input.compare_to": compare_to, "input.reference": reference,
        "input.working_box_px": box, "search.classes": classes, "input.datadir": datadir, "search.symmetry": sym,
        "threads": threads, "input.mask": mask, "output": folder, "device": device,
    }  # fmt: skip
    notes: list[str] = []
    resolved = load_config(
        ReconstructConfig, record=record, file=config, overrides=settings or (), explicit=explicit, notes=notes
    )

    from cryoeq.cli.drawing import draw
    from cryoeq.outputs.relion_job import write_output_nodes
    from cryoeq.pipelines.reconstruct import reconstruct as pipeline  # not above: settings are refused without torch

    if (resume or repeats) and is_finished(resolved):
        return
    draw(pipeline.reconstruct(resolved, resume=resume or repeats, doubts=notes), log=folder / "run.log")
    if in_parts is not None and torchrun_environment().is_main_process:
        write_output_nodes(folder)
