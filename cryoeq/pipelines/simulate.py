"""``cryoeq simulate``: particles of a molecule or a map, with their truth beside them."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cryoeq.config.simulate import SimulateConfig
from cryoeq.data.halfsets import split_half_sets
from cryoeq.domain.atoms import is_atomic_model
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.optics import Optics
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.io.compose import compose_star
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import StackWriter, header_notes, read_map, write_map
from cryoeq.io.particles import write_particle_star
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.device import choose_device
from cryoeq.simulation.density import replicate_atoms, resample_map, sample_atoms, symmetrise_map
from cryoeq.simulation.field_of_view import FieldOfView
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

_MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".rec")
_TIGHT_FILL = 0.9


@dataclass(frozen=True)
class _Truth:
    """The map to project, and what to tell the user about it."""

    volume: Volume
    notes: tuple[str, ...]


def simulate(config: SimulateConfig) -> Iterator[Event]:
    """Simulate a particle stack.

    Writes into the output folder ``particles.star`` and ``particles.mrcs`` without any pose, ``truth.star`` (the same
    rows with poses, shifts and half sets), ``truth_volume.mrc`` in the grey scale of the projections, and the record of
    the run. Every file appears whole or not at all, ``particles.star`` last.

    Args:
        config: what to simulate.

    Yields:
        Notes on what was chosen, progress, and a report.
    """
    device = choose_device(config.device)
    truth = _read_truth(config, device)
    settings = config.model_dump(mode="json")
    started_s = time.monotonic()
    with RunFolder.create(
        config.output, command=sys.argv, settings=settings, inputs=[config.model], device=str(device)
    ) as run:
        yield from (Note(text) for text in (*truth.notes, *_notes_on_choices(config)))
        yield from _write_particles(config, truth.volume, run, device)
        results = {"seconds": round(time.monotonic() - started_s, 2)}
        run.finish("done", results)
    yield Report(
        f"{config.count} simulated particles in {config.output}",
        {
            "box": f"{truth.volume.box_size_px} px of {truth.volume.pixel_size_angstrom:g} Angstrom",
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
    defocus = DefocusRange(config.defocus_min_um * 1e4, config.defocus_max_um * 1e4, config.astigmatism_angstrom)
    drawn_ctf = draw_ctf(config.count, optics, defocus, generator)
    ctf = drawn_ctf if config.with_ctf else None
    half_set = split_half_sets(config.count, generator)
    stack = NoiseFreeStack.of(volume, poses.to(device), None if ctf is None else ctf.to(device))
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


def _read_truth(config: SimulateConfig, device: torch.device) -> _Truth:
    """The map to project, from atoms or from a map."""
    operators = symmetry_rotations(config.symmetry).float().to(device)
    if is_atomic_model(config.model):
        return _truth_from_atoms(config, operators, device)
    if config.model.name.lower().endswith(_MAP_SUFFIXES):
        return _truth_from_map(config, operators, device)
    raise MapFileError(
        f"{config.model}: neither an atomic model nor a map by its name",
        f"cryoeq reads PDB (.pdb, .ent), mmCIF (.cif, .mmcif), each also as .gz, and maps ({', '.join(_MAP_SUFFIXES)})",
        "Check MODEL",
    )


def _truth_from_atoms(config: SimulateConfig, operators: torch.Tensor, device: torch.device) -> _Truth:
    atoms = read_atoms(config.model, assembly=config.assembly).centred().to(device)
    diameter = 2 * atoms.radius_angstrom
    field = FieldOfView.around_molecule(diameter, config.box_size_px, config.pixel_size_angstrom)
    fill = diameter / field.side_angstrom
    notes = [
        f"{config.model.name}: {len(atoms)} atoms, {diameter:.0f} Angstrom across, centred on their centre of mass; "
        f"{field.box_size_px} px of {field.pixel_size_angstrom:g} Angstrom, filled to {fill:.2f}."
    ]
    if fill > _TIGHT_FILL:
        notes.append(f"The molecule nearly fills the box ({fill:.2f} of its side): shifted particles may wrap around.")
    if len(operators) > 1:
        notes.append(
            f"The density is the mean over the {len(operators)} rotations of {config.symmetry} about the centre."
        )
        atoms = replicate_atoms(atoms, operators)
    return _Truth(sample_atoms(atoms, field.box_size_px, field.pixel_size_angstrom), tuple(notes))


def _truth_from_map(config: SimulateConfig, operators: torch.Tensor, device: torch.device) -> _Truth:
    if config.assembly is not None:
        raise MapFileError(f"{config.model}: a map has no biological assemblies", "", "Leave --assembly out")
    read = read_map(config.model)
    volume = Volume(read.values.to(device), read.pixel_size_angstrom)
    old = FieldOfView(volume.box_size_px, volume.pixel_size_angstrom)
    field = FieldOfView.of_map(old, config.box_size_px, config.pixel_size_angstrom)
    notes = [
        *header_notes(config.model),
        f"{config.model.name}: {old.box_size_px} px of {old.pixel_size_angstrom:g} Angstrom, not recentred.",
    ]
    if field != old:
        notes.append(f"Resampled to {field.box_size_px} px of {field.pixel_size_angstrom:g} Angstrom.")
        volume = resample_map(volume, field.box_size_px, field.pixel_size_angstrom)
    if len(operators) > 1:
        notes.append(f"The map is averaged over the {len(operators)} rotations of {config.symmetry} about its centre.")
        volume = symmetrise_map(volume, operators)
    return _Truth(volume, tuple(notes))


def _notes_on_choices(config: SimulateConfig) -> Iterator[str]:
    """What the user should know about the random draws."""
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
