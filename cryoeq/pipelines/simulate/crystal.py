"""``cryoeq simulate --crystal``: micrographs of a 2D crystal, with their true lattices."""

import math
import sys
from collections.abc import Iterator

import torch

from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Progress, Report
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.micrographs import write_micrographs_star
from cryoeq.io.mrc import write_image
from cryoeq.io.text import write_json
from cryoeq.lattice.unit_cell import basis_of_cell, cell_of_basis
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.physics.ctf import image_transfer
from cryoeq.pipelines.simulate.reference_map import read_truth
from cryoeq.runtime.device import choose_device
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.simulation.crystal import Crystal, crystal_image
from cryoeq.simulation.particles import DefocusRange, SignalStatistics, draw_ctf, draw_noise, noise_amplitudes


def simulate_crystal(config: SimulateConfig, cell: tuple[float, float, float]) -> Iterator[Event]:
    """Simulate micrographs of a 2D crystal, each at a random in-plane angle.

    Writes ``micrograph_001.mrc`` and on, ``micrographs.star`` with their defocus, and ``truth.json`` with the projected
    lattice of each. One defocus holds for a whole micrograph: a tilted crystal has no defocus gradient.

    Args:
        config: settings of the simulation.
        cell: a, b in Angstrom and gamma in degrees.

    Yields:
        Notes, progress, and a report.
    """
    basis = basis_of_cell((*cell[:2], math.radians(cell[2])))
    device = choose_device(config.device)
    truth = read_truth(config, device)
    optics = Optics(
        "simulated",
        truth.volume.pixel_size_angstrom,
        config.voltage_kv,
        config.spherical_aberration_mm,
        config.amplitude_contrast,
    )
    settings = config.model_dump(mode="json")
    with RunFolder.create(
        config.output, command=sys.argv, settings=settings, inputs=[config.model], device=str(device)
    ) as run:
        yield from truth.notes
        generator = stream_generator(config.seed, Stream.SIMULATION)
        defocus = DefocusRange(config.defocus_min_um * 1e4, config.defocus_max_um * 1e4, config.astigmatism_angstrom)
        ctf = draw_ctf(config.count, optics, defocus, generator)
        names, true_lattices = [], []
        for number in range(config.count):
            crystal = Crystal(
                basis, 2 * math.pi * float(torch.rand((), generator=generator)), math.radians(config.tilt_deg),
                math.radians(config.tilt_axis_deg), config.disorder_angstrom,
            )  # fmt: skip
            image = _micrograph(config, truth.volume, crystal, ctf[number : number + 1], generator)
            names.append(f"micrograph_{number + 1:03d}.mrc")
            write_image(run.path(names[-1]), image, optics.pixel_size_angstrom, label="simulated 2D crystal")
            true_lattices.append(_truth(names[-1], crystal))
            yield Progress("writing micrographs", number + 1, config.count)
        write_json(run.path("truth.json"), {"cell": list(cell), "micrographs": true_lattices})
        write_micrographs_star(run.path("micrographs.star"), names, optics, ctf)
        run.finish("done", {})
    yield Report(
        f"{config.count} simulated micrographs in {config.output}",
        {
            "cell": f"{cell[0]:g} {cell[1]:g} Å, {cell[2]:g} degrees, tilted by {config.tilt_deg:g} degrees",
            "image": f"{config.micrograph_px} px of {optics.pixel_size_angstrom:g} Å",
            "SNR": f"{config.snr:g}",
            "truth": "truth.json",
        },
    )


def _micrograph(
    config: SimulateConfig, molecule: Volume, crystal: Crystal, ctf: CtfParameters, generator: torch.Generator
) -> torch.Tensor:
    image = crystal_image(molecule, crystal, config.micrograph_px, generator).cpu()
    if config.with_ctf:
        n = len(image)
        plane = HalfPlane.up_to(n, (n - 1) / 2)
        transfer = image_transfer(ctf, plane.frequencies_per_angstrom(molecule.pixel_size_angstrom))
        image = plane.images(plane.transform(image) * transfer[0])
    image = image * SignalStatistics().including(image[None]).scale_for(config.snr)
    if math.isfinite(config.snr):
        image = image + draw_noise(1, noise_amplitudes(len(image), config.noise), generator)[0]
    return image


def _truth(name: str, crystal: Crystal) -> dict[str, object]:
    lengths, angles_rad = cell_of_basis(crystal.projected_basis_angstrom)
    return {
        "name": name,
        "basis_angstrom": crystal.projected_basis_angstrom.T.tolist(),
        "projected_cell": [*lengths.tolist(), math.degrees(float(angles_rad))],
        "in_plane_deg": math.degrees(crystal.in_plane_rad),
        "tilt_deg": math.degrees(crystal.tilt_rad),
        "tilt_axis_deg": math.degrees(crystal.tilt_axis_rad),
    }
