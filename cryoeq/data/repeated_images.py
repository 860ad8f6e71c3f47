"""Images that appear in several rows of a particle table, by file and number or by their pixels."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.io.images import LazyImages
from cryoeq.runtime.distributed import all_gather_rows, any_rank, shard

_DIGEST_BYTES = 8
_DIGESTED_PX = 2**14  # of larger images evenly spread rows: two particles differ in each pixel, by their noise
_UNREAD = 0


@dataclass(frozen=True)
class DigestedImages(LazyImages):
    """Images of which a digest is kept when they are read: 8 bytes for each, so that copies are found in one pass.

    Args:
        digests: digest of the pixels of each row, 0 until the row is read; changed in place. A constant image, which
            has nothing to tell it by, is the copy of none.
    """

    digests: Int[Tensor, " particles"]

    @classmethod
    def of(cls, images: LazyImages) -> "DigestedImages":
        """The same images, none of them read yet."""
        digests = torch.full((len(images),), _UNREAD)
        return cls(images.stacks, images.stack_index, images.slice_index, digests)

    def read(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows n n"]:
        """Images (y, x) of these rows, float32, grey values as stored.

        Args:
            rows: rows of the particle table, in any order.

        Returns:
            The images.

        Raises:
            ParticleFileError: pixels are NaN or infinite.
        """
        images = super().read(rows)
        if bool((self.digests[rows] == _UNREAD).any()):
            self.digests[rows] = _digests(images, rows)
        return images


@dataclass(frozen=True)
class RepeatedImages:
    """Which rows of a particle table show the same image.

    Args:
        image: number of the image that each row shows; copies share theirs.
    """

    image: Int[Tensor, " particles"]

    @property
    def is_copied(self) -> Bool[Tensor, " particles"]:
        """Whether the image of each row appears in another row, too."""
        return (self.image.bincount() > 1)[self.image]

    @property
    def n_rows(self) -> int:
        """Number of rows whose image appears in another row, too."""
        return int(self.is_copied.sum())

    @property
    def n_images(self) -> int:
        """Number of images that appear in more than one row."""
        return int((self.image.bincount() > 1).sum())

    @property
    def copies_of_each(self) -> int | None:
        """Number of rows that show each image, where that is the same for all images; else None."""
        copies = self.image.bincount()
        return int(copies[0]) if bool((copies == copies[0]).all()) else None

    @property
    def first_pair(self) -> tuple[int, int]:
        """The first row whose image appears again, and the first copy of it, both from 0; there must be one."""
        first = int(self.is_copied.nonzero()[0])
        return first, int((self.image == self.image[first]).nonzero()[1])

    def count(self, rows: Bool[Tensor, " particles"]) -> int:
        """Number of images that some rows show.

        Args:
            rows: whether each row counts.
        """
        return len(self.image[rows].unique())

    def is_divided(self, half_set: Int[Tensor, " particles"]) -> Bool[Tensor, " particles"]:
        """Whether copies of the image of each row are in both half sets.

        Args:
            half_set: half set of each row, 1 or 2.
        """
        return self._is_in(half_set == 1) & self._is_in(half_set == 2)

    def _is_in(self, subset: Bool[Tensor, " particles"]) -> Bool[Tensor, " particles"]:
        return (self.image[subset].bincount(minlength=int(self.image.max()) + 1) > 0)[self.image]


def find_repeated_images(images: LazyImages) -> RepeatedImages:
    """Rows that show the same image: by pixels where all were read, else by file and number.

    All processes of a job call it together, after each has read its share of the rows at least.

    Args:
        images: images of a particle table, of at least one row.

    Returns:
        The number of each row's image.
    """
    if isinstance(images, DigestedImages):
        local = shard(torch.arange(len(images)))
        (digests,) = all_gather_rows((images.digests[local],), local, len(images))
        if not any_rank(bool((digests == _UNREAD).any())):
            return RepeatedImages(torch.unique(digests, return_inverse=True)[1])
    numbers = _file_numbers(images) * (int(images.slice_index.max()) + 1) + images.slice_index
    return RepeatedImages(torch.unique(numbers, return_inverse=True)[1])


def _file_numbers(images: LazyImages) -> Int[Tensor, " particles"]:
    """Number of the file of each row's image; one file of several names has one number."""
    files = [str(stack.path.resolve()) for stack in images.stacks]
    return torch.from_numpy(np.unique(files, return_inverse=True)[1])[images.stack_index]


def _digests(images: Float[Tensor, "rows n n"], rows: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Digests of images, none of them 0."""
    box = images.shape[-1]
    flat = images[:, :: max(1, box**2 // _DIGESTED_PX)].flatten(1)
    hashed = (hashlib.blake2b(pixels, digest_size=_DIGEST_BYTES).digest() for pixels in flat.numpy())
    digests = torch.from_numpy(np.frombuffer(b"".join(hashed), dtype=np.int64).copy())
    is_constant = (flat == flat[:, :1]).all(1)
    return torch.where(is_constant | (digests == _UNREAD), -1 - rows, digests)
