"""CTF refinement as a part of the refinement at the full box: maps, their CTF, poses, in turn."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.volume import HalfMaps
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles, make_maps
from cryoeq.reconstruction.ctf_refinement import CtfErrors, refine_ctf

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
    errors, mended = None, dataset
    for number in range(1, _ROUNDS + 1):
        maps = make_maps(mended, posed, device, symmetry)
        if maps.halves is None:
            return posed
        half_poses = posed.half_poses or posed.poses
        halves = HalfMaps(maps.halves.first.to(device), maps.halves.second.to(device))
        errors = yield from refine_ctf(dataset, half_poses, half_set.cpu(), halves, errors)
        mended = with_ctf(dataset, errors.corrected(stated))
        posed = replace((yield from refine(mended, posed, f"ctf{number}_")), ctf=mended.table.ctf)
    if errors is not None:
        yield from _notes(errors)
    return posed


def with_ctf(dataset: ParticleDataset, ctf: CtfParameters | None) -> ParticleDataset:
    """The particles with another CTF; unchanged where there is none.

    Args:
        dataset: the particles.
        ctf: of all of them, on the CPU; None without.
    """
    return dataset if ctf is None else replace(dataset, table=replace(dataset.table, ctf=ctf))


def _notes(errors: CtfErrors) -> Iterator[Note]:
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
