"""CTF refinement as a part of the refinement at the full box: maps, their CTF, poses, in turn."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial

import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.volume import HalfMaps
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles, make_maps
from cryoeq.reconstruction.ctf_refinement import (
    RANGE_ANGSTROM,
    CtfErrors,
    needed_resolution_angstrom,
    reached_shell,
    refine_ctf,
)
from cryoeq.reconstruction.state import FSC_THRESHOLD

_FEW = 0.01  # share of the particles at the ends of the range, which wrong poses bring there
_WIDER = 2  # times the range, where more are there
_ROUNDS = 2  # the second finds astigmatism: a third moved nothing (1WCM, 128 px, defocus off by 500 A)


# Refines the poses of particles of a dataset; the text is what the names of its steps begin with.
PoseRefinement = Callable[[ParticleDataset, PosedParticles, str], Generator[Event, None, PosedParticles]]


def refine_ctf_and_poses(
    dataset: ParticleDataset,
    posed: PosedParticles,
    refine: PoseRefinement,
    symmetry: str,
    device: torch.device,
) -> Generator[Event, None, PosedParticles]:
    """Particles with defocus and astigmatism refined, and their poses once more with these.

    Args:
        dataset: the particles at the box of the files, with the CTF that was stated.
        posed: particles with refined poses and half sets.
        refine: refines poses.
        symmetry: point group of the map.
        device: where to compute.
    """
    stated, half_set = dataset.table.ctf, posed.half_set
    if stated is None or half_set is None:
        raise ValueError("a CTF and half sets were asked for before")
    errors, mended, largest = None, dataset, RANGE_ANGSTROM
    for number in range(1, _ROUNDS + 1):
        maps = make_maps(mended, posed, device, symmetry)
        if maps.halves is None:
            return posed
        halves = HalfMaps(maps.halves.first.to(device), maps.halves.second.to(device))
        if doubt := _too_coarse(halves, stated):
            yield doubt
            break
        find = partial(refine_ctf, dataset, posed.half_poses or posed.poses, half_set.cpu(), halves, errors)
        found = yield from find(range_angstrom=largest)
        if largest == RANGE_ANGSTROM and found.share_at_end > _FEW:
            largest = _WIDER * RANGE_ANGSTROM
            found = yield from find(range_angstrom=largest)
        errors = found
        mended = with_ctf(dataset, errors.corrected(stated))
        posed = replace((yield from refine(mended, posed, f"ctf{number}_")), ctf=mended.table.ctf)
    if errors is not None:
        yield from _notes(errors, largest)
    return posed


def with_ctf(dataset: ParticleDataset, ctf: CtfParameters | None) -> ParticleDataset:
    """The particles with another CTF; unchanged where there is none.

    Args:
        dataset: the particles.
        ctf: of all of them, on the CPU; None without.
    """
    return dataset if ctf is None else replace(dataset, table=replace(dataset.table, ctf=ctf))


def _too_coarse(halves: HalfMaps, ctf: CtfParameters) -> Note | None:
    """That half maps are too coarse to tell the defocus from; None where they are not."""
    side = halves.first.box_size_px * halves.first.pixel_size_angstrom
    reached, needed = side / max(1, reached_shell(halves)), needed_resolution_angstrom(ctf)
    if reached <= needed:
        return None
    return Note(
        f"CTF refinement is left out, the stated CTF kept: the half maps agree to {reached:.1f} Å (FSC "
        f"{FSC_THRESHOLD:g}, unmasked), where errors of the defocus hardly change the images; {needed:.1f} Å is "
        "needed. More particles or better poses would make it possible.",
        "warning",
    )


def _notes(errors: CtfErrors, range_angstrom: float) -> Iterator[Note]:
    change, sigma = (
        float(values.square().mean().sqrt()) for values in (errors.defocus_angstrom, errors.defocus_sigma_angstrom)
    )
    astigmatism = float(errors.astigmatism_angstrom.square().sum(1).mean().sqrt())
    yield Note(
        f"CTF refinement: defocus moved by {change:.0f} Å rms, known to {sigma:.0f} Å (standard deviations: "
        f"{errors.micrograph_sigma_angstrom:.0f} Å of micrographs, {errors.particle_sigma_angstrom:.0f} Å of particles "
        f"in them); astigmatism by {astigmatism:.0f} Å."
    )
    if math.isclose(change, 0.0, abs_tol=sigma / 4):
        yield Note("The stated defocus is as good as these particles can tell.")
    if (share := errors.share_at_end) > _FEW:
        yield Note(
            f"The defocus errors of {share:.0%} of the particles are at the ends of what is searched "
            f"(±{range_angstrom:g} Å) or beyond: their stated defocus is wrong by more, or is that of other "
            "micrographs. Estimate it again (CTFFIND, Gctf), or leave these particles out.",
            "warning",
        )
