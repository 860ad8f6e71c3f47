"""Scores of all poses compiled for CPUs: they agree with plain torch, whichever way sums are taken."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations
from cryoeq.reconstruction import compiled_scores
from cryoeq.reconstruction.compiled_scores import CompiledScores, CompiledWeights
from cryoeq.reconstruction.expectation import expectation_step, pose_posterior
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, LikelihoodTerms, ParticleTransforms, power_radii
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.pose_scores import TorchScores, pose_scores
from cryoeq.reconstruction.reference import Reference

CPU = torch.device("cpu")
ALL_COLUMNS, NO_COLUMNS = 1.0, -1.0  # share of the hypotheses up to which they are summed one by one


@dataclass(frozen=True)
class Scene:
    """Images of noise with an astigmatic CTF, maps of noise, offsets."""

    particles: ParticleTransforms
    likelihood: PoseLikelihood
    offsets_px: torch.Tensor

    @property
    def terms(self) -> LikelihoodTerms:
        return self.particles.at_offsets(self.offsets_px, self.likelihood.harmonics)


def scene(
    n: int = 16, radius: float = 6.0, count: int = 3, n_offsets: int = 2, n_maps: int = 1, n_inplane: int = 12,
    healpix_order: int = 0, signal: float = 1.0,
) -> Scene:  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    harmonics = disk_harmonics(n, radius, n / 2 - 0.5, CPU)
    plane, hats = harmonics.plane, len(power_radii(harmonics.plane.last_radius))
    volumes = signal * torch.randn(n_maps, n, n, n, generator=generator)
    precision = 2 * torch.rand(len(plane), generator=generator) / n**2
    grid = PoseGrid.build(healpix_order, n_inplane, random_rotations(1, generator)[0], offset_rad=0.2)
    references = [Reference.build(volume, precision) for volume in volumes]
    images = n * torch.randn(count, len(plane), generator=generator, dtype=torch.complex64)
    power = torch.rand(POWER_ORDERS, count, hats, 2, generator=generator)
    particles = ParticleTransforms(plane, images, torch.rand(count, len(plane), generator=generator), power)
    offsets = 2 * torch.randn(count, n_offsets, 2, generator=generator)
    return Scene(particles, PoseLikelihood.of_classes(references, grid, harmonics), offsets)


def both_scores(given: Scene, log_prior: torch.Tensor) -> tuple[CompiledScores, TorchScores]:
    likelihood, terms = given.likelihood, given.terms
    values = likelihood.log_likelihoods(terms)
    of_map = values.view(len(values), 2, likelihood.n_maps, -1, values.shape[2])
    of_map += log_prior[:, None]
    return CompiledScores(likelihood, *likelihood.half_turns(terms), log_prior), TorchScores(likelihood, values)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("share", [ALL_COLUMNS, NO_COLUMNS])
@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ({}, 1.0),
        ({"count": 1, "n_offsets": 1}, 3.0),
        ({"n": 17, "radius": 7.5, "count": 5, "n_offsets": 4, "n_inplane": 24}, 1.0),
        ({"n": 8, "radius": 2.0, "n_inplane": 2}, 1.0),
        ({"n_maps": 3, "n_offsets": 3}, 0.7),
        ({"healpix_order": 1, "n_maps": 2, "n_inplane": 26, "count": 7}, 1.0),
        ({"signal": 30.0, "healpix_order": 1}, 1.0),
        ({"signal": 0.0}, 1.0),
    ],
)
def test_scores_weights_and_sums_are_those_of_torch(
    options: dict[str, float], temperature: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_scores, "_FEW", share)
    given = scene(**options)  # type: ignore[arg-type]
    count, n_offsets = given.offsets_px.shape[:2]
    log_prior = torch.randn(given.likelihood.n_maps, count * n_offsets, generator=torch.Generator().manual_seed(1))
    ours, theirs = both_scores(given, log_prior)
    highest = theirs.highest()
    torch.testing.assert_close(ours.highest(), highest, rtol=1e-5, atol=1e-4)
    best = highest.view(-1, count, n_offsets).amax((0, 2))
    found, expected = ours.weights(highest, best, temperature), theirs.weights(highest, best, temperature)
    torch.testing.assert_close(found.sums, expected.sums, rtol=2e-3, atol=1e-3)
    terms = given.terms
    for ours_summed, summed in zip(tensors(found.sum_images(terms)), tensors(expected.sum_images(terms)), strict=True):
        assert_near(ours_summed, summed, 2e-3)


def tensors(terms: LikelihoodTerms) -> tuple[torch.Tensor, torch.Tensor]:
    return terms.cross_term, terms.quadratic_term


def weights_of(scores: CompiledScores, n_offsets: int) -> CompiledWeights:
    highest = scores.highest()
    return scores.weights(highest, highest.view(-1, highest.shape[1] // n_offsets, n_offsets).amax((0, 2)), 1.0)


def test_both_ways_of_summing_agree_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scene(signal=20.0, healpix_order=1, count=6)
    n_offsets = given.offsets_px.shape[1]
    scores, _ = both_scores(given, torch.zeros(1, 6 * n_offsets))
    monkeypatch.setattr(compiled_scores, "_FEW", ALL_COLUMNS)
    some = weights_of(scores, n_offsets)
    monkeypatch.setattr(compiled_scores, "_FEW", NO_COLUMNS)
    every = weights_of(scores, n_offsets)
    assert every.places is None
    assert some.places is not None
    assert 0 < len(some.places) < 0.9 * every.first.shape[1]
    assert torch.equal(some.sums, every.sums)
    for ours, theirs in zip(tensors(some.sum_images(given.terms)), tensors(every.sum_images(given.terms)), strict=True):
        assert_near(ours, theirs, 1e-5)


def test_exponentials_are_right_to_the_last_places() -> None:
    given = scene()
    values = torch.linspace(-59.0, 0.0, given.likelihood.half_turns(given.terms)[0].numel())
    even = values.view_as(given.likelihood.half_turns(given.terms)[0])
    scores = CompiledScores(given.likelihood, even, torch.zeros_like(even), torch.zeros(1, even.shape[2]))
    # As if all were significant.
    weights = scores.weights(torch.zeros(even.shape[1:]), torch.zeros(len(given.particles)), 1.0)
    expected = 2 * even.flatten(1).double().exp()
    assert ((weights.first.double() - expected).abs() <= 3e-7 * expected).all()
    assert not weights.second.any()


def test_the_best_pose_weighs_one_and_no_confidence_is_above_it() -> None:
    """To the last bit, whatever is rounded in the scores."""
    for signal in (3.0, 10.0, 100.0):
        given = scene(signal=signal, healpix_order=1, count=40)
        found = pose_posterior(given.particles, given.likelihood, given.offsets_px, shift_sigma_px=1.3)
        assert (found.confidence <= 1).all()
        assert (found.confidence > 0).all()
    assert (found.confidence == 1).any()


def test_what_is_left_out_is_a_thousandth_at_most() -> None:
    for signal in (1.0, 3.0, 10.0):
        given = scene(signal=signal, healpix_order=1)
        count, n_offsets = given.offsets_px.shape[:2]
        ours, theirs = both_scores(given, torch.zeros(1, count * n_offsets))
        found, highest = weights_of(ours, n_offsets).sums, ours.highest()
        expected = theirs.weights(highest, highest.view(-1, count, n_offsets).amax((0, 2)), 1.0).sums
        ratio = found.view(count, -1).sum(1) / expected.view(count, -1).sum(1)
        assert (ratio > 1 - 1e-3).all()
        assert (ratio < 1 + 1e-4).all()


def test_no_posterior_depends_on_the_other_particles(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, for the same log-likelihoods, whichever way the images are summed."""
    given = scene(count=5, signal=10.0)
    even, odd = given.likelihood.half_turns(given.terms)
    n_offsets = given.offsets_px.shape[1]
    sums = []
    for share, particles in ((ALL_COLUMNS, slice(0, 5)), (NO_COLUMNS, slice(2, 4)), (ALL_COLUMNS, slice(3, 4))):
        monkeypatch.setattr(compiled_scores, "_FEW", share)
        rows = slice(particles.start * n_offsets, particles.stop * n_offsets)
        halves = even[..., rows].contiguous(), odd[..., rows].contiguous()
        scores = CompiledScores(given.likelihood, *halves, torch.zeros(1, halves[0].shape[2]))
        found = weights_of(scores, n_offsets)
        sums.append(found.sums[0, (3 - particles.start) * n_offsets :][:n_offsets])
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_an_image_that_is_no_number_has_no_posterior_and_leaves_the_others_theirs() -> None:
    given = scene(count=3)
    clean = pose_posterior(given.particles, given.likelihood, given.offsets_px, shift_sigma_px=2.0)
    given.particles.ctf_multiplied[1, 4] = torch.nan
    found = pose_posterior(given.particles, given.likelihood, given.offsets_px, shift_sigma_px=2.0)
    assert found.log_evidence.isnan().tolist() == [False, True, False]
    assert found.confidence.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.log_evidence[::2], clean.log_evidence[::2])


@pytest.mark.parametrize("n_maps", [1, 2])
def test_the_posterior_alone_is_that_of_the_step(n_maps: int) -> None:
    given, options = scene(n_maps=n_maps), {"shift_sigma_px": 1.5, "null_share": 0.1}
    alone = pose_posterior(given.particles, given.likelihood, given.offsets_px, **options)
    result = result_of(expectation_step(given.particles, given.likelihood, given.offsets_px, **options))
    for ours, theirs in zip(alone.tensors(), result.posterior.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_particle_has_no_posterior() -> None:
    given = scene(n_maps=2)
    found = pose_posterior(given.particles, given.likelihood, given.offsets_px[:0], shift_sigma_px=1.5)
    assert len(found.poses) == 0
    assert found.class_probability.shape == (0, 2)


def test_one_compilation_serves_all_shapes() -> None:
    """Compiled beforehand once, whatever the run is like."""
    for options in ({}, {"n_maps": 2, "count": 1, "n_offsets": 1}, {"n": 8, "radius": 2.0}):
        given = scene(**options)  # type: ignore[arg-type]
        for temperature in (1.0, 2.0):
            steps = expectation_step(
                given.particles, given.likelihood, given.offsets_px, shift_sigma_px=0.0, temperature=temperature
            )
            assert len(result_of(steps).posterior.poses) == len(given.particles)
    assert [len(kernel.signatures) for kernel in compiled_scores.KERNELS] == [1, 1, 1]


def on_gpu(given: Scene) -> Scene:
    device, ours, seen = torch.device("cuda"), given.likelihood, given.particles
    harmonics, grid = ours.harmonics.to(device), ours.grid
    fixed = (ours.hats, ours.precision, ours.linear, ours.quadratic)
    likelihood = PoseLikelihood(
        harmonics,
        PoseGrid(grid.views.to(device), grid.inplane_rad.to(device)),
        *(values.to(device) for values in fixed),
        n_maps=ours.n_maps,
    )
    images = (seen.ctf_multiplied, seen.ctf_squared, seen.ctf_squared_harmonics)
    particles = ParticleTransforms(harmonics.plane, *(values.to(device) for values in images))
    return Scene(particles, likelihood, given.offsets_px.to(device))


@pytest.mark.gpu
@pytest.mark.parametrize("n_maps", [1, 2])
def test_a_gpu_has_the_posterior_and_sums_of_a_cpu(n_maps: int) -> None:
    given = scene(n_maps=n_maps, healpix_order=1)
    results = []
    for there, kind in ((given, CompiledScores), (on_gpu(given), TorchScores)):
        assert isinstance(pose_scores(there.likelihood, there.terms, None, None), kind)
        steps = expectation_step(there.particles, there.likelihood, there.offsets_px, shift_sigma_px=1.5)
        results.append(result_of(steps))
    ours, theirs = results
    for found, expected in zip(ours.posterior.tensors(), theirs.posterior.tensors(), strict=True):
        torch.testing.assert_close(found, expected.cpu(), rtol=2e-3, atol=1e-4)
    for found, expected in zip(tensors(ours.sums), tensors(theirs.sums), strict=True):
        assert_near(found, expected.cpu(), 2e-3)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from reconstruction.test_compiled_scores import expectation_step, result_of, scene
given = scene(signal=20.0, healpix_order=1, count=6)
found = result_of(expectation_step(given.particles, given.likelihood, given.offsets_px, shift_sigma_px=2.0))
numbers = (found.sums.cross_term, found.sums.quadratic_term, *found.posterior.tensors())
print([values.double().sum().item() for values in numbers])
"""


@pytest.mark.slow
def test_the_process_that_compiles_has_the_results_of_those_that_find_it_compiled(tmp_path: Path) -> None:
    """To the last bit: a run that is resumed by another process goes on as it would have."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
    said = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    assert list(tmp_path.rglob("*.nbi"))
    assert said[0].stdout == said[1].stdout != ""
