"""Junk: decoys, features, and probabilities, on particles of one molecule with planted junk."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.junk_amplitudes import Amplitudes, measure_amplitudes
from cryoeq.evaluation.junk_comparison import Comparison, PosedRows, compare_with
from cryoeq.evaluation.junk_decoys import KINDS, N_GOOD, draw_decoys
from cryoeq.evaluation.junk_features import ParticleFit, fit_images, fit_particles
from cryoeq.evaluation.junk_probability import DecoyFit, JunkEstimate, estimate_junk
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.compose import compose_star
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.physics.ctf import evaluate_ctf
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses
from phantoms import chiral_phantom

N, PIXEL, COUNT = 24, 6.0, 600
NOISE = 2.0  # standard deviation over that of the signal
EMPTY, BROKEN = KINDS.index("empty"), KINDS.index("broken")


@dataclass(frozen=True)
class Stack:
    """Particles with their true poses; those of ``is_empty`` show noise."""

    dataset: ParticleDataset
    posed: PosedRows
    halves: HalfMaps
    is_empty: Tensor


def _stack(folder: Path, empty: float = 0.0, *, structure: float = 0.0, scales: tuple[float, ...] = (1.0,)) -> Stack:
    """A stack, each particle belonging to one of some classes, which differ in contrast.

    Args:
        folder: where to write it.
        empty: share of images without a particle.
        structure: standard deviation of noise that has passed the CTF, over that of the signal.
        scales: contrast of each class.
    """
    generator = torch.Generator().manual_seed(5)
    volume = sample_atoms(chiral_phantom(45.0), N, PIXEL)
    poses = draw_poses(COUNT, "uniform", 4.0, generator)
    optics = Optics("one", PIXEL, 300.0, 2.7, 0.1)
    ctf = draw_ctf(COUNT, optics, DefocusRange(1e4, 3e4, 300.0), generator)
    images = torch.cat(list(NoiseFreeStack.from_map(volume, poses, ctf).batches()))
    deviation = images.std()
    is_empty = torch.rand(COUNT, generator=generator) < empty
    class_index = torch.arange(COUNT) % len(scales)
    images = images * (torch.tensor(scales)[class_index] * ~is_empty)[:, None, None]
    images = images + NOISE * deviation * torch.randn(images.shape, generator=generator)
    images = images + structure * deviation * _through_ctf(torch.randn(images.shape, generator=generator), ctf)
    with StackWriter(folder / "particles.mrcs", COUNT, N, PIXEL) as writer:
        writer.append(images)
    write_particle_star(folder / "particles.star", compose_star("particles.mrcs", COUNT, N, optics, ctf), None)
    dataset = ParticleDataset.open(read_particles(folder / "particles.star"), sign=1)
    posed = PosedRows(PoseSet.from_angstrom(poses, PIXEL, N), 1 + torch.arange(COUNT) % 2, class_index)
    assert dataset.preprocessing.scale is not None
    values = volume.values / dataset.preprocessing.scale
    noise = 0.05 * float(values.std())
    first, second = (Volume(values + noise * torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2))
    return Stack(dataset, posed, HalfMaps(first, second), is_empty)


def _through_ctf(images: Float[Tensor, "batch n n"], ctf: CtfParameters) -> Float[Tensor, "batch n n"]:
    plane = HalfPlane.up_to(N, N / 2 - 1e-3)
    return plane.images(plane.transform(images) * evaluate_ctf(ctf, plane.frequencies_per_angstrom(PIXEL)))


def _compare(stack: Stack, n_classes: int = 1) -> Comparison:
    comparison = compare_with(stack.dataset, [stack.halves] * n_classes, stack.posed, torch.arange(COUNT))
    assert comparison is not None
    return comparison


def _judge(stack: Stack, n_classes: int = 1) -> JunkEstimate:
    """Probabilities from decoys at the poses that they were made at."""
    comparison = _compare(stack, n_classes)
    fit = fit_particles(comparison, stack.dataset, stack.posed)
    amplitudes = measure_amplitudes(fit, stack.posed.class_index, n_classes)
    generator = torch.Generator().manual_seed(1)
    decoys = draw_decoys(comparison, stack.dataset.table.ctf, stack.posed, amplitudes, generator)
    examples = DecoyFit(fit_images(comparison, decoys.images, decoys.posed), decoys.posed.class_index, decoys.kind)
    return estimate_junk(fit, stack.posed.class_index, examples, amplitudes)


def test_particles_of_one_molecule_are_no_junk(tmp_path: Path) -> None:
    estimate = _judge(_stack(tmp_path))
    assert estimate.share < 0.02
    assert int((estimate.probability.any_kind > 0.5).sum()) < 0.02 * COUNT


@pytest.mark.parametrize("empty", [0.1, 0.4])
def test_the_share_of_planted_junk_is_found_and_told_apart(tmp_path: Path, empty: float) -> None:
    stack = _stack(tmp_path, empty)
    estimate = _judge(stack)
    assert abs(estimate.share - float(stack.is_empty.float().mean())) < 0.04
    assert roc_auc(estimate.probability.any_kind, stack.is_empty) > 0.97


def test_probabilities_are_calibrated(tmp_path: Path) -> None:
    stack = _stack(tmp_path, 0.3)
    probability = _judge(stack).probability.any_kind
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        there = (probability >= low) & (probability <= high)
        assert abs(float(stack.is_empty[there].float().mean()) - float(probability[there].mean())) < 0.05


def test_each_class_has_its_own_contrast(tmp_path: Path) -> None:
    stack = _stack(tmp_path, scales=(1.0, 0.6))
    fit = fit_particles(_compare(stack, 2), stack.dataset, stack.posed)
    centre = measure_amplitudes(fit, stack.posed.class_index, 2).centre
    assert abs(float(centre[1] / centre[0]) - 0.6) < 0.08
    assert _judge(stack, 2).share < 0.05


def test_half_maps_that_do_not_agree_leave_nothing_to_compare(tmp_path: Path, generator: torch.Generator) -> None:
    stack = _stack(tmp_path)
    noise = HalfMaps(*(Volume(torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2)))
    assert compare_with(stack.dataset, [noise], stack.posed, torch.arange(COUNT)) is None


def test_noise_that_has_passed_the_ctf_is_told_from_noise_that_has_not(tmp_path: Path) -> None:
    white, mixed = tmp_path / "white", tmp_path / "mixed"
    white.mkdir()
    mixed.mkdir()
    (without, all_shot), (with_structure, _) = (
        (float((comparison.structure / comparison.shot)[0, 4:].mean()), float(comparison.shot[0, 4:].mean()))
        for comparison in (_compare(_stack(white)), _compare(_stack(mixed, structure=2.0 * NOISE)))
    )
    assert all_shot > 0
    assert without < 0.3
    assert 2.5 < with_structure < 6.0  # 4 in truth


def test_residuals_of_what_the_map_explains_are_standard_normal(tmp_path: Path) -> None:
    stack = _stack(tmp_path, structure=NOISE)
    fit = fit_particles(_compare(stack), stack.dataset, stack.posed)
    for values in (*fit.residuals[:, 1:].unbind(1), fit.difference, fit.one_sided):
        assert abs(float(values.mean())) < 0.35
        assert abs(float(values.std()) - 1) < 0.2


def test_decoys_show_what_they_are_called(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    comparison = _compare(stack)
    amplitudes = Amplitudes(torch.tensor([0.8]), torch.tensor([0.0]))
    generator = torch.Generator().manual_seed(1)
    decoys = draw_decoys(comparison, stack.dataset.table.ctf, stack.posed, amplitudes, generator)
    assert set(decoys.kind.tolist()) == set(range(len(KINDS)))
    fit = fit_images(comparison, decoys.images, decoys.posed)
    amplitude = {name: float(fit.amplitude[decoys.kind == number].mean()) for number, name in enumerate(KINDS)}
    assert abs(amplitude["particle"] - 0.8) < 0.05
    assert abs(amplitude["empty"]) < 0.08
    assert amplitude["broken"] < 0.75 * amplitude["particle"]
    residual = fit.residuals[:, 1]
    for name in ("edge", "overlap"):
        assert float(residual[decoys.kind == KINDS.index(name)].median()) > 2.0
    second, far = fit.second[:, 0], fit.second[:, 2]
    for number, at in (("overlap", second), ("neighbour", far)):
        assert float(at[decoys.kind == KINDS.index(number)].median()) > float(at[decoys.kind == 0].quantile(0.9))


def _fit_of(amplitude: Float[Tensor, " rows"], power: float = 100.0) -> ParticleFit:
    """Fits that differ in their amplitude alone, which the noise has changed already."""
    zeros = torch.zeros(len(amplitude))
    return ParticleFit(
        amplitude, torch.full_like(amplitude, power), zeros, zeros[:, None].repeat(1, 4), zeros, zeros, zeros,
        2 + zeros[:, None].repeat(1, 3), zeros,
    )  # fmt: skip


@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("junk", [0.0, 0.5])
def test_amplitudes_are_those_of_good_particles(generator: torch.Generator, spread: float, junk: float) -> None:
    count = 4000
    amplitude = 0.7 * torch.exp(spread * torch.randn(count, generator=generator))
    is_junk = torch.rand(count, generator=generator) < junk
    amplitude = torch.where(is_junk, amplitude * (0.5 * torch.rand(count, generator=generator)), amplitude)
    amplitude = amplitude + 0.1 * torch.randn(count, generator=generator)
    found = measure_amplitudes(_fit_of(amplitude), torch.zeros(count, dtype=torch.long), 1)
    assert abs(float(found.centre[0]) - 0.7) < 0.06
    assert abs(float(found.spread[0]) - spread) < 0.08


def test_a_class_without_particles_has_the_amplitudes_of_all(generator: torch.Generator) -> None:
    fit = _fit_of(1 + 0.1 * torch.randn(500, generator=generator))
    found = measure_amplitudes(fit, torch.zeros(500, dtype=torch.long), 2)
    assert float(found.centre[0]) == float(found.centre[1])


def _examples(generator: torch.Generator, broken: float = 0.6) -> tuple[ParticleFit, Int[Tensor, " decoys"]]:
    kind = torch.arange(len(KINDS)).repeat_interleave(100)
    amplitude = torch.where(kind < N_GOOD, 1.0, torch.where(kind == BROKEN, broken, 0.2))
    return _fit_of(amplitude + 0.1 * torch.randn(len(kind), generator=generator)), kind


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_the_share_in_the_stack_is_not_that_of_the_decoys(generator: torch.Generator, share: float) -> None:
    decoys, kind = _examples(generator)
    is_junk = torch.rand(2000, generator=generator) < share
    amplitude = torch.where(is_junk, 0.6, 1.0) + 0.1 * torch.randn(2000, generator=generator)
    numbers = torch.zeros(2000, dtype=torch.long)
    amplitudes = Amplitudes(torch.ones(1), torch.zeros(1))
    estimate = estimate_junk(_fit_of(amplitude), numbers, DecoyFit(decoys, torch.zeros_like(kind), kind), amplitudes)
    assert abs(estimate.share - float(is_junk.float().mean())) < 0.03
    truth = torch.exp(-0.5 * ((amplitude - 0.6) / 0.1) ** 2) * share
    truth = truth / (truth + torch.exp(-0.5 * ((amplitude - 1.0) / 0.1) ** 2) * (1 - share))
    assert float((estimate.probability.any_kind - truth).abs().mean()) < 0.05  # Bayes' rule


def test_each_class_has_its_own_share(generator: torch.Generator) -> None:
    """Bayes' rule, where a tenth of one class is junk and half of the other."""
    decoys, kind = _examples(generator, broken=0.75)
    numbers = (torch.arange(4000) % 2).long()
    share = torch.tensor([0.1, 0.5])[numbers]
    amplitude = torch.where(torch.rand(4000, generator=generator) < share, 0.75, 1.0)
    amplitude = amplitude + 0.1 * torch.randn(4000, generator=generator)
    amplitudes, of_first = Amplitudes(torch.ones(2), torch.zeros(2)), torch.zeros_like(kind)
    estimate = estimate_junk(_fit_of(amplitude), numbers, DecoyFit(decoys, of_first, kind), amplitudes)
    junk, good = (torch.exp(-0.5 * ((amplitude - centre) / 0.1) ** 2) for centre in (0.75, 1.0))
    truth = junk * share / (junk * share + good * (1 - share))
    for number in (0, 1):
        difference = (estimate.probability.any_kind - truth)[numbers == number]
        assert abs(float(difference.mean())) < 0.04, number


def test_junk_that_looks_like_particles_cannot_be_told(generator: torch.Generator) -> None:
    decoys, kind = _examples(generator)
    alike = replace(decoys, amplitude=1 + 0.1 * torch.randn(len(kind), generator=generator))
    amplitudes, numbers = Amplitudes(torch.ones(1), torch.zeros(1)), torch.zeros_like(kind)
    told, untold = (
        estimate_junk(alike, numbers, DecoyFit(examples, numbers, kind), amplitudes).decoy_auc
        for examples in (decoys, alike)
    )
    assert told > 0.95
    assert abs(untold - 0.5) < 0.1
