"""All that is drawn at random of a stack before its images are made."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.simulate import SimulateConfig
from cryoeq.data.half_sets import split_half_sets
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError
from cryoeq.physics.ctf import with_defocus_moved
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.simulation.acquisition import (
    draw_ctf_of_micrographs,
    draw_micrographs,
    draw_optics_groups,
    with_optics_of_groups,
)
from cryoeq.simulation.contents import Contents, StackShares, draw_contents
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses
from cryoeq.simulation.stack_noise import StackNoise


@dataclass(frozen=True)
class Generators:
    """Random number generators, one for each purpose, so that one option changes no draw of another.

    The number of micrographs does: as many defocus values are drawn before half sets and noise. Noise is drawn where
    the images are, everything else on the CPU: devices agree in all but the noise.

    Args:
        particles: poses, defocus and half sets.
        acquisition: micrographs, heights and optics groups.
        defocus_errors: errors of the stated defocus.
        contents: classes, junk, neighbours and scales.
        contaminants: shapes of contaminants and of broken particles.
        noise: noise that has not passed the CTF; on the CPU the generator of the particles goes on.
        structure: noise that has passed the CTF.
    """

    particles: torch.Generator
    acquisition: torch.Generator
    defocus_errors: torch.Generator
    contents: torch.Generator
    contaminants: torch.Generator
    noise: torch.Generator
    structure: torch.Generator

    @classmethod
    def of_seed(cls, seed: int, device: torch.device) -> "Generators":
        """The generators of a seed.

        Args:
            seed: random seed of the run.
            device: device of the images.
        """
        on_cpu = [stream_generator(seed, Stream.SIMULATION, number) for number in range(5)]
        structure = stream_generator(seed, Stream.SIMULATION, 5, device)
        noise = on_cpu[0] if device.type == "cpu" else stream_generator(seed, Stream.SIMULATION, 6, device)
        return cls(*[*on_cpu, noise, structure])


@dataclass(frozen=True)
class Stack:
    """A stack to be made.

    Args:
        volumes: the molecules.
        poses: true poses.
        optics: optics groups.
        optics_index: index of each particle's group.
        micrograph: index of each particle's micrograph; None without micrographs.
        ctf: true CTF parameters; None without a CTF.
        stated_ctf: those that ``particles.star`` states.
        half_set: half set of each particle, 1 or 2.
        contents: what each image shows, on the device of the molecules.
        whole: images of the molecules in the middle.
        noise: noise of the stack, on the device of the molecules.
        generators: random number generators of what is drawn image by image.
    """

    volumes: tuple[Volume, ...]
    poses: Poses
    optics: tuple[Optics, ...]
    optics_index: Int[Tensor, " particles"]
    micrograph: Int[Tensor, " particles"] | None
    ctf: CtfParameters | None
    stated_ctf: CtfParameters | None
    half_set: Int[Tensor, " particles"]
    contents: Contents
    whole: NoiseFreeStack
    noise: StackNoise
    generators: Generators

    def draw_noise(self, rows: slice) -> Float[Tensor, "batch n n"]:
        """Noise of the next rows.

        Args:
            rows: which they are.
        """
        ctf = None if self.whole.ctf is None else self.whole.ctf[rows]
        group = self.optics_index[rows].to(self.whole.poses.rotations.device)
        return self.noise.draw(group, ctf, (self.generators.noise, self.generators.structure))


def draw_stack(config: SimulateConfig, volumes: tuple[Volume, ...], device: torch.device) -> Stack:
    """Draw poses, defocus, micrographs and contents.

    Args:
        config: settings of the simulation.
        volumes: the molecules, on the device.
        device: device of the images.

    Raises:
        ConfigError: no image is left that is no junk.
    """
    generators, box, pixel_size = (
        Generators.of_seed(config.seed, device),
        volumes[0].box_size_px,
        volumes[0].pixel_size_angstrom,
    )
    poses = draw_poses(config.count, config.views, config.shift_sigma_angstrom, generators.particles)
    asked = Optics(
        "simulated", pixel_size, config.voltage_kv, config.spherical_aberration_mm, config.amplitude_contrast
    )
    optics, group_noise = draw_optics_groups(asked, config.optics_group_count, generators.acquisition)
    micrograph, optics_index = None, torch.zeros(config.count, dtype=torch.long)
    if config.micrograph_count is not None:
        micrograph, optics_index = draw_micrographs(
            config.count, config.micrograph_count, len(optics), generators.acquisition
        )
    drawn = with_optics_of_groups(_draw_ctf(config, asked, micrograph, generators), optics, optics_index)
    half_set = split_half_sets(config.count, generators.particles)
    errors = config.defocus_error_angstrom * torch.randn(config.count, generator=generators.defocus_errors)
    ctf = drawn if config.with_ctf else None
    shares = StackShares(
        [share for _, share in config.models_with_shares], config.junk_share, config.neighbour_share, config.scale_sd
    )
    contents = draw_contents(config.count, shares, config.views, box, generators.contents)
    if not bool(contents.is_particle.any()):
        found = f"--junk {config.junk_share:g} of {config.count} images leaves none with one whole molecule"
        raise ConfigError(found, "The signal-to-noise ratio is that of particles", "Simulate more images, or less junk")
    contents = contents.each(lambda values: values.to(device))
    ctf_there = None if ctf is None else ctf.to(device)
    models = contents.model_index if len(volumes) > 1 else None
    return Stack(
        volumes, poses, optics, optics_index, micrograph, ctf,
        None if ctf is None else replace(with_defocus_moved(ctf, errors), bfactor_angstrom2=torch.zeros(config.count)),
        half_set, contents,
        NoiseFreeStack.from_maps(volumes, poses.to(device), ctf_there, models),
        StackNoise.of_groups(config.noise, group_noise, box, pixel_size, ctf).to(device), generators,
    )  # fmt: skip


def _draw_ctf(
    config: SimulateConfig, optics: Optics, micrograph: Int[Tensor, " particles"] | None, generators: Generators
) -> CtfParameters:
    angle = None if config.astigmatism_angle_deg is None else math.radians(config.astigmatism_angle_deg)
    defocus = DefocusRange(config.defocus_min_um * 1e4, config.defocus_max_um * 1e4, config.astigmatism_angstrom, angle)
    if micrograph is None:
        ctf = draw_ctf(config.count, optics, defocus, generators.particles)
    else:
        ctf = draw_ctf_of_micrographs(micrograph, optics, defocus, (generators.particles, generators.acquisition))
    return replace(ctf, bfactor_angstrom2=torch.full((config.count,), config.bfactor_angstrom2))
