"""Scales of particles: found where the images tell them, 1 where they do not, and never the map's own scale."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from cryoeq.reconstruction.particle_scale import most_probable_scales, update_scales
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import References
from cryoeq.reconstruction.state import ConsensusMap, ParticlePoses, RefinementState

Make = Callable[..., Any]
COUNT = 2000


def drawn(power: float, scales: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross power and power of particles of known scale."""
    noise = torch.randn(len(scales), generator=torch.Generator().manual_seed(seed))
    return power * scales + power**0.5 * noise, torch.full_like(scales, power)


def true_scales(width: float) -> torch.Tensor:
    return 1 + width * torch.randn(COUNT, generator=torch.Generator().manual_seed(7))


def one_group() -> torch.Tensor:
    return torch.zeros(COUNT, dtype=torch.long)


def test_scales_are_nearer_to_the_truth_than_what_each_image_says() -> None:
    scales = true_scales(0.15)
    cross, power = drawn(50.0, scales)
    found = most_probable_scales(cross, power, one_group())
    error, alone = (found - scales).square().mean(), (cross / power - scales).square().mean()
    best = 0.15**2 / (1 + 50 * 0.15**2)  # of the posterior mean with the true prior
    assert error < 1.1 * best < 0.6 * alone
    assert abs(float(found.mean()) - 1) < 1e-3


def test_scales_that_noise_hides_are_one() -> None:
    cross, power = drawn(2.0, torch.ones(COUNT))
    assert (most_probable_scales(cross, power, one_group()) - 1).abs().max() < 0.35
    assert most_probable_scales(cross, power, one_group()).std() < 0.1
    assert (cross / power).std() > 0.5


def test_the_scale_of_the_map_is_not_that_of_the_particles() -> None:
    cross, power = drawn(50.0, true_scales(0.15))
    group = torch.arange(COUNT) % 3
    found = most_probable_scales(cross, power, group)
    torch.testing.assert_close(most_probable_scales(3 * cross, 9 * power, group), found)


def test_a_group_tells_what_its_particles_cannot() -> None:
    group = torch.arange(COUNT) % 4
    levels = torch.tensor([0.8, 0.9, 1.1, 1.2])
    found = most_probable_scales(*drawn(4.0, levels[group]), group)
    means = torch.stack([found[group == number].mean() for number in range(4)])
    assert (means - levels).abs().max() < 0.06
    alike = most_probable_scales(*drawn(4.0, torch.ones(COUNT)), group)
    assert max(abs(float(alike[group == number].mean()) - 1) for number in range(4)) < 0.04


def test_junk_neither_inverts_an_image_nor_widens_the_prior() -> None:
    scales = true_scales(0.0)
    scales[: COUNT // 5] = 0.0
    found = most_probable_scales(*drawn(50.0, scales), one_group())
    assert found.min() > 0.2
    assert found[COUNT // 5 :].std() < 0.1


def test_a_map_that_most_images_contradict_tells_no_scales() -> None:
    cross, power = drawn(50.0, -true_scales(0.15))
    assert (most_probable_scales(cross, power, one_group()) == 1).all()
    assert (most_probable_scales(0 * cross, power, one_group()) == 1).all()


def test_a_scale_is_a_factor_of_the_ctf(make_known: Make, make_dataset: Make, observe: Make) -> None:
    known = make_known(8, sigma=0.5)
    scales, rows = torch.linspace(0.5, 1.5, 8), torch.tensor([6, 0, 3])
    particles = observe(known.dataset)
    found = particles.with_scale(scales).rows(rows)
    ctf = known.dataset.table.ctf
    expected = observe(make_dataset(known.dataset.cache, replace(ctf, scale=scales))).rows(rows)
    torch.testing.assert_close(found.ctf_multiplied, expected.ctf_multiplied)
    torch.testing.assert_close(found.ctf_squared, expected.ctf_squared)
    torch.testing.assert_close(found.ctf_squared_harmonics, expected.ctf_squared_harmonics, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.rows(torch.arange(3)).ctf_multiplied, found.ctf_multiplied)  # once only


def posed(make_known: Make, observe: Make) -> tuple[ParticleTransforms, RefinementState, torch.Tensor]:
    """Particles of known scales at their true poses, every fourth of them not yet posed."""
    known = make_known(200)
    scales = 1 + 0.2 * torch.randn(200, generator=torch.Generator().manual_seed(3))
    noise = 0.7 * torch.randn(known.dataset.cache.shape, generator=torch.Generator().manual_seed(4))
    images = known.dataset.cache * scales[:, None, None] + noise
    particles = observe(replace(known.dataset, cache=images))
    evidence = (torch.arange(200) % 4 > 0).float()
    posterior = ParticlePoses(known.pose_set, torch.ones(200), evidence)
    reference = ConsensusMap(known.volume.values)
    state = RefinementState(reference, torch.arange(200) % 2 + 1, posterior, torch.zeros(9), 6, 0)
    return particles, state, scales


def scales_in(state: RefinementState, particles: ParticleTransforms) -> torch.Tensor:
    references = References(particles)
    update_scales(state, references)
    scale = references.particles.scale
    assert scale is not None
    update_scales(state, references)
    assert torch.equal(scale, references.particles.scale), "scales do not depend on those before"
    return scale


def test_scales_follow_from_poses_and_map(make_known: Make, observe: Make) -> None:
    particles, state, scales = posed(make_known, observe)
    found = scales_in(state, particles)
    is_posed = state.particles.log_evidence > 0
    assert float(torch.corrcoef(torch.stack([found, scales])[:, is_posed])[0, 1]) > 0.8
    assert (found[~is_posed] == 1).all()


def test_neither_half_set_sees_the_scales_of_the_other(make_known: Make, observe: Make) -> None:
    particles, state, _ = posed(make_known, observe)
    is_first = (state.half_set == 1)[:, None]
    signs = 1 - 2.0 * torch.randint(2, particles.ctf_squared.shape, generator=torch.Generator().manual_seed(1))
    scrambled = replace(particles, ctf_multiplied=torch.where(is_first, 1.0, signs) * particles.ctf_multiplied)
    first, second = (scales_in(state, images) for images in (particles, scrambled))
    assert torch.equal(first[is_first[:, 0]], second[is_first[:, 0]])
    assert not torch.equal(first[~is_first[:, 0]], second[~is_first[:, 0]])
