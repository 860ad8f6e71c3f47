"""Random half sets of particles, for half maps with independent noise: all copies of an image are in one of them."""

import torch
from jaxtyping import Int
from torch import Tensor


def split_half_sets(
    count: int, generator: torch.Generator, image: Int[Tensor, " particles"] | None = None
) -> Int[Tensor, " particles"]:
    """A random half set, 1 or 2, for each particle.

    The halves differ by one particle at most; where images are repeated, by the copies of one image more.

    Args:
        count: number of particles.
        generator: random number generator of the split.
        image: number of the image of each particle, which copies share; None where no image is repeated.

    Returns:
        The half set of each particle.
    """
    order = torch.randperm(count, generator=generator, device=generator.device).cpu()
    n_second = count // 2
    if image is not None:
        order = with_adjacent_copies(order, image)
        starts = (image[order].diff() != 0).nonzero().squeeze(1) + 1
        n_second = int(starts[(starts - n_second).abs().argmin()]) if len(starts) else 0
    half_set = torch.ones(count, dtype=torch.long)
    half_set[order[:n_second]] = 2
    return half_set


def with_adjacent_copies(
    order: Int[Tensor, " particles"], image: Int[Tensor, " particles"]
) -> Int[Tensor, " particles"]:
    """A shuffle with all copies of an image where the first of them comes; unchanged where no image is repeated.

    Args:
        order: shuffled rows of all particles.
        image: number of the image of each particle, which copies share.

    Returns:
        The rows, shuffled as far as copies allow.
    """
    positions = torch.arange(len(order))
    first = positions.new_full((int(image.max()) + 1,), len(order))
    first = first.scatter_reduce(0, image[order], positions, "amin")
    return order[first[image[order]].argsort(stable=True)]


def keep_copies_together(
    half_set: Int[Tensor, " particles"], image: Int[Tensor, " particles"], generator: torch.Generator
) -> Int[Tensor, " particles"]:
    """Half sets that share no image: images with copies in both are split anew, all other rows stay.

    Args:
        half_set: half set of each particle, 1 or 2.
        image: number of the image of each particle, which copies share.
        generator: random number generator of the split.

    Returns:
        The half set of each particle.
    """
    n_images = int(image.max()) + 1
    in_first, in_second = (image[half_set == half].bincount(minlength=n_images) > 0 for half in (1, 2))
    rows = (in_first & in_second)[image].nonzero().squeeze(1)
    if len(rows) == 0:
        return half_set
    return half_set.index_copy(0, rows, split_half_sets(len(rows), generator, image[rows]))
