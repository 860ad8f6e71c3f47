"""Micrographs and optics groups of a stack: defocus that particles share, and noise and optics that groups share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.physics.ctf import with_defocus_moved
from cryoeq.simulation.particles import NOISE_CORNER, DefocusRange, draw_ctf

HEIGHT_SD_ANGSTROM = 100.0  # of particles in the ice, about the mean defocus of their micrograph
LEVEL_SD, CORNER_SD = 0.15, 0.2  # relative, of the noise's standard deviation and of its corner, between groups
STRUCTURAL_SHARE, STRUCTURAL_SHARE_SD = 0.5, 0.1  # of the variance of ``ice`` noise, and between groups
_CS_SD_MM, _AMPLITUDE_CONTRAST_SD = 0.03, 0.01


@dataclass(frozen=True)
class GroupNoise:
    """Noise of an optics group.

    Args:
        deviation: standard deviation, in units of that of the first group.
        corner: corner of coloured noise, as a fraction of Nyquist.
        structural_share: share of the variance of ``ice`` noise that has passed the CTF.
    """

    deviation: float = 1.0
    corner: float = NOISE_CORNER
    structural_share: float = STRUCTURAL_SHARE


def draw_optics_groups(
    optics: Optics, count: int, generator: torch.Generator
) -> tuple[tuple[Optics, ...], tuple[GroupNoise, ...]]:
    """Optics groups as of several sessions at one microscope, or at several of its kind.

    The first is as asked. The others differ from it as ice, exposure and calibration do: the noise in its level, log-
    normal with a standard deviation of 15 %, and its spectrum (corner 20 %, structural share 0.1); spherical aberration
    by 0.03 mm and amplitude contrast by 0.01, of which the star file tells. Voltage and pixel size are the same.

    Args:
        optics: the first group, whose name the others share, with a number.
        count: number of groups.
        generator: random number generator on the CPU.
    """
    groups, noise = [optics], [GroupNoise()]
    for level, corner, share, aberration, contrast in torch.randn(count - 1, 5, generator=generator).double().tolist():
        groups.append(
            replace(
                optics,
                name=f"{optics.name}_{len(groups) + 1}",
                spherical_aberration_mm=max(0.0, optics.spherical_aberration_mm + _CS_SD_MM * aberration),
                amplitude_contrast=min(1.0, max(0.0, optics.amplitude_contrast + _AMPLITUDE_CONTRAST_SD * contrast)),
            )
        )
        noise.append(
            GroupNoise(
                deviation=float(torch.tensor(LEVEL_SD * level).exp()),
                corner=NOISE_CORNER * float(torch.tensor(CORNER_SD * corner).exp()),
                structural_share=min(0.9, max(0.1, STRUCTURAL_SHARE + STRUCTURAL_SHARE_SD * share)),
            )
        )
    return tuple(groups), tuple(noise)


def draw_micrographs(
    particles: int, micrographs: int, groups: int, generator: torch.Generator
) -> tuple[Int[Tensor, " particles"], Int[Tensor, " particles"]]:
    """Micrograph and optics group of each particle, both from 0 and in order, as star files have them.

    Args:
        particles: number of particles; each is on any micrograph with the same probability.
        micrographs: number of micrographs.
        groups: number of optics groups; each has as many micrographs in a row as the others, or one more or less.
        generator: random number generator on the CPU.
    """
    micrograph = torch.randint(micrographs, (particles,), generator=generator).sort().values
    return micrograph, micrograph * groups // micrographs


def draw_ctf_of_micrographs(
    micrograph: Int[Tensor, " particles"], optics: Optics, defocus: DefocusRange, generators: Sequence[torch.Generator]
) -> CtfParameters:
    """CTF parameters of particles that share the defocus of their micrograph, but for their heights in the ice.

    Args:
        micrograph: micrograph of each particle.
        optics: voltage, Cs and amplitude contrast.
        defocus: distribution of the micrographs' defocus.
        generators: random number generators on the CPU, of the micrographs and of the heights.
    """
    ctf = draw_ctf(int(micrograph.max()) + 1, optics, defocus, generators[0])[micrograph]
    return with_defocus_moved(ctf, HEIGHT_SD_ANGSTROM * torch.randn(len(micrograph), generator=generators[1]))


def with_optics_of_groups(
    ctf: CtfParameters, groups: Sequence[Optics], index: Int[Tensor, " particles"]
) -> CtfParameters:
    """The CTF parameters with the spherical aberration and the amplitude contrast of each particle's optics group.

    Args:
        ctf: parameters of the particles.
        groups: the optics groups.
        index: index of each particle's group.
    """
    return replace(
        ctf,
        spherical_aberration_mm=torch.tensor([group.spherical_aberration_mm for group in groups])[index],
        amplitude_contrast=torch.tensor([group.amplitude_contrast for group in groups])[index],
    )
