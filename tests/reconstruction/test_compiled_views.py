"""Log-likelihoods of single views compiled for CPUs: they agree with plain torch, and do not depend on the batch."""

from dataclasses import dataclass, replace

import pytest
import torch

from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations
from cryoeq.reconstruction import compiled_offsets, compiled_views
from cryoeq.reconstruction.offset_scores import log_likelihoods_around, vertex
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, ParticleTransforms, power_radii
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.view_likelihood import ViewLikelihood, ViewProducts

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scene:
    """Images of noise with an astigmatic CTF, a map of noise, some views."""

    particles: ParticleTransforms
    reference: Reference
    views: torch.Tensor
    generator: torch.Generator

    @property
    def products(self) -> ViewProducts:
        plane = self.particles.plane
        harmonics = disk_harmonics(plane.box_size_px, plane.last_radius, plane.box_size_px / 2 - 0.5, CPU)
        return ViewProducts.build(self.reference, self.views, harmonics)

    def offsets(self, count: int) -> torch.Tensor:
        return 2 * torch.randn(len(self.particles), count, 2, generator=self.generator)

    def chosen(self, count: int) -> torch.Tensor:
        shape = (len(self.particles), count)
        return torch.randint(len(self.views), shape, generator=self.generator)


def scene(n: int = 16, radius: float = 6.0, count: int = 3, n_views: int = 40) -> Scene:
    generator = torch.Generator().manual_seed(8)
    plane = disk_harmonics(n, radius, n / 2 - 0.5, CPU).plane
    hats = len(power_radii(plane.last_radius))
    volume = torch.randn(n, n, n, generator=generator)
    reference = Reference.build(volume, 2 * torch.rand(len(plane), generator=generator) / n**2)
    images = n * torch.randn(count, len(plane), generator=generator, dtype=torch.complex64)
    power = torch.rand(POWER_ORDERS, count, hats, 2, generator=generator)
    particles = ParticleTransforms(plane, images, torch.rand(count, len(plane), generator=generator), power)
    return Scene(particles, reference, random_rotations(n_views, generator), generator)


# 28 angles, of which a quarter is odd, 32 and 12; fewer, as many and more views than are summed at a time.
@pytest.mark.parametrize("radius", [6.0, 7.0, 2.0])
@pytest.mark.parametrize(("n_chosen", "n_offsets"), [(1, 1), (7, 5), (48, 3), (96, 2), (130, 1)])
def test_the_highest_score_is_that_of_all(radius: float, n_chosen: int, n_offsets: int) -> None:
    given = scene(radius=radius)
    products, chosen, offsets = given.products, given.chosen(n_chosen), given.offsets(n_offsets)
    poses = products.log_likelihoods(given.particles, chosen, offsets)
    found = products.highest(given.particles, chosen, offsets)
    torch.testing.assert_close(found, poses.amax((0, 3)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("radius", [6.0, 7.0])
def test_all_scores_of_one_view_are_those_of_torch(radius: float) -> None:
    given = scene(radius=radius)
    products, chosen, offsets = given.products, given.chosen(1), given.offsets(1)
    poses = products.log_likelihoods(given.particles, chosen, offsets)[:, :, 0, :, 0].permute(1, 2, 0)
    found = products.of_one_view(given.particles, chosen[:, 0], offsets[:, 0])
    torch.testing.assert_close(found, poses, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("n_views", "sigma"), [(40, 1.5), (100, 0.0)])
def test_pooled_scores_are_those_of_torch(n_views: int, sigma: float) -> None:
    """Of strong images, too, whose weakest poses count for nothing."""
    given = scene(n_views=n_views)
    harmonics = given.products.harmonics
    likelihood = ViewLikelihood.build(
        given.reference, given.views, harmonics, shift_sigma_px=sigma, offset_step_px=1.5
    )  # fmt: skip
    for factor in (1.0, 30.0):
        images = replace(given.particles, ctf_multiplied=factor * given.particles.ctf_multiplied)
        offsets = likelihood.offsets_px.expand(len(images), -1, -1)
        expected = likelihood.at_offsets(images, offsets) + likelihood.log_prior
        torch.testing.assert_close(likelihood(images), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("n_offsets", [1, 5])
def test_a_particle_has_the_same_scores_in_any_batch(n_offsets: int) -> None:
    given = scene(count=9)
    products, chosen, offsets = given.products, given.chosen(7), given.offsets(n_offsets)
    whole = products.highest(given.particles, chosen, offsets)
    one = products.of_one_view(given.particles, chosen[:, 0], offsets[:, 0])
    for size in (1, 2):
        for rows in torch.arange(9).split(size):
            some = given.particles.rows(rows)
            assert torch.equal(products.highest(some, chosen[rows], offsets[rows]), whole[rows])
            assert torch.equal(products.of_one_view(some, chosen[rows, 0], offsets[rows, 0]), one[rows])


def test_what_is_no_number_stays_so_and_with_its_particle() -> None:
    given = scene()
    images = given.particles.ctf_multiplied.clone()
    images[1] = torch.nan
    products, chosen, offsets = given.products, given.chosen(5), given.offsets(3)
    found = products.highest(replace(given.particles, ctf_multiplied=images), chosen, offsets)
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2]].isfinite().all())


@pytest.mark.parametrize("radius", [7.0, 3.0])
def test_scores_around_an_offset_are_those_of_torch(radius: float) -> None:
    given = scene(radius=radius)
    rotations, offsets = random_rotations(12, given.generator).view(3, 4, 3, 3), given.offsets(4)
    found = log_likelihoods_around(given.reference, given.particles, rotations, offsets, 0.5)
    seen, made = given.particles, given.reference
    particles = ParticleTransforms(
        seen.plane, seen.ctf_multiplied.cdouble(), seen.ctf_squared.double(), seen.ctf_squared_harmonics.double()
    )
    reference = Reference(made.volume.double(), made.padded.cdouble(), made.precision.double())
    expected = log_likelihoods_around(reference, particles, rotations.double(), offsets.double(), 0.5)
    assert float(expected.std()) > 1
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_vertex_is_where_a_parabola_is_highest() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0])
    before, middle, after = 5 - 2 * (x - 0.3) ** 2
    assert float(vertex(before, middle, after)) == pytest.approx(0.3, abs=1e-5)
    assert abs(float(vertex(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(9.0)))) == 1.0


def test_one_compilation_serves_all_shapes() -> None:
    for options in ({}, {"count": 1, "n_views": 3}, {"n": 8, "radius": 2.0}):
        given = scene(**options)  # type: ignore[arg-type]
        products, chosen, offsets = given.products, given.chosen(2), given.offsets(1)
        wider = scene(**options).particles.within(2.0, given.particles.plane.box_size_px)  # a part of its memory
        products.highest(given.particles, chosen, offsets)
        products.of_one_view(given.particles, chosen[:, 0], offsets[:, 0])
        rotations = given.views[chosen]
        for particles in (given.particles, wider):
            log_likelihoods_around(given.reference, particles, rotations, offsets.expand(-1, 2, -1), 0.5)
    kernels = (*compiled_views.KERNELS, *compiled_offsets.KERNELS)
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)
