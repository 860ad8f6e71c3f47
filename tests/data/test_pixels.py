"""Hot and dead pixels, empty and loud images, in stacks that are sound otherwise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.pixels import is_empty, replace_outliers
from cryoeq.data.preprocessing import Preprocessing, decide_contrast, decide_scale, loudest_deviation
from cryoeq.errors import ParticleFileError
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

N, BOX = 40, 32


@pytest.fixture
def noise(generator: torch.Generator) -> Tensor:
    return 5 + 2 * torch.randn(N, BOX, BOX, generator=generator)


@pytest.fixture
def dark(noise: Tensor) -> Tensor:
    """Dark particles on light ground."""
    images = noise.clone()
    images[:, 10:22, 10:22] -= 2
    return images


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., ParticleDataset]:
    def open_images(images: Tensor, **options: int) -> ParticleDataset:
        with StackWriter(tmp_path / "stack.mrcs", len(images), images.shape[-1], 2.0) as writer:
            writer.append(images)
        return ParticleDataset.open(read_particles(tmp_path / "stack.mrcs"), **options)

    return open_images


def warnings_of(dataset: ParticleDataset) -> list[str]:
    return [text for text in dataset.warnings if "images" in text]


@pytest.mark.parametrize("box", [16, 64, 200])
@pytest.mark.parametrize("law", ["normal", "uniform", "few electrons", "two grey values", "offset"])
def test_sound_noise_is_left_as_it_is(generator: torch.Generator, box: int, law: str) -> None:
    normal = torch.randn(20, box, box, generator=generator)
    images = {
        "normal": normal,
        "uniform": torch.rand(20, box, box, generator=generator),
        "few electrons": torch.poisson(torch.full((20, box, box), 0.2), generator=generator),
        "two grey values": (normal > 0).float(),
        "offset": 1e4 + 1e-2 * normal,
    }[law]
    repaired, counts = replace_outliers(images)
    assert repaired is images
    assert counts.sum() == 0


@pytest.mark.parametrize(("box", "pixel_size"), [(32, 8.0), (64, 2.5), (96, 20.0), (128, 4.0)])
@pytest.mark.parametrize("background", ["ripples", "zero"])
def test_particles_without_noise_are_left_as_they_are(box: int, pixel_size: float, background: str) -> None:
    """From one that fills its box to one that is six pixels wide, with and without anything around it."""
    values = sample_atoms(chiral_phantom(60.0), box, pixel_size).values
    images = torch.stack([values.sum(axis) for axis in range(3)])
    if background == "zero":
        images = torch.where(images > 0.05 * images.amax(), images, torch.zeros_like(images))
    for contrast in (1, -1):
        assert replace_outliers(contrast * images)[1].sum() == 0


PIECES = {
    "pixel": (slice(9, 10), slice(17, 18)),
    "corner": (slice(0, 1), slice(31, 32)),
    "block": (slice(14, 17), slice(15, 18)),
    "column": (slice(None), slice(7, 8)),
    "row": (slice(31, 32), slice(None)),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("value", [200.0, -200.0, 1e6, -1e30, 3e38])
def test_bad_pixels_are_replaced_and_no_other(noise: Tensor, piece: str, value: float) -> None:
    images = noise.clone()
    is_bad = torch.zeros_like(noise, dtype=torch.bool)
    is_bad[[3, 20], *PIECES[piece]] = True
    images[is_bad] = value
    before = images.clone()
    repaired, counts = replace_outliers(images)
    assert torch.equal(images, before), "the images that were given are left alone"
    assert torch.equal(repaired[~is_bad], noise[~is_bad])
    assert (repaired[is_bad] - 5).abs().max() < 2 * 5
    assert torch.equal(counts, is_bad.sum((1, 2)))
    alone = torch.cat([replace_outliers(image[None])[0] for image in images])
    assert torch.equal(alone, repaired), "whatever the other images of the batch are"


def test_images_that_show_nothing(noise: Tensor) -> None:
    images = noise.clone()
    images[1], images[2, 0, 0], images[3], images[4] = 7.0, 1e16, images[3] * 1e-10, images[4] * 1e-30
    assert is_empty(images).nonzero().flatten().tolist() == [1, 2, 4]


def test_a_few_bad_images_decide_nothing(dark: Tensor) -> None:
    bad = dark.clone()
    bad[3] *= 1e6
    bad[4, 12:20, 12:20] = 1e5
    bad[5] = 0
    sound = torch.cat([dark[:3], dark[6:]])
    assert decide_contrast(bad) == decide_contrast(sound)
    assert decide_scale(bad) == decide_scale(sound)
    assert decide_contrast(bad).sign == -1


def test_a_loud_image_becomes_as_loud_as_the_others(dark: Tensor) -> None:
    images = dark.clone()
    images[3] *= 1e4
    for scale in (2.0, None):
        scaled = Preprocessing(BOX, scale, 1).apply(dark)
        preprocessing = Preprocessing(BOX, scale, -1, loudest_deviation(scaled))
        done, is_loud = preprocessing.apply_and_judge(images)
        assert torch.equal(done[4:], -scaled[4:])
        assert done[3].std() == pytest.approx(float(scaled.flatten(1).std(1).median()), rel=0.1)
        assert is_loud.nonzero().flatten().tolist() == ([3] if scale else []), "one scaled by its own is not loud"


@pytest.mark.parametrize("working_box_px", [None, 24])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_hot_pixel_changes_one_pixel(
    opened: Callable[..., ParticleDataset], dark: Tensor, working_box_px: int | None, cache_bytes: int
) -> None:
    options = {"cache_bytes": cache_bytes, "working_box_px": working_box_px}
    sound = opened(dark, **options)
    assert warnings_of(sound) == []
    images = dark.clone()
    images[17, 9, 9] = 1e30
    images[30, 2, 3] = -1e4
    hot = opened(images, **options)
    (warning,) = warnings_of(hot)
    assert "2 hot or dead pixels in 2 of the 40 images, first in row 18 (image 18 of stack.mrcs)" in warning
    assert hot.preprocessing.sign == -1
    assert hot.preprocessing.scale == pytest.approx(sound.preprocessing.scale, rel=1e-3)
    rows = torch.arange(N)
    torch.testing.assert_close(hot.batch(rows).images[:17], sound.batch(rows).images[:17], atol=1e-3, rtol=1e-3)
    assert (hot.batch(rows).images - sound.batch(rows).images).abs().max() < 5
    assert hot.new_warnings() == ()


def test_what_is_found_later_is_told_later(opened: Callable[..., ParticleDataset], generator: torch.Generator) -> None:
    images = torch.randn(1200, 16, 16, generator=generator)
    images[1, 5, 5] = 1e5  # neither is in the sample that decides the scale
    images[3] *= 1e3
    dataset = opened(images, cache_bytes=0)
    assert warnings_of(dataset) == []
    assert sum(len(batch) for batch in dataset.batches(100)) == 1200
    pixel, loud = dataset.new_warnings()
    assert "1 hot or dead pixel in 1 of the 1200 images, first in row 2" in pixel
    assert "1 of the 1200 images vary more than ten times as much as the typical one, the first is row 4" in loud
    assert dataset.new_warnings() == ()


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_constant_images_are_named_and_count_as_zero(
    opened: Callable[..., ParticleDataset], dark: Tensor, cache_bytes: int
) -> None:
    images = dark.clone()
    images[10:35], images[35] = 5.0, 1e30
    dataset = opened(images, cache_bytes=cache_bytes)
    (warning,) = warnings_of(dataset)
    assert "26 of the 40 images are constant, beyond 1e15 or below 1e-15, the first is row 11" in warning
    found = dataset.batch(torch.arange(N)).images
    assert found[10:36].abs().max() == 0
    assert dataset.preprocessing.sign == -1
    assert found[:10].flatten(1).std(1).min() > 0.9


@pytest.mark.parametrize("value", [0.0, 3.0, 1e20])
def test_a_stack_that_shows_nothing_is_refused(opened: Callable[..., ParticleDataset], value: float) -> None:
    with pytest.raises(ParticleFileError, match="all 10 images that were looked at are constant"):
        opened(torch.full((10, 16, 16), value))
