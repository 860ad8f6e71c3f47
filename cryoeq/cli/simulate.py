"""``cryoeq simulate``."""

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    model: Annotated[Path, typer.Argument(help="PDB or mmCIF (also .gz), or an MRC map.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write [cryoeq_simulated].")] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Number of particles [1000], or of micrographs [1].")
    ] = None,
    box: Annotated[int | None, typer.Option(help="Box in px, even [64; of a map, its own].")] = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Angstrom [the molecule fills 0.8 of the box].")
    ] = None,
    assembly: Annotated[str | None, typer.Option(help="Build this biological assembly, for example 1.")] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            help="Variance of the CTF-modulated, shifted signal over the whole box and stack, divided by that of the "
            "noise, which is 1. inf: no noise [0.1]."
        ),
    ] = None,
    shift_sigma: Annotated[float | None, typer.Option(help="Spread of the shifts per axis, Angstrom [0].")] = None,
    defocus_min: Annotated[float | None, typer.Option(help="Smallest defocus in um, positive under focus [1].")] = None,
    defocus_max: Annotated[float | None, typer.Option(help="Largest defocus in um [2.5].")] = None,
    astigmatism: Annotated[float | None, typer.Option(help="Spread of defocus U - V, Angstrom [0].")] = None,
    astigmatism_angle: Annotated[
        float | None, typer.Option(help="Direction of defocus U in all particles, degrees from x [random].")
    ] = None,
    kv: Annotated[float | None, typer.Option(help="Acceleration voltage in kV [300].")] = None,
    cs: Annotated[float | None, typer.Option(help="Spherical aberration in mm [2.7].")] = None,
    amplitude_contrast: Annotated[float | None, typer.Option(help="Q0, 0 to 1 [0.1].")] = None,
    no_ctf: Annotated[bool, typer.Option("--no-ctf", help="Plain projections.")] = False,
    views: Annotated[str | None, typer.Option(help="uniform, or preferred: 70 % gather about +z [uniform].")] = None,
    sym: Annotated[
        str | None, typer.Option(help="Average the density over a point group: C4, D2, T, O, I [C1].")
    ] = None,
    noise: Annotated[str | None, typer.Option(help="white, or coloured: stronger at low frequency [white].")] = None,
    crystal: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="A B GAMMA", help="Micrographs of a 2D crystal of the model: cell in Angstrom, degrees."),
    ] = None,
    tilt: Annotated[float | None, typer.Option(help="Tilt of the crystal, degrees [0].")] = None,
    tilt_axis: Annotated[float | None, typer.Option(help="Tilt axis in the image, degrees from x [0].")] = None,
    disorder: Annotated[float | None, typer.Option(help="Spread of each cell's place per axis, Angstrom [0].")] = None,
    micrograph: Annotated[int | None, typer.Option(help="Side of the micrographs of a crystal, px [1024].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random [0].")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, for example that of another run.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of a setting.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
) -> None:
    """Simulate particles of a molecule (particles.star without poses, truth.star with them), or of its 2D crystals."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.simulate import SimulateConfig
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.simulate import simulate as pipeline

    explicit = {
        "model": model, "output": output or free_folder("cryoeq_simulated"), "count": count or (1 if crystal else None),
        "box_size_px": box,
        "pixel_size_angstrom": angpix, "assembly": assembly, "snr": snr, "shift_sigma_angstrom": shift_sigma,
        "defocus_min_um": defocus_min, "defocus_max_um": defocus_max, "astigmatism_angstrom": astigmatism,
        "astigmatism_angle_deg": astigmatism_angle,
        "voltage_kv": kv, "spherical_aberration_mm": cs, "amplitude_contrast": amplitude_contrast,
        "with_ctf": False if no_ctf else None, "views": views, "symmetry": sym, "noise": noise, "seed": seed,
        "device": device, "crystal": crystal, "tilt_deg": tilt, "tilt_axis_deg": tilt_axis,
        "disorder_angstrom": disorder, "micrograph_px": micrograph,
    }  # fmt: skip
    resolved = load_config(SimulateConfig, file=config, overrides=settings or (), explicit=explicit)
    draw(pipeline.simulate(resolved))
