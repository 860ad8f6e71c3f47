"""Hot and dead pixels, and constant images: replaced or counted, and told."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import median_filter
from torch import Tensor

from cryoeq.domain.particles import ParticleTable
from cryoeq.runtime.distributed import all_reduce_max

# A pixel is no image of anything if it is this many times as far from the image's median as nine tenths of the pixels
# are, and as anything that is left by a median filter. Sound images stay below 8 and 3: noise has no such tails,
# and what is sharp and bright still has neighbours.
_FAR = 10.0
_TYPICAL = 0.9  # quantile of the distances from the median
_SAMPLE = 512  # pixels of an image from which median and quantile are taken
_ABSURD = 1e15  # grey value whose square, summed over an image, comes near the end of single precision
_FILTER_PX = 5  # side of the median filter: up to twelve bad pixels of 25 leave no trace in it


def replace_outliers(
    images: Float[Tensor, "batch ny nx"],
) -> tuple[Float[Tensor, "batch ny nx"], Int[Tensor, " batch"]]:
    """Images whose hot and dead pixels are replaced by the median of their neighbourhood.

    Each image is looked at alone, so that what happens to it does not depend on the others. Up to a tenth of an image
    can be recognised, in pieces of up to twelve of 25 neighbours: single pixels, clusters of nine, two columns.

    Args:
        images: grey values as stored, at the box of the files: a Fourier crop would smear a bad pixel over the image.

    Returns:
        (images, counts): the images, the same tensor where nothing was replaced; and the pixels replaced in each.
    """
    repaired, counts, _ = _replaced(images)
    return repaired, counts


def _replaced(
    images: Float[Tensor, "batch ny nx"],
) -> tuple[
    Float[Tensor, "batch ny nx"], Int[Tensor, " batch"], tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
]:
    """As ``replace_outliers``, with the least and the greatest grey value of each image."""
    counts = torch.zeros(len(images), dtype=torch.long)
    middle, typical = _median_and_typical_distance(images)
    low, high = _range(images)
    largest = torch.maximum(high - middle, middle - low)
    suspects = (largest > _FAR * typical).nonzero().squeeze(1)
    repaired = images
    for row in suspects.tolist():
        image = images[row]
        smooth = torch.from_numpy(median_filter(image.numpy(), size=_FILTER_PX, mode="mirror"))
        limit = _FAR * torch.maximum(typical[row], (smooth - middle[row]).abs().max())
        is_bad = (image - middle[row]).abs() > limit
        if is_bad.any():
            repaired = images.clone() if repaired is images else repaired
            repaired[row] = torch.where(is_bad, smooth, image)
            counts[row] = is_bad.sum()
            low[row], high[row] = repaired[row].aminmax()
    return repaired, counts, (low, high)


def _median_and_typical_distance(
    images: Float[Tensor, "batch ny nx"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Median, and 0.9 quantile of the distances from it, of pixels all over each image."""
    flat = images.flatten(1)
    stride = max(1, flat.shape[1] // _SAMPLE) | 1  # odd, so that it visits all columns
    some = flat[:, ::stride].numpy()  # NumPy's partition is fifty times as fast as torch's kthvalue
    half, most = some.shape[1] // 2, int(_TYPICAL * some.shape[1])
    middle = np.partition(some, half, 1)[:, half]
    typical = np.partition(np.abs(some - middle[:, None]), most, 1)[:, most]
    return torch.from_numpy(middle), torch.from_numpy(typical)


def is_empty(images: Float[Tensor, "batch n n"]) -> Bool[Tensor, " batch"]:
    """Whether an image shows nothing: all pixels are equal, one of them is beyond 1e15, or all are below 1e-15."""
    return _shows_nothing(*_range(images))


def _range(images: Float[Tensor, "batch ny nx"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Least and greatest grey value of each image."""
    flat = images.flatten(1)
    return flat.amin(1), flat.amax(1)


def _shows_nothing(low: Float[Tensor, " batch"], high: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    largest = torch.maximum(high, -low)
    return (low == high) | (largest > _ABSURD) | (largest < 1 / _ABSURD)


@dataclass
class PixelCensus:
    """What was found in the images of a table as far as they were read.

    Args:
        table: particles that the images belong to.
        replaced: pixels replaced in each image.
        empty: whether each image shows nothing, see ``is_empty``.
        loud: whether each image varied so much more than the typical one that it was scaled down.
        seen: whether each image was read.
        told: notes that the user has.
        judged: rows, and whether their images are loud, of which ``loud`` does not know yet: a GPU need not be waited
            for.
    """

    table: ParticleTable
    replaced: Int[Tensor, " particles"] = field(init=False)
    empty: Bool[Tensor, " particles"] = field(init=False)
    loud: Bool[Tensor, " particles"] = field(init=False)
    seen: Bool[Tensor, " particles"] = field(init=False)
    told: set[str] = field(default_factory=set)
    judged: list[tuple[Int[Tensor, " _"], Bool[Tensor, " _"]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replaced = torch.zeros(len(self.table), dtype=torch.int32)
        self.empty = torch.zeros(len(self.table), dtype=torch.bool)
        self.loud = torch.zeros(len(self.table), dtype=torch.bool)
        self.seen = torch.zeros(len(self.table), dtype=torch.bool)

    def repaired(self, images: Float[Tensor, "batch n n"], rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch n n"]:
        """The images without hot and dead pixels, those that show nothing set to zero; what was found is counted.

        Args:
            images: grey values as stored.
            rows: their rows of the table.
        """
        images, counts, (low, high) = _replaced(images)
        empty = _shows_nothing(low, high)
        self.replaced[rows], self.empty[rows], self.seen[rows] = counts.int(), empty, True
        return torch.where(empty[:, None, None], torch.zeros_like(images), images) if bool(empty.any()) else images

    def new_notes(self) -> tuple[str, ...]:
        """Warnings for the user that were not told before."""
        self._settle()
        notes = tuple(text for text in self._notes() if text not in self.told)
        self.told.update(notes)
        return notes

    def share(self) -> None:
        """Join what the processes of a job have found, each in the images that it read; all of them call this."""
        self._settle()
        self.replaced, self.empty, self.loud, self.seen = (
            all_reduce_max(found) for found in (self.replaced, self.empty, self.loud, self.seen)
        )

    def _settle(self) -> None:
        for rows, is_loud in self.judged:
            self.loud[rows.cpu()] = is_loud.cpu()
        self.judged.clear()

    def _notes(self) -> tuple[str, ...]:
        """Each with the count and the first image; none where all is sound."""
        notes = []
        among = f"{int(self.seen.sum())} images" + ("" if bool(self.seen.all()) else " read so far")
        if bool((bad := self.replaced > 0).any()):
            pixels = int(self.replaced.sum())
            what = "1 hot or dead pixel" if pixels == 1 else f"{pixels} hot or dead pixels"
            notes.append(
                f"{what} in {int(bad.sum())} of the {among}, first in {self.name(bad)}: replaced by the median of the "
                "neighbourhood."
            )
        if bool(self.empty.any()):
            notes.append(
                f"{int(self.empty.sum())} of the {among} are constant, beyond 1e15 or below 1e-15, the first is "
                f"{self.name(self.empty)}: they count as zero and only dilute the map. Remove these rows."
            )
        if bool(self.loud.any()):
            notes.append(
                f"{int(self.loud.sum())} of the {among} vary more than ten times as much as the typical one, the first "
                f"is {self.name(self.loud)}: they are scaled down, and decide neither contrast nor scale. Ice, carbon "
                "or a defect?"
            )
        return tuple(notes)

    def name(self, which: Bool[Tensor, " particles"]) -> str:
        """The first image of these, by row, number and file."""
        row = int(which.nonzero()[0])
        number = int(self.table.slice_index[row]) + 1
        return f"row {row + 1} (image {number} of {self.table.stack_paths[int(self.table.stack_index[row])].name})"
