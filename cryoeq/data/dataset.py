"""Batches of preprocessed particle images, from memory, a scratch disk or the files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.pixels import PixelCensus
from cryoeq.data.preprocessing import (
    Preprocessing,
    background_radius,
    crop,
    decide_contrast,
    decide_scale,
    loudest_deviation,
    normalise_background,
)
from cryoeq.domain.events import Remark
from cryoeq.domain.particles import ParticleBatch, ParticleTable
from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.io.images import SMALLEST_BOX_PX, LazyImages
from cryoeq.io.particles import ParticleStack
from cryoeq.io.scratch import keep_on_scratch

_SAMPLE_SIZE = 512
_CHUNK_PIXELS = 2**19  # that are prepared at once: more do not stay in a processor's cache from one pass to the next
CACHE_BYTES = 2**30  # of preprocessed images that are kept in memory
# Images read from the files: runs of 64 neighbours, of which 64 runs at a time are mixed.
_RUN_LENGTH, _MIXED_RUNS = 64, 64
_READ_BYTES = 2**28  # pixels read at once


@dataclass(frozen=True)
class ParticleDataset:
    """A particle stack with its preprocessing decided.

    Args:
        table: particles as stored, with the box and pixel size of the files.
        box_size_px: side of the images in the batches.
        pixel_size_angstrom: pixel size of the images in the batches.
        notes: findings and decisions for the user, one sentence each.
        images: stored pixels, read on demand.
        preprocessing: Fourier crop, scale and sign that are applied to each stored image.
        cache: preprocessed images, in memory or on the scratch disk; None where images are read from their files.
        is_large: True where the preprocessed images exceed ``cache_bytes``, so that ``locality_order`` reorders rows.
        warnings: those of the notes that are warnings.
        census: what was found in the stored pixels as far as they were read; None where none are read.
    """

    table: ParticleTable
    box_size_px: int
    pixel_size_angstrom: float
    notes: tuple[str, ...]
    images: LazyImages
    preprocessing: Preprocessing
    cache: Float[Tensor, "particles m m"] | None
    is_large: bool = False
    warnings: tuple[str, ...] = ()
    census: PixelCensus | None = None

    @classmethod
    def open(
        cls,
        stack: ParticleStack,
        *,
        working_box_px: int | None = None,
        sign: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        scratch: Path | None = None,
        particle_diameter_angstrom: float | None = None,
    ) -> "ParticleDataset":
        """Decide contrast and scale from up to 512 images, and read the whole stack into memory where it is small.

        Hot and dead pixels are replaced wherever images are read. Those of all images that were read here are in the
        warnings; ``new_warnings`` tells what was found since.

        Args:
            stack: particle stack, as opened by ``read_particles``.
            working_box_px: even box to Fourier-crop to, at least 16; None keeps the box of the images.
            sign: contrast, 1 or -1, by which images are multiplied so that protein is bright; None decides from the
                images.
            cache_bytes: largest preprocessed stack, in bytes, that is kept in memory; 0 reads from the files each time.
            scratch: folder on a local disk that keeps a larger preprocessed stack; None for none.
            particle_diameter_angstrom: diameter of the circle outside of which an image is background; None for 0.75 of
                the box.

        Raises:
            ConfigError: the working box is odd, tiny, or larger than the images.
            ParticleFileError: pixels are NaN or infinite, or no image shows anything.
            OutputError: the scratch disk is too small.
        """
        table = stack.table
        box = checked_box(working_box_px, table.box_size_px)
        fits = len(table) * box * box * 4 <= cache_bytes
        all_rows = torch.arange(len(table))
        sample_rows = (
            torch.linspace(0, len(table) - 1, min(_SAMPLE_SIZE, len(table)), dtype=torch.float64).round().long()
        )
        census = PixelCensus(table)
        cropped = _read_cropped(stack.images, all_rows if fits else sample_rows, box, census)
        _refuse_empty(census, stack)
        sample = (cropped[sample_rows] if fits else cropped)[~census.empty[sample_rows]]
        radius = background_radius(particle_diameter_angstrom, table.box_size_px * table.pixel_size_angstrom)
        is_premultiplied = any(group.is_ctf_premultiplied for group in table.optics)
        scale = decide_scale(sample, is_premultiplied=is_premultiplied, radius=radius)
        if sign is None:
            contrast = decide_contrast(sample)
            sign, contrast_note = contrast.sign, contrast.reason
        else:
            contrast_note = f"Contrast: as given, the images are {'kept' if sign == 1 else 'multiplied by -1'}."
        loudest = loudest_deviation(normalise_background(sample, scale.value, radius))
        preprocessing = Preprocessing(box, scale.value, sign, loudest, radius)
        cache = None
        if fits:
            cache = cropped
            for rows in _chunks(all_rows, box):
                chunk = cache[int(rows[0]) : int(rows[-1]) + 1]
                _preprocess(chunk, rows, preprocessing, census, out=chunk)
        elif scratch is not None:
            chunks = (_read(stack.images, rows, preprocessing, census) for rows in _chunks(all_rows, table.box_size_px))
            cache = keep_on_scratch(scratch, (len(table), box, box), chunks)
        else:
            _preprocess(sample, sample_rows[~census.empty[sample_rows]], preprocessing, census, out=sample)
        notes = (*stack.notes, *census.new_notes())
        pixel_size = table.pixel_size_angstrom * table.box_size_px / box
        return cls(
            table,
            box,
            pixel_size,
            (*notes, contrast_note, scale.reason),
            stack.images,
            preprocessing,
            cache,
            not fits,
            tuple(note for note in notes if not isinstance(note, Remark)),
            census,
        )

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, rows: Int[Tensor, " rows"]) -> "ParticleDataset":
        """Some of the particles, in the given order; what is found in their pixels is told by the whole.

        Args:
            rows: rows of the particle table.
        """
        images, cache = self.images, None if self.cache is None else self.cache[rows]
        some = LazyImages(images.stacks, images.stack_index[rows], images.slice_index[rows])
        return replace(self, table=self.table.rows(rows), images=some, cache=cache, census=None)

    def batch(self, rows: Int[Tensor, " rows"]) -> ParticleBatch:
        """These particles, on the CPU.

        Args:
            rows: rows of the particle table, in any order.
        """
        images = self._stored(rows) if self.cache is None else self.cache[rows]
        return ParticleBatch(rows, images, None if self.table.ctf is None else self.table.ctf[rows])

    def stored(self, rows: Int[Tensor, " rows"]) -> ParticleBatch:
        """These particles on the CPU for ``preprocessed``: as stored, but for hot and dead pixels; as kept, if kept.

        Args:
            rows: rows of the particle table, in any order.
        """
        if self.cache is not None:
            return self.batch(rows)
        census = self.census or PixelCensus(self.table)
        ctf = None if self.table.ctf is None else self.table.ctf[rows]
        return ParticleBatch(rows, census.repaired(self.images.read(rows), rows), ctf)

    def preprocessed(self, batch: ParticleBatch) -> ParticleBatch:
        """Particles of ``stored``, preprocessed on the device where they are.

        Args:
            batch: particles of this dataset.
        """
        if self.cache is not None:
            return batch
        images, is_loud = self.preprocessing.apply_and_judge(batch.images)
        if self.census is not None:
            self.census.judged.append((batch.indices, is_loud))
        return replace(batch, images=images)

    def batches_of(self, row_batches: Iterable[Int[Tensor, " rows"]]) -> Iterator[ParticleBatch]:
        """These particles, batch by batch, each as ``batch`` has it.

        Where pixels stream from the disk, those of several batches are read at once, in the order of the files.

        Args:
            row_batches: rows of the particle table for each batch, in any order.
        """
        if self.cache is not None:
            yield from map(self.batch, row_batches)
            return
        at_once = min(_RUN_LENGTH * _MIXED_RUNS, _READ_BYTES // (4 * self.table.box_size_px**2), len(self))
        block, count = list[Tensor](), 0
        for rows in row_batches:
            block.append(rows)
            count += len(rows)
            if count >= at_once:
                yield from self._read(block)
                block, count = [], 0
        if block:
            yield from self._read(block)

    def _read(self, block: list[Tensor]) -> Iterator[ParticleBatch]:
        rows = torch.cat(block)
        images = torch.empty(len(rows), self.box_size_px, self.box_size_px)
        for chunk in _chunks(self._order_on_disk(rows).argsort(), self.table.box_size_px):
            images[chunk] = self._stored(rows[chunk])
        sizes = [len(batch_rows) for batch_rows in block]
        for batch_rows, batch_images in zip(block, images.split(sizes), strict=True):
            ctf = None if self.table.ctf is None else self.table.ctf[batch_rows]
            yield ParticleBatch(batch_rows, batch_images, ctf)

    def _stored(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows m m"]:
        census = self.census or PixelCensus(self.table)
        return _read(self.images, rows, self.preprocessing, census)

    def share_census(self) -> None:
        """Join what the processes of a job, each of which read some of the images, found in them; all call this."""
        if self.census is not None:
            self.census.share()

    def new_warnings(self) -> tuple[str, ...]:
        """Warnings of what was found in images that were read since the dataset was opened, or since the last call."""
        return () if self.census is None else self.census.new_notes()

    def _order_on_disk(self, rows: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Numbers that increase from image to image of a stack, and from stack to stack."""
        table = self.table
        return table.stack_index[rows] * (int(table.slice_index.max()) + 1) + table.slice_index[rows]

    def locality_order(self, order: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Shuffled rows in an order that keeps neighbours in the files close, where the stack is large.

        Runs of neighbours come in the order of their first particle in the shuffle; the particles of 64 runs at a time
        stay shuffled.

        Args:
            order: shuffled rows of the particle table.
        """
        if not self.is_large:
            return order
        on_disk = self._order_on_disk(torch.arange(len(self))).argsort()
        run = torch.empty_like(on_disk).scatter_(0, on_disk, torch.arange(len(on_disk)) // _RUN_LENGTH)[order]
        first = torch.full((int(run.max()) + 1,), len(order)).scatter_reduce(0, run, torch.arange(len(order)), "amin")
        rank = first.argsort().argsort()
        return order[(rank[run] // _MIXED_RUNS).argsort(stable=True)]

    def batches(self, batch_size: int, order: Int[Tensor, " rows"] | None = None) -> Iterator[ParticleBatch]:
        """All particles once, or those of ``order``; the last batch may be smaller.

        Args:
            batch_size: particles per batch.
            order: rows of the particle table; None for all, in the order of the file.
        """
        rows = torch.arange(len(self)) if order is None else order
        for chunk in torch.split(rows, batch_size):
            yield self.batch(chunk)


def checked_box(working_box_px: int | None, stored_px: int) -> int:
    """The box of the images in the batches.

    Args:
        working_box_px: box to Fourier-crop to; None keeps that of the images.
        stored_px: box of the images.

    Raises:
        ConfigError: the working box is odd, tiny, or larger than the images.
    """
    box = stored_px if working_box_px is None else working_box_px
    if box % 2 or not SMALLEST_BOX_PX <= box <= stored_px:
        expected = f"an even number from {SMALLEST_BOX_PX} to the {stored_px} px of the images is needed"
        raise ConfigError(f"working box of {box} px", expected, f"Choose one of them, for example {stored_px}")
    return box


def _read_cropped(
    images: LazyImages, rows: Int[Tensor, " rows"], box: int, census: PixelCensus
) -> Float[Tensor, "rows m m"]:
    """Cropped images, read in chunks: all stored images at once might not fit into memory."""
    cropped = torch.empty(len(rows), box, box)
    first = 0
    for chunk in _chunks(rows, images.box_size_px):
        cropped[first : first + len(chunk)] = crop(census.repaired(images.read(chunk), chunk), box)
        first += len(chunk)
    return cropped


def _chunks(rows: Int[Tensor, " rows"], box_size_px: int) -> tuple[Int[Tensor, " _"], ...]:
    """The rows, of as many images at a time as are prepared at once."""
    return rows.split(max(1, _CHUNK_PIXELS // box_size_px**2)) if len(rows) else ()


def _refuse_empty(census: PixelCensus, stack: ParticleStack) -> None:
    if bool(census.empty[census.seen].all()):
        which = f"{stack.star.path}: all {int(census.seen.sum())} images that were looked at"
        raise ParticleFileError(
            f"{which} are constant, beyond 1e15 or below 1e-15, the first is {census.name(census.empty)}",
            "cryoeq needs images of particles",
            "Check the stack, for example with relion_display, and extract the particles again",
        )


def _read(
    images: LazyImages, rows: Int[Tensor, " rows"], preprocessing: Preprocessing, census: PixelCensus
) -> Float[Tensor, "rows m m"]:
    done, first = torch.empty(len(rows), preprocessing.working_box_px, preprocessing.working_box_px), 0
    for chunk in _chunks(rows, images.box_size_px):
        stored = census.repaired(images.read(chunk), chunk)
        _preprocess(stored, chunk, preprocessing, census, out=done[first : first + len(chunk)])
        first += len(chunk)
    return done


def _preprocess(
    images: Float[Tensor, "rows n n"],
    rows: Int[Tensor, " rows"],
    preprocessing: Preprocessing,
    census: PixelCensus,
    *,
    out: Float[Tensor, "rows m m"],
) -> None:
    """Write the preprocessed images, and take down which of them were loud."""
    _, census.loud[rows] = preprocessing.apply_and_judge(images, out)
