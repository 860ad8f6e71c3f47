"""The share of the particles that a map does not explain, on particles of one molecule and on mixtures of two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.unexplained import JunkProbabilities, Residuals, measure_residuals
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.io.compose import compose_star
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.physics.ctf import evaluate_ctf
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses
from phantoms import chiral_phantom

N, PIXEL, COUNT = 24, 6.0, 400
NOISE = 0.7  # standard deviation over that of the signal

Open = Callable[..., tuple[ParticleDataset, Poses]]


def _molecules() -> tuple[Volume, Volume]:
    """Two molecules of equal power, the second a smaller copy of the first."""
    first, second = (sample_atoms(chiral_phantom(size), N, PIXEL) for size in (45.0, 30.0))
    return first, replace(second, values=second.values * (first.values.norm() / second.values.norm()))


def _halves(first: Volume, generator: torch.Generator) -> HalfMaps:
    """Half maps of a molecule, with a little noise of their own."""
    noise = 0.05 * float(first.values.std())
    return HalfMaps(
        *(replace(first, values=first.values + noise * torch.randn(N, N, N, generator=generator)) for _ in range(2))
    )


@pytest.fixture
def open_particles(tmp_path: Path) -> Open:
    """Particles of the first molecule, of which some show the second, with their true poses."""

    def made(
        second_share: float, noise: float = NOISE, *, is_premultiplied: bool = False, is_masked: bool = False
    ) -> tuple[ParticleDataset, Poses]:
        generator = torch.Generator().manual_seed(5)
        poses = draw_poses(COUNT, "uniform", 4.0, generator)
        optics = Optics("one", PIXEL, 300.0, 2.7, 0.1)
        ctf = draw_ctf(COUNT, optics, DefocusRange(1e4, 2e4, 300.0), generator)
        of_first, of_second = (
            torch.cat(list(NoiseFreeStack.from_map(volume, poses, ctf).batches())) for volume in _molecules()
        )
        is_second = torch.rand(COUNT, generator=generator) < second_share
        images = torch.where(is_second[:, None, None], of_second, of_first)
        images = images + noise * of_first.std() * torch.randn(images.shape, generator=generator)
        if is_premultiplied:
            images = _multiplied(images, ctf)
        if is_masked:
            images = images * soft_sphere(N, 0.35 * N, 2.0)[N // 2]
        folder = tmp_path / f"{second_share}_{noise}_{is_premultiplied}"
        folder.mkdir()
        with StackWriter(folder / "particles.mrcs", COUNT, N, PIXEL) as writer:
            writer.append(images)
        star = compose_star("particles.mrcs", COUNT, N, optics, ctf)
        flag = {"rlnCtfDataAreCtfPremultiplied": np.array([str(int(is_premultiplied))])}
        star = replace(star, optics=dict(star.optics or {}) | flag)
        write_particle_star(folder / "particles.star", star, None)
        return ParticleDataset.open(read_particles(folder / "particles.star"), sign=1), poses

    return made


def _multiplied(images: Float[Tensor, "batch n n"], ctf: CtfParameters) -> Float[Tensor, "batch n n"]:
    plane = HalfPlane.up_to(N, N / 2 - 1e-3)
    return plane.images(plane.transform(images) * evaluate_ctf(ctf, plane.frequencies_per_angstrom(PIXEL)))


def _measure(
    particles: tuple[ParticleDataset, Poses],
    generator: torch.Generator,
    volume: Volume | None = None,
    junk: JunkProbabilities | None = None,
) -> Residuals:
    dataset, poses = particles
    # Scale the half maps as normalisation scaled the images: the least-squares factor that a reconstruction would find.
    half_set = 1 + torch.arange(COUNT) % 2
    halves = _halves(volume or _molecules()[0], generator)
    scale = dataset.preprocessing.scale
    assert scale is not None
    scaled = HalfMaps(*(replace(half, values=half.values / scale) for half in (halves.first, halves.second)))
    residuals = measure_residuals(dataset, poses, half_set, scaled, junk)
    assert residuals is not None
    return residuals


def test_particles_of_one_molecule_are_explained(open_particles: Open, generator: torch.Generator) -> None:
    residuals = _measure(open_particles(0.0), generator)
    share = residuals.unexplained_share
    assert share is not None
    assert share < 0.03
    assert abs(float(residuals.z.std()) - 1) < 0.12  # calibrated: a standard normal variable


@pytest.mark.parametrize("second_share", [0.2, 0.4, 0.6])
def test_a_second_molecule_is_not_explained(
    open_particles: Open, generator: torch.Generator, second_share: float
) -> None:
    share = _measure(open_particles(second_share), generator).unexplained_share
    assert share is not None
    assert abs(share - second_share) < 0.08


def test_particles_count_by_their_probability_of_being_no_junk(
    open_particles: Open, generator: torch.Generator
) -> None:
    particles = open_particles(0.4)
    plain = _measure(particles, generator)
    is_second = plain.z > 1.6
    zeros = torch.zeros(COUNT)
    sure, broken, none = (
        _measure(particles, generator, junk=JunkProbabilities(*probabilities))
        for probabilities in ((is_second.float(), zeros), (is_second.float(), is_second.float()), (zeros, zeros))
    )
    assert plain.explained_signal is not None
    assert sure.explained_signal is not None
    assert abs(sure.explained_signal - 1) < abs(plain.explained_signal - 1)
    assert sure.unexplained_share is not None
    assert sure.unexplained_share < 0.1
    assert none.unexplained_share == pytest.approx(plain.unexplained_share, abs=0.03)
    # What is broken may be of another structure: it counts in the share, not in the signal.
    assert broken.unexplained_share == pytest.approx(plain.unexplained_share, abs=0.03)
    assert broken.explained_signal == pytest.approx(sure.explained_signal, abs=0.03)


@pytest.mark.parametrize("is_premultiplied", [False, True])
def test_the_signal_of_one_molecule_is_explained(
    open_particles: Open, generator: torch.Generator, is_premultiplied: bool
) -> None:
    explained = _measure(open_particles(0.0, is_premultiplied=is_premultiplied), generator).explained_signal
    assert explained is not None
    assert abs(explained - 1) < 0.08


def test_a_map_that_blends_two_molecules_explains_less_than_their_signal(
    open_particles: Open, generator: torch.Generator
) -> None:
    dataset, poses = open_particles(0.5)
    first, second = _molecules()
    blend = replace(first, values=(first.values + second.values) / 2)
    blended = _measure((dataset, poses), generator, blend).explained_signal
    assert blended is not None
    assert blended < 0.9


def test_a_masked_background_is_no_background(open_particles: Open, generator: torch.Generator) -> None:
    dataset, poses = open_particles(0.0, is_masked=True)
    assert _measure((dataset, poses), generator).explained_signal is None


def test_premultiplied_images_are_judged_like_the_others(open_particles: Open, generator: torch.Generator) -> None:
    share = _measure(open_particles(0.4, is_premultiplied=True), generator).unexplained_share
    assert share is not None
    assert abs(share - 0.4) < 0.08


def test_no_statement_where_noise_hides_a_second_molecule(open_particles: Open, generator: torch.Generator) -> None:
    assert _measure(open_particles(0.4, noise=8.0), generator).unexplained_share is None


def test_half_maps_that_do_not_agree_leave_nothing_to_compare(open_particles: Open, generator: torch.Generator) -> None:
    dataset, poses = open_particles(0.0)
    noise = HalfMaps(*(Volume(torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2)))
    assert measure_residuals(dataset, poses, 1 + torch.arange(COUNT) % 2, noise) is None
