"""Particles beside their predictions: exact for noise-free images at their poses, and only there."""

from pathlib import Path

import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import Optics
from cryoeq.domain.pose import Poses
from cryoeq.evaluation.particle_fit import fit_particles
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.compose import compose_star
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses
from phantoms import chiral_phantom

N, PIXEL, COUNT = 32, 4.0, 12


def test_noise_free_particles_are_as_predicted(tmp_path: Path, generator: torch.Generator) -> None:
    volume = sample_atoms(chiral_phantom(40.0), N, PIXEL)
    poses = draw_poses(COUNT, "uniform", 6.0, generator)
    optics = Optics("one", PIXEL, 300.0, 2.7, 0.1)
    ctf = draw_ctf(COUNT, optics, DefocusRange(1e4, 2e4, 500.0), generator)
    images = torch.cat(list(NoiseFreeStack.from_map(volume, poses, ctf).batches()))
    with StackWriter(tmp_path / "particles.mrcs", COUNT, N, PIXEL) as writer:
        writer.append(-images)  # dark protein
    write_particle_star(tmp_path / "particles.star", compose_star("particles.mrcs", COUNT, N, optics, ctf), None)
    dataset = ParticleDataset.open(read_particles(tmp_path / "particles.star"), sign=-1)
    rows = torch.tensor([7, 2, 11])
    fits = fit_particles(dataset, poses, volume, rows, resolution_angstrom=2.5 * PIXEL)
    assert float(fits.correlations.min()) > 0.999
    for ours, stored, filtered in zip(fits.predictions, images[rows], fits.filtered, strict=True):
        assert float(torch.corrcoef(torch.stack([ours.flatten(), stored.flatten()]))[0, 1]) > 0.99
        assert float(torch.corrcoef(torch.stack([ours.flatten(), filtered.flatten()]))[0, 1]) > 0.999
    for wrong in (
        Poses(random_rotations(COUNT, generator), poses.shifts_angstrom),
        Poses(poses.rotations, -poses.shifts_angstrom),
    ):
        there = fit_particles(dataset, wrong, volume, rows, resolution_angstrom=2.5 * PIXEL)
        assert float(there.correlations.mean()) < 0.9
