"""``cryoeq reconstruct``."""

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.runtime.torchrun import torchrun_environment


def reconstruct(
    particles: Annotated[
        Path | None,
        typer.Argument(
            metavar="PARTICLES", help="RELION star (3.0 or later), cryoSPARC .cs, or a bare .mrcs with --angpix."
        ),
    ] = None,
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder [cryoeq_reconstruction].")] = None,
    pose_inference: Annotated[
        str | None,
        typer.Option(
            help="search: find the poses; hybrid: search, then an encoder takes over; amortized: an encoder learns "
            "them; known: take those of the star [search]."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, for example that of another run.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example encoder.group=so2.")
    ] = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Angstrom; fills in or overrides the file's.")
    ] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")] = None,
    scratch_dir: Annotated[
        Path | None,
        typer.Option(envvar="RELION_SCRATCH_DIR", help="Folder on a local disk for images beyond 1 GiB [none]."),
    ] = None,
    no_ctf: Annotated[bool, typer.Option("--no-ctf", help="Ignore the CTF.")] = False,
    invert_data: Annotated[
        bool | None, typer.Option("--invert-data/--uninvert-data", help="Contrast [decided from the images].")
    ] = None,
    box: Annotated[
        int | None, typer.Option("-D", "--box", help="Working box in px for the poses [at most 64; amortized 32].")
    ] = None,
    shift_sigma: Annotated[
        float | None, typer.Option(help="Expected spread of the shifts, Angstrom; 0: centred [5 % of the box].")
    ] = None,
    sym: Annotated[str | None, typer.Option("--sym", help="Point group to impose: Cn, Dn, T, O, I [C1].")] = None,
    both_hands: Annotated[
        bool, typer.Option("--both-hands", help="Write the mirror image of the map and its poses too.")
    ] = False,
    in_plane_symmetry: Annotated[
        bool, typer.Option("--in-plane-symmetry", help="Test for astigmatism, coma or drift that the CTF leaves out.")
    ] = False,
    group: Annotated[str | None, typer.Option(help="c1 c2 c4 c8 d1 d2 d4 d8 so2 o2 [d4].")] = None,
    heads: Annotated[int | None, typer.Option(help="Hypotheses per image [8].")] = None,
    decoder: Annotated[str | None, typer.Option(help="voxel or implicit [voxel].")] = None,
    symmetric_loss: Annotated[bool, typer.Option("--symmetric-loss", help="Use cryoAI's symmetric loss.")] = False,
    epochs: Annotated[int | None, typer.Option("-n", "--epochs", help="Passes over the images [6,000 steps].")] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", help="Images per step [64].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random [0].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Number of a GPU, or several with commas: a process each shares the work.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="For the FSC of the half maps, with known poses.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Map to compare the result with.")] = None,
    threads: Annotated[int | None, typer.Option("-j", "--threads", help="Threads of the CPU [all cores].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run folder.")] = False,
    in_parts: Annotated[
        Path | None, typer.Option(help="PARTICLES, as RELION's External job gives them; marks its folder -o.")
    ] = None,
) -> None:
    """Reconstruct a map from particles, with their poses searched for, inferred by an encoder, or known."""
    if gpu is not None:
        from cryoeq.runtime.launch import device_of, launch

        if (device := device_of(gpu)) is None:
            raise typer.Exit(launch(gpu.count(",") + 1, sys.argv[1:]))

    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.reconstruct import ReconstructConfig
    from cryoeq.domain.events import Note
    from cryoeq.outputs.relion_job import write_output_nodes
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.reconstruct import reconstruct as pipeline

    # RELION's Continue repeats the command in the same folder, and so does torchrun after the loss of a process.
    resume = resume or in_parts is not None or torchrun_environment().restarts > 0
    default = Path("cryoeq_reconstruction") if resume else free_folder("cryoeq_reconstruction")
    contrast = None if invert_data is None else ("invert" if invert_data else "keep")
    explicit = {
        "particles": particles or in_parts, "output": output or default, "pose_inference": pose_inference, "seed": seed,
        "device": device, "threads": threads, "input.mask": mask, "input.reference": reference,
        "input.angpix": angpix, "input.datadir": datadir, "input.scratch_dir": scratch_dir,
        "input.with_ctf": False if no_ctf else None,
        "input.contrast": contrast, "input.working_box_px": box, "input.shift_sigma_angstrom": shift_sigma,
        "both_hands": True if both_hands else None, "in_plane_symmetry": True if in_plane_symmetry else None,
        "search.symmetry": sym, "encoder.group": group,
        "encoder.heads": heads, "decoder.kind": decoder,
        "loss.symmetric": True if symmetric_loss else None, "training.epochs": epochs,
        "training.batch_size": batch_size,
    }  # fmt: skip
    notes: list[str] = []
    resolved = load_config(ReconstructConfig, file=config, overrides=settings or (), explicit=explicit, notes=notes)
    events = chain(map(Note, notes), pipeline.reconstruct(resolved, resume=resume))
    draw(events, log=resolved.output / "run.log")
    if in_parts is not None and torchrun_environment().is_main_process:
        write_output_nodes(resolved.output)
