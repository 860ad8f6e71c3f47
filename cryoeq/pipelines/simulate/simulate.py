"""``cryoeq simulate``: particles of a molecule or a map, with their truth beside them."""

import math
import sys
import time
from collections.abc import Iterator

import torch

from cryoeq.config.simulate import SimulateConfig
from cryoeq.data.half_sets import split_half_sets
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.optics import Optics
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError
from cryoeq.io.compose import compose_star
from cryoeq.io.mrc import StackWriter, write_map
from cryoeq.io.particles import write_particle_star
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.simulate.crystal import simulate_crystal
from cryoeq.pipelines.simulate.reference_map import read_truth
from cryoeq.runtime.device import choose_device
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.simulation.particles import (
    PREFERRED_KAPPA,
    PREFERRED_SHARE,
    DefocusRange,
    NoiseFreeStack,
    SignalStatistics,
    draw_ctf,
    draw_noise,
    draw_poses,
    noise_amplitudes,
)


def simulate(config: SimulateConfig) -> Iterator[Event]:
    """Simulate a particle stack, or micrographs of a crystal.

    Writes into the output folder ``particles.star`` and ``particles.mrcs`` without any pose, ``truth.star`` (the same
    rows with poses, shifts and half sets), ``truth_volume.mrc`` in the grey scale of the projections, and the record of
    the run. Every file appears whole or not at all, ``particles.star`` last. Crystals: see ``simulate_crystal``.

    Args:
        config: settings of the simulation.

    Yields:
        Notes on what was chosen, progress, and a report.
    """
    if config.crystal is not None:
        yield from simulate_crystal(config, config.crystal)
        return
    device = choose_device(config.device)
    truth = read_truth(config, device)
    half_box = truth.volume.box_size_px * truth.volume.pixel_size_angstrom / 2
    if config.shift_sigma_angstrom > half_box:
        found, expected = f"--shift-sigma is {config.shift_sigma_angstrom:g} Å", f"Half the box is {half_box:g} Å"
        raise ConfigError(found, expected, "Choose offsets that leave the particles in their images")
    settings = config.model_dump(mode="json")
    started_s = time.monotonic()
    with RunFolder.create(
        config.output, command=sys.argv, settings=settings, inputs=[config.model], device=str(device)
    ) as run:
        yield from (*truth.notes, *map(Note, _notes_on_choices(config)))
        yield from _write_particles(config, truth.volume, run, device)
        results = {"seconds": round(time.monotonic() - started_s, 2)}
        run.finish("done", results)
    yield Report(
        f"{config.count} simulated particles in {config.output}",
        {
            "box": f"{truth.volume.box_size_px} px of {truth.volume.pixel_size_angstrom:g} Å",
            "SNR": f"{config.snr:g}" if math.isfinite(config.snr) else "no noise",
            "particles": "particles.star, particles.mrcs",
            "truth": "truth.star, truth_volume.mrc",
        },
    )


def _write_particles(config: SimulateConfig, volume: Volume, run: RunFolder, device: torch.device) -> Iterator[Event]:
    """Draw, project, add noise and write. All that is random comes from the CPU, so that devices agree."""
    generator = stream_generator(config.seed, Stream.SIMULATION)
    poses = draw_poses(config.count, config.views, config.shift_sigma_angstrom, generator)
    optics = Optics(
        "simulated",
        volume.pixel_size_angstrom,
        config.voltage_kv,
        config.spherical_aberration_mm,
        config.amplitude_contrast,
    )
    angle = None if config.astigmatism_angle_deg is None else math.radians(config.astigmatism_angle_deg)
    defocus = DefocusRange(config.defocus_min_um * 1e4, config.defocus_max_um * 1e4, config.astigmatism_angstrom, angle)
    drawn_ctf = draw_ctf(config.count, optics, defocus, generator)
    ctf = drawn_ctf if config.with_ctf else None
    half_set = split_half_sets(config.count, generator)
    stack = NoiseFreeStack.from_map(volume, poses.to(device), None if ctf is None else ctf.to(device))
    statistics = SignalStatistics()
    for batch in stack.batches():
        statistics = statistics.including(batch)
        yield Progress("measuring the signal", statistics.count // batch[0].numel(), config.count)
    scale = statistics.scale_for(config.snr)
    box = volume.box_size_px
    with StackWriter(run.path("particles.mrcs"), config.count, box, volume.pixel_size_angstrom) as writer:
        amplitudes = noise_amplitudes(box, config.noise)
        done = 0
        for batch in stack.batches():
            images = batch.cpu() * scale
            if math.isfinite(config.snr):
                images = images + draw_noise(len(images), amplitudes, generator)
            writer.append(images)
            done += len(images)
            yield Progress("writing particles", done, config.count)
    scaled = Volume(volume.values * scale, volume.pixel_size_angstrom)
    write_map(run.path("truth_volume.mrc"), scaled, label="truth of simulated particles")
    star = compose_star("particles.mrcs", config.count, box, optics, ctf)
    write_particle_star(run.path("truth.star"), star, poses, half_set=half_set)
    write_particle_star(run.path("particles.star"), star, None)


def _notes_on_choices(config: SimulateConfig) -> Iterator[str]:
    """Notes for the user on the random draws."""
    if config.views == "preferred":
        yield (
            f"Preferred views: {PREFERRED_SHARE:.0%} von Mises-Fisher about +z (kappa {PREFERRED_KAPPA:g}), "
            "the others uniform, in-plane angles uniform."
        )
    if config.noise == "coloured" and math.isfinite(config.snr):
        yield "Coloured noise: power 0.25 + 1 / (1 + (s / 0.2 Nyquist)^2), total variance 1."
    yield (
        "Grey scale: noise of variance 1."
        if math.isfinite(config.snr)
        else "Grey scale: signal of variance 1, no noise."
    )
