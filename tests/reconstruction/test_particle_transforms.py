"""CTF-multiplied transforms, against the images and transfer functions that they were made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Progress
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.ctf import evaluate_ctf
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction.noise_model import shell_precision
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, load_transforms, power_hats

Make = Callable[..., Any]


def ctf_values(dataset: ParticleDataset, plane: HalfPlane) -> torch.Tensor:
    batch = next(iter(dataset.batches(1000)))
    return evaluate_ctf(batch.ctf, plane.frequencies_per_angstrom(dataset.pixel_size_angstrom))


def test_images_are_multiplied_by_their_ctf(make_known: Make, observe: Make) -> None:
    known = make_known(6, sigma=0.5)
    images = observe(known.dataset)
    ctf = ctf_values(known.dataset, images.plane)
    (batch,) = known.dataset.batches(10)
    torch.testing.assert_close(images.ctf_multiplied, images.plane.transform(batch.images) * ctf)
    torch.testing.assert_close(images.ctf_squared, ctf.square())


def test_centred_images_are_slices_times_the_squared_ctf(make_known: Make, observe: Make) -> None:
    known = make_known(6)
    images = observe(known.dataset)
    slices = extract_slices(prepare_slices(known.volume.values), known.poses.rotations, images.plane)
    centred = images.centred(known.shifts_px)
    torch.testing.assert_close(centred, images.ctf_squared * slices, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(images.ctf_multiplied, images.ctf_squared * slices, atol=0.1)


@pytest.mark.parametrize("flag", ["is_premultiplied", "is_phase_flipped"])
def test_premultiplied_and_phase_flipped_images_are_the_same(
    make_known: Make, make_dataset: Make, observe: Make, flag: str
) -> None:
    known = make_known(6, sigma=0.5)
    images = observe(known.dataset)
    (batch,) = known.dataset.batches(10)
    plane = images.plane
    values = ctf_values(known.dataset, plane)
    # What lies beyond the plane is not used.
    stored = plane.images(plane.transform(batch.images) * (values.sign() if flag == "is_phase_flipped" else values))
    found = observe(make_dataset(stored, replace(batch.ctf, **{flag: torch.ones(6)})))
    torch.testing.assert_close(found.ctf_multiplied, images.ctf_multiplied, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.ctf_squared, images.ctf_squared)
    torch.testing.assert_close(found.ctf_squared_harmonics, images.ctf_squared_harmonics)


def test_hats_and_angular_orders_hold_the_squared_ctf(make_known: Make, observe: Make) -> None:
    images = observe(make_known(20).dataset).within(5.0, 16)
    hats = power_hats(images.plane)
    twice = torch.tensor([1.0] + [2.0] * (POWER_ORDERS - 1)).to(hats.dtype)
    found = torch.einsum("lbj,pjl,l->bp", torch.view_as_complex(images.ctf_squared_harmonics), hats, twice).real
    round_part = torch.einsum("bj,pj->bp", images.ctf_squared_harmonics[0, ..., 0], hats[..., 0].real)
    errors = [float((part - images.ctf_squared).square().mean().sqrt()) for part in (found, round_part)]
    assert errors[0] < 0.04
    # Astigmatism is in the orders 2 and 4.
    assert errors[1] > 1.5 * errors[0]


def test_without_a_ctf_the_transfer_is_one(make_known: Make, observe: Make) -> None:
    known = make_known(4, with_ctf=False)
    images = observe(known.dataset)
    (batch,) = known.dataset.batches(10)
    torch.testing.assert_close(images.ctf_multiplied, images.plane.transform(batch.images))
    assert torch.equal(images.ctf_squared, torch.ones_like(images.ctf_squared))
    harmonics = torch.view_as_complex(images.ctf_squared_harmonics)
    found = torch.einsum("lbj,pjl->bp", harmonics, power_hats(images.plane))
    torch.testing.assert_close(found, torch.ones_like(found))


def test_fewer_coefficients_and_fewer_rows(make_known: Make, observe: Make) -> None:
    images = observe(make_known(8, sigma=0.5).dataset)
    part = images.within(4.0, 10)
    expected = HalfPlane.up_to(16, 4.0)
    assert part.plane.box_size_px == 10
    assert torch.equal(part.plane.coords, expected.coords)
    torch.testing.assert_close(part.ctf_multiplied, images.ctf_multiplied[:, : len(expected)])
    assert part.ctf_squared_harmonics.shape[2] == power_hats(part.plane).shape[1]
    rows = torch.tensor([5, 0, 3])
    some = images.rows(rows)
    assert len(some) == 3
    for name in ("ctf_multiplied", "ctf_squared", "ctf_features"):
        assert torch.equal(getattr(some, name), getattr(images, name)[rows])
    assert torch.equal(some.ctf_squared_harmonics, images.ctf_squared_harmonics[:, rows])


def test_shifts_count_pixels_of_the_smaller_box(make_known: Make, observe: Make) -> None:
    images = observe(make_known(8, sigma=0.5).dataset)
    shifts = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    part = images.within(4.0, 10)
    torch.testing.assert_close(part.centred(shifts * 10 / 16), images.centred(shifts)[:, : len(part.plane)])


def test_batches_are_joined(make_known: Make, monkeypatch: pytest.MonkeyPatch, observe: Make) -> None:
    known = make_known(10, sigma=0.5)
    whole = observe(known.dataset)
    monkeypatch.setattr("cryoeq.reconstruction.particle_transforms.READING_BATCH", 4)
    events = list(load_transforms(known.dataset, torch.device("cpu")))
    assert events == [Progress("reading", done, 10) for done in (4, 8, 10)]
    parts = observe(known.dataset)
    for name in ("ctf_multiplied", "ctf_squared", "ctf_squared_harmonics", "ctf_features"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_the_noise_is_what_the_map_leaves(make_known: Make, observe: Make, sigma: float) -> None:
    known = make_known(400, sigma=sigma)
    images = observe(known.dataset)
    slices = extract_slices(prepare_slices(known.volume.values), so3_grid(1, 1), images.plane)
    found = images.residual_noise_variance(slices.abs().square().mean(0))
    assert len(found) == 8
    assert (found[1:] / sigma**2 - 1).abs().max() < 0.15
    nothing = images.residual_noise_variance(torch.zeros(len(images.plane)))
    torch.testing.assert_close(nothing, images.total_variance)
    assert (nothing > found)[1:].all()


@pytest.mark.parametrize(("sigma", "with_ctf"), [(0.5, False), (2.0, True), (8.0, True)])
def test_the_background_bounds_the_noise_where_it_is_asked_for(
    make_known: Make, observe: Make, sigma: float, with_ctf: bool
) -> None:
    """White here, of known variance: whatever the map, the noise is not below half of it, nor above the images."""
    images = observe(make_known(200, sigma=sigma, with_ctf=with_ctf).dataset)
    background = images.background_variance
    assert background is not None
    assert (background[3:] / sigma**2 - 1).abs().max() < (0.15 if sigma > 1 else 0.5)  # tails of the phantom
    bounded, total = images.with_background_as_least_noise(), images.total_variance
    too_strong = torch.full((len(images.plane),), 1e6)
    found = bounded.residual_noise_variance(too_strong)
    torch.testing.assert_close(
        found[1:], total.minimum(0.5 * background).maximum(images.residual_noise_variance(too_strong))[1:]
    )
    weak = torch.zeros(len(images.plane))
    assert torch.equal(bounded.residual_noise_variance(weak), images.residual_noise_variance(weak))
    smaller = bounded.within(4.0, 10).rows(torch.tensor([3, 1]))
    assert smaller.least_noise is not None
    assert torch.equal(smaller.least_noise, 0.5 * background[: len(smaller.least_noise)])
    assert len(smaller.least_noise) == len(smaller.total_variance)


def test_a_map_too_strong_leaves_some_noise(make_known: Make, observe: Make) -> None:
    images = observe(make_known(20, sigma=1.0).dataset)
    total = images.total_variance
    found = images.residual_noise_variance(torch.full((len(images.plane),), 1e6))
    assert (found >= 0.05 * total).all()
    assert (found >= 0.8 * total[1:].min()).all()
    assert (found[1:] < total[1:]).all()


def test_the_mean_of_an_image_counts_for_nothing() -> None:
    assert shell_precision(torch.tensor([4.0, 4.0, 0.5])).tolist() == [0.0, 0.25, 2.0]
