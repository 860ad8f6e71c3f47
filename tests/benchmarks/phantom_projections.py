"""Synthetic projections of the chiral phantom of the tests, for benchmarks of encoders."""

import sys
from pathlib import Path

import torch

from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.simulation.density import sample_atoms
from cryoeq.training.synthetic.encoder_input import EncoderInput, encoder_box_px
from cryoeq.training.synthetic.projections import ProjectionSimulator

sys.path.append(str(Path(__file__).parents[1]))

from phantoms import chiral_phantom

BOX, RADIUS, SIDE_ANGSTROM = 24, 8, 120.0


def phantom_map(box_size_px: int = BOX) -> Volume:
    """The phantom in a box of 120 Angstrom."""
    return sample_atoms(chiral_phantom(28.0), box_size_px, SIDE_ANGSTROM / box_size_px)


def simulate_phantom() -> ProjectionSimulator:
    """Simulates projections without a CTF; noise has a tenth of the mean power of the signal."""
    plane, padded = HalfPlane.up_to(BOX, RADIUS), prepare_slices(phantom_map().values.float())
    slices = extract_slices(padded, random_rotations(64, torch.Generator().manual_seed(0)), plane)
    amplitude = slices.abs().square().mean(0).sqrt()
    box = encoder_box_px(RADIUS)
    weights = 1 / (amplitude.square() + amplitude.square().mean()).sqrt()
    encoder_input = EncoderInput(HalfPlane.up_to(box, RADIUS), weights, BOX / box, torch.zeros(1, 2), True)
    sigma = (amplitude.square().mean() / 10).sqrt().expand(len(plane)).clone()
    return ProjectionSimulator(padded, plane, torch.ones(1, len(plane)), sigma, encoder_input, 0.0)
