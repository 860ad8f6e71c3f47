"""The same image in several rows is found: by file and number, or by its pixels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.data.repeated_images import DigestedImages, find_repeated_images
from cryoeq.io.images import LazyImages
from cryoeq.io.mrc import MrcStack, StackWriter

N, BOX = 12, 16
MakeImages = Callable[..., LazyImages]


@pytest.fixture
def pixels(generator: torch.Generator) -> Tensor:
    return torch.randn(N, BOX, BOX, generator=generator)


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Rows of stacks, given by their pixels."""

    def make(*stacks: Tensor, stack_index: list[int], slice_index: list[int]) -> LazyImages:
        opened = []
        for number, values in enumerate(stacks):
            with StackWriter(tmp_path / f"{number}.mrcs", len(values), BOX, 2.0) as writer:
                writer.append(values)
            opened.append(MrcStack.open(tmp_path / f"{number}.mrcs"))
        return LazyImages(tuple(opened), torch.tensor(stack_index), torch.tensor(slice_index))

    return make


def test_rows_of_one_file_and_number_are_copies(make_images: MakeImages, pixels: Tensor) -> None:
    images = make_images(pixels, pixels, stack_index=[0, 1, 0, 1, 0], slice_index=[3, 3, 4, 3, 3])
    repeated = find_repeated_images(images)
    assert repeated.is_copied.tolist() == [True, True, False, True, True]
    assert (repeated.n_images, repeated.n_rows, repeated.first_pair) == (2, 4, (0, 4))
    assert repeated.copies_of_each is None


def test_a_linked_file_is_one_file(make_images: MakeImages, pixels: Tensor, tmp_path: Path) -> None:
    images = make_images(pixels, stack_index=[0, 0], slice_index=[3, 3])
    (tmp_path / "link.mrcs").symlink_to(tmp_path / "0.mrcs")
    stacks = (*images.stacks, MrcStack.open(tmp_path / "link.mrcs"))
    linked = LazyImages(stacks, torch.tensor([0, 1]), torch.tensor([3, 3]))
    assert find_repeated_images(linked).n_images == 1


def test_equal_pixels_are_copies_once_all_are_read(make_images: MakeImages, pixels: Tensor) -> None:
    rows = {"stack_index": [0] * N + [1] * N, "slice_index": [*range(N), *reversed(range(N))]}
    images = DigestedImages.of(make_images(pixels, pixels, **rows))
    assert find_repeated_images(images).n_images == 0
    for chunk in torch.randperm(2 * N).split(5):
        images.read(chunk)
    repeated = find_repeated_images(images)
    assert (repeated.n_images, repeated.n_rows, repeated.copies_of_each) == (N, 2 * N, 2)
    assert repeated.first_pair == (0, 2 * N - 1)
    half_set = torch.tensor([1] * N + [2] * (N - 2) + [1, 1])
    assert repeated.count(repeated.is_divided(half_set)) == N - 2


@pytest.mark.parametrize("place", [(0, 0), (7, 3), (BOX - 1, BOX - 1)])
def test_one_pixel_makes_another_image(make_images: MakeImages, pixels: Tensor, place: tuple[int, int]) -> None:
    changed = pixels.clone()
    changed[:, *place] += 1e-3
    rows = {"stack_index": [0] * N + [1] * N, "slice_index": [*range(N), *range(N)]}
    images = DigestedImages.of(make_images(pixels, changed, **rows))
    images.read(torch.arange(2 * N))
    assert find_repeated_images(images).n_images == 0


def test_reading_is_as_before_and_constant_images_are_no_copies(make_images: MakeImages, pixels: Tensor) -> None:
    values = pixels.clone()
    values[:4] = torch.tensor([0.0, 0.0, 2.0, 2.0])[:, None, None]
    images = make_images(values, stack_index=[0] * N, slice_index=list(range(N)))
    digested = DigestedImages.of(images)
    rows = torch.randperm(N)
    assert torch.equal(digested.read(rows), images.read(rows))
    assert find_repeated_images(digested).n_images == 0
