"""Half sets share no image, whatever is repeated, and are those of before where nothing is."""

import pytest
import torch
from torch import Tensor

from cryoeq.data.half_sets import keep_copies_together, split_half_sets, with_adjacent_copies

COUNT = 101


def shares_image(half_set: Tensor, image: Tensor) -> bool:
    return bool(torch.isin(image[half_set == 1], image[half_set == 2]).any())


def sizes(half_set: Tensor) -> list[int]:
    return half_set.bincount(minlength=3)[1:].tolist()


@pytest.fixture
def repeated(generator: torch.Generator) -> Tensor:
    """Images of one to five copies each, in random order."""
    return torch.randint(35, (COUNT,), generator=generator)


def test_distinct_images_change_nothing() -> None:
    plain, told = (
        split_half_sets(COUNT, torch.Generator().manual_seed(3), image) for image in (None, torch.arange(COUNT).flip(0))
    )
    assert torch.equal(plain, told)
    assert sizes(plain) == [51, 50]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    assert torch.equal(with_adjacent_copies(order, torch.arange(COUNT)), order)


def test_copies_fall_into_one_half(repeated: Tensor, generator: torch.Generator) -> None:
    half_set = split_half_sets(COUNT, generator, repeated)
    assert not shares_image(half_set, repeated)
    assert abs(sizes(half_set)[0] - COUNT / 2) <= int(repeated.bincount().max())


def test_copies_of_a_shuffle_are_neighbours(repeated: Tensor, generator: torch.Generator) -> None:
    order = with_adjacent_copies(torch.randperm(COUNT, generator=generator), repeated)
    assert order.sort().values.tolist() == list(range(COUNT))
    assert int((repeated[order].diff() != 0).sum()) == len(repeated.unique()) - 1


def test_given_half_sets_change_for_divided_images_only(generator: torch.Generator) -> None:
    image = torch.arange(40).repeat_interleave(2)
    given = torch.where(image < 20, 1 + torch.arange(80) % 2, 1 + image % 2)
    kept = keep_copies_together(given, image, generator)
    assert not shares_image(kept, image)
    assert torch.equal(kept[40:], given[40:])
    assert sizes(kept) == [40, 40]
    assert keep_copies_together(kept, image, generator) is kept
