"""``cryoeq simulate``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import CRYSTAL, IMAGING, INPUT, OUTPUT, SPECIMEN, ConfigFile, Device, Seed, Settings
from cryoeq.config.choices import Noise, Views


def simulate(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="PDB or mmCIF (also .gz), or an MRC map.", rich_help_panel=INPUT),
    ],
    *,
    other_models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="FILE:SHARE",
            help="Another molecule and its share of the particles, repeatable; MODEL has the rest [none].",
            rich_help_panel=INPUT,
        ),
    ] = None,
    assembly: Annotated[
        str | None,
        typer.Option(help="Biological assembly of MODEL to build, for example 1 [none].", rich_help_panel=INPUT),
    ] = None,
    sym: Annotated[
        str | None,
        typer.Option(help="Point group that MODEL is averaged over: Cn, Dn, T, O, I [C1].", rich_help_panel=SPECIMEN),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "-n", "--count", help="Number of particles [1000], or of micrographs [1].", rich_help_panel=SPECIMEN
        ),
    ] = None,
    views: Annotated[
        Views | None,
        typer.Option(help="Distribution of views; preferred: 70 % about +z [uniform].", rich_help_panel=SPECIMEN),
    ] = None,
    shift_sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the offsets per axis, in Å [0].", rich_help_panel=SPECIMEN),
    ] = None,
    scale_sd: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the particles' contrast, whose mean is 1 [0].", rich_help_panel=SPECIMEN
        ),
    ] = None,
    junk: Annotated[
        float | None,
        typer.Option(
            help="Share of images that are no particles: empty, edges of carbon or ice, overlapping, broken [0].",
            rich_help_panel=SPECIMEN,
        ),
    ] = None,
    neighbours: Annotated[
        float | None,
        typer.Option(help="Share of images with another particle reaching into the box [0].", rich_help_panel=SPECIMEN),
    ] = None,
    n_micrographs: Annotated[
        int | None,
        typer.Option(
            help="Number of micrographs, whose particles share a defocus [none: a defocus for each particle].",
            rich_help_panel=SPECIMEN,
        ),
    ] = None,
    optics_groups: Annotated[
        int | None,
        typer.Option(
            help="Number of optics groups of these micrographs, of different noise [1].", rich_help_panel=SPECIMEN
        ),
    ] = None,
    crystal: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="A B GAMMA",
            help="Cell of a 2D crystal of the model in Å, Å and degrees: simulate its micrographs [none].",
            rich_help_panel=CRYSTAL,
        ),
    ] = None,
    tilt: Annotated[
        float | None, typer.Option(help="Tilt of the crystal in degrees [0].", rich_help_panel=CRYSTAL)
    ] = None,
    tilt_axis: Annotated[
        float | None, typer.Option(help="Tilt axis in the image, degrees from x [0].", rich_help_panel=CRYSTAL)
    ] = None,
    disorder: Annotated[
        float | None,
        typer.Option(help="Standard deviation of each cell's place per axis, in Å [0].", rich_help_panel=CRYSTAL),
    ] = None,
    micrograph: Annotated[
        int | None, typer.Option(help="Side of the micrographs in px [1024].", rich_help_panel=CRYSTAL)
    ] = None,
    box: Annotated[
        int | None, typer.Option(help="Box in px, even [64; that of a map].", rich_help_panel=IMAGING)
    ] = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å [the molecule fills 0.8 of the box].", rich_help_panel=IMAGING)
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(
            help="Variance of signal (CTF-modulated, shifted, whole box) over that of noise, which is 1; inf: no noise "
            "[0.1].",
            rich_help_panel=IMAGING,
        ),
    ] = None,
    noise: Annotated[
        Noise | None,
        typer.Option(
            help="Spectrum of the noise; coloured: stronger at low frequency; ice: half of it through the CTF [white].",
            rich_help_panel=IMAGING,
        ),
    ] = None,
    defocus_min: Annotated[
        float | None,
        typer.Option(help="Smallest defocus in µm, positive under focus [1].", rich_help_panel=IMAGING),
    ] = None,
    defocus_max: Annotated[
        float | None, typer.Option(help="Largest defocus in µm [2.5].", rich_help_panel=IMAGING)
    ] = None,
    astigmatism: Annotated[
        float | None,
        typer.Option(help="Standard deviation of defocus U - V, in Å [0].", rich_help_panel=IMAGING),
    ] = None,
    astigmatism_angle: Annotated[
        float | None,
        typer.Option(help="Direction of defocus U, degrees from x [random].", rich_help_panel=IMAGING),
    ] = None,
    defocus_error: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the error of the defocus in particles.star, in Å [0].", rich_help_panel=IMAGING
        ),
    ] = None,
    bfactor: Annotated[
        float | None,
        typer.Option(help="B-factor of an envelope of the images, in Å² [0].", rich_help_panel=IMAGING),
    ] = None,
    kv: Annotated[float | None, typer.Option(help="Acceleration voltage in kV [300].", rich_help_panel=IMAGING)] = None,
    cs: Annotated[float | None, typer.Option(help="Spherical aberration in mm [2.7].", rich_help_panel=IMAGING)] = None,
    amplitude_contrast: Annotated[
        float | None, typer.Option(help="Amplitude contrast, 0 to 1 [0.1].", rich_help_panel=IMAGING)
    ] = None,
    no_ctf: Annotated[
        bool, typer.Option("--no-ctf", help="Plain projections, without a CTF.", rich_help_panel=IMAGING)
    ] = False,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise",
            help="Normalise each image's background, as RELION's extraction does.",
            rich_help_panel=IMAGING,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Run folder; one that holds a run is refused [cryoeq_simulated].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    device: Device = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Simulate particles of a molecule, or its 2D crystals.

    Writes particles.star without poses, and truth.star with poses, classes and kinds of junk.

    Examples:
      cryoeq simulate model.pdb -o particles --box 64 -n 2000
      cryoeq simulate map.mrc -n 500 --snr 0.05 --shift-sigma 10
      cryoeq simulate a.pdb --model b.pdb:0.4 --junk 0.2 --noise ice --normalise
      cryoeq simulate model.pdb --crystal 90 110 90 --tilt 30
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.simulate import SimulateConfig
    from cryoeq.domain.events import Note
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.simulate import simulate as pipeline

    explicit = {
        "model": model, "output": output or free_folder("cryoeq_simulated"), "box_size_px": box,
        "count": 1 if crystal and count is None else count,
        "pixel_size_angstrom": angpix, "assembly": assembly, "snr": snr, "shift_sigma_angstrom": shift_sigma,
        "defocus_min_um": defocus_min, "defocus_max_um": defocus_max, "astigmatism_angstrom": astigmatism,
        "astigmatism_angle_deg": astigmatism_angle,
        "voltage_kv": kv, "spherical_aberration_mm": cs, "amplitude_contrast": amplitude_contrast,
        "with_ctf": False if no_ctf else None, "views": views, "symmetry": sym, "noise": noise, "seed": seed,
        "device": device, "crystal": crystal, "tilt_deg": tilt, "tilt_axis_deg": tilt_axis,
        "disorder_angstrom": disorder, "micrograph_px": micrograph, "other_models": other_models,
        "junk_share": junk, "neighbour_share": neighbours, "scale_sd": scale_sd,
        "micrograph_count": n_micrographs, "optics_group_count": optics_groups,
        "defocus_error_angstrom": defocus_error, "bfactor_angstrom2": bfactor, "normalise": True if normalise else None,
    }  # fmt: skip
    notes: list[str] = []
    resolved = load_config(SimulateConfig, file=config, overrides=settings or (), explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.simulate(resolved)))
