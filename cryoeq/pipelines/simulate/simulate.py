"""``cryoeq simulate``: particles of molecules or maps, with their truth beside them."""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError
from cryoeq.io.mrc import StackWriter, write_map
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.simulate.crystal import simulate_crystal
from cryoeq.pipelines.simulate.species import read_species
from cryoeq.pipelines.simulate.stack import Stack, draw_stack
from cryoeq.pipelines.simulate.stack_tables import write_tables
from cryoeq.runtime.device import choose_device
from cryoeq.simulation.contents import NEIGHBOUR_DISTANCE, OVERLAP_DISTANCE, JunkKind
from cryoeq.simulation.particles import PREFERRED_KAPPA, PREFERRED_SHARE, NoiseFreeStack, SignalStatistics
from cryoeq.simulation.stack_images import StackImages
from cryoeq.simulation.stack_noise import normalise_extracted

_KEPT_PIXELS = 2**28


def simulate(config: SimulateConfig) -> Iterator[Event]:
    """Simulate a particle stack, or micrographs of a crystal.

    Writes into the output folder ``particles.star`` and ``particles.mrcs`` without any pose, ``truth.star`` (the same
    rows with poses, shifts and half sets, and with whatever else is asked for and hidden: class, kind of junk,
    contrast, true defocus), ``truth_volume.mrc`` in the grey scale of the projections (of several models
    ``truth_volume_class001.mrc`` and on), and the record of the run. Every file appears whole or not at all,
    ``particles.star`` last. Crystals: see ``simulate_crystal``.

    Args:
        config: settings of the simulation.

    Yields:
        Notes on what was chosen, progress, and a report.
    """
    if config.crystal is not None:
        yield from simulate_crystal(config, config.crystal)
        return
    device = choose_device(config.device)
    truths = read_species(config, device)
    volumes = tuple(truth.volume for truth in truths)
    side = volumes[0].box_size_px * volumes[0].pixel_size_angstrom
    if config.shift_sigma_angstrom > side / 2:
        found, expected = f"--shift-sigma is {config.shift_sigma_angstrom:g} Å", f"Half the box is {side / 2:g} Å"
        raise ConfigError(found, expected, "Choose offsets that leave the particles in their images")
    stack = draw_stack(config, volumes, device)
    settings = config.model_dump(mode="json")
    started_s = time.monotonic()
    inputs = [path for path, _ in config.models_with_shares]
    names = volume_names(len(volumes))
    with RunFolder.create(config.output, command=sys.argv, settings=settings, inputs=inputs, device=str(device)) as run:
        yield from (note for truth in truths for note in truth.notes)
        yield from map(Note, _notes_on_choices(config, stack))
        yield from _write_particles(config, stack, run, names)
        results = {"seconds": round(time.monotonic() - started_s, 2)}
        run.finish("done", results)
    yield Report(
        f"{config.count} simulated particles in {config.output}",
        {
            "box": f"{volumes[0].box_size_px} px of {volumes[0].pixel_size_angstrom:g} Å",
            "SNR": f"{config.snr:g}" if math.isfinite(config.snr) else "no noise",
            "particles": "particles.star, particles.mrcs",
            "truth": ", ".join(("truth.star", *names)),
        },
    )


def volume_names(count: int) -> tuple[str, ...]:
    """File names of the true maps.

    Args:
        count: number of models.
    """
    if count == 1:
        return ("truth_volume.mrc",)
    return tuple(f"truth_volume_class{number:03d}.mrc" for number in range(1, count + 1))


def _write_particles(config: SimulateConfig, stack: Stack, run: RunFolder, names: tuple[str, ...]) -> Iterator[Event]:
    """Project, add noise and write."""
    statistics, kept = SignalStatistics(), _KeptImages(stack.whole)
    whole, contents = stack.whole, stack.contents
    for rows in whole.batch_rows():
        images = kept.make(rows)
        if config.is_as_it_comes:
            images = (images * contents.scale[rows, None, None])[contents.is_particle[rows]]
        statistics = statistics.including(images)
        yield Progress("measuring the signal", rows.stop, config.count)
    scale = statistics.scale_for(config.snr)
    drawn = StackImages(whole, stack.volumes, contents, statistics.deviation)
    divisors = []
    n, pixel_size = whole.plane.box_size_px, whole.pixel_size_angstrom
    with StackWriter(run.path("particles.mrcs"), config.count, n, pixel_size) as writer:
        for rows in whole.batch_rows():
            shown = kept.take(rows)
            if config.is_as_it_comes:
                shown = drawn.images(rows, shown, stack.generators.contaminants)
            images = shown * scale
            if math.isfinite(config.snr):
                images = images + stack.draw_noise(rows)
            if config.normalises:
                images, divisor = normalise_extracted(images)
                divisors.append(divisor.cpu())
            writer.append(images)
            yield Progress("writing particles", rows.stop, config.count)
    for name, volume in zip(names, stack.volumes, strict=True):
        scaled = Volume(volume.values * scale, volume.pixel_size_angstrom)
        write_map(run.path(name), scaled, label="truth of simulated particles")
    write_tables(config, stack, torch.cat(divisors) if divisors else None, run)


class _KeptImages:
    """Noise-free images, which are needed twice: the first GiB is made once.

    Args:
        stack: the images.
    """

    def __init__(self, stack: NoiseFreeStack) -> None:
        self._stack, self._kept, self._room = stack, dict[int, Float[Tensor, "batch n n"]](), _KEPT_PIXELS

    def make(self, rows: slice) -> Float[Tensor, "batch n n"]:
        """Images for the first time."""
        images = self._stack.images(rows)
        if images.numel() <= self._room:
            self._room -= images.numel()
            self._kept[rows.start] = images
        return images

    def take(self, rows: slice) -> Float[Tensor, "batch n n"]:
        """The same images for the last time."""
        kept = self._kept.pop(rows.start, None)
        return self._stack.images(rows) if kept is None else kept


def _notes_on_choices(config: SimulateConfig, stack: Stack) -> Iterator[str]:
    """Notes for the user on the random draws."""
    if config.views == "preferred":
        yield (
            f"Preferred views: {PREFERRED_SHARE:.0%} von Mises-Fisher about +z (kappa {PREFERRED_KAPPA:g}), "
            "the others uniform, in-plane angles uniform."
        )
    if config.other_models or config.junk_share or config.neighbour_share:
        yield _note_on_contents(config, stack)
    if math.isfinite(config.snr):
        yield from _notes_on_noise(config)
    yield (
        "Grey scale: signal of variance 1, no noise."
        if not math.isfinite(config.snr)
        else "Grey scale: noise of variance 1."
        if not config.normalises
        else "Grey scale: background of each image of mean 0 and deviation 1."
    )


def _note_on_contents(config: SimulateConfig, stack: Stack) -> str:
    contents = stack.contents
    classes = torch.bincount(contents.class_number, minlength=len(stack.volumes) + 1).tolist()
    junk = torch.bincount(contents.junk, minlength=len(JunkKind)).tolist()
    paths = [path for path, _ in config.models_with_shares]
    shown = [f"{count} of {path.name}" for count, path in zip(classes[1:], map(Path, paths), strict=True)]
    shown += [f"{count} {kind.name.lower()}" for kind, count in zip(JunkKind, junk, strict=True) if kind and count]
    beside = int(contents.has_neighbour.sum())
    where = f"{beside} particles have a neighbour ({NEIGHBOUR_DISTANCE[0]}-{NEIGHBOUR_DISTANCE[1]} box)"
    return f"Images: {', '.join(shown)} (overlap: {OVERLAP_DISTANCE[0]}-{OVERLAP_DISTANCE[1]} box); {where}."


def _notes_on_noise(config: SimulateConfig) -> Iterator[str]:
    if config.noise == "coloured":
        yield "Coloured noise: power 0.25 + 1 / (1 + (s / 0.2 Nyquist)^2), total variance 1."
    if config.noise == "ice":
        yield "Noise as of ice: half of its variance 1 has passed the CTF (power 1 / (1 + (200 Å s)^2)), half is white."
