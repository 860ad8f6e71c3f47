"""Images of a particle table: the stacks are located at once, pixels read on demand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.io.mrc import MrcStack
from cryoeq.io.star import StarTable, Text

SMALLEST_BOX_PX = 16


@dataclass(frozen=True)
class LazyImages:
    """Particle images that stay on the disk until they are read.

    Args:
        stacks: the distinct image files.
        stack_index: index of each particle's file among the stacks.
        slice_index: index of each particle's image in its file, from 0.
    """

    stacks: tuple[MrcStack, ...]
    stack_index: Int[Tensor, " particles"]
    slice_index: Int[Tensor, " particles"]

    def __len__(self) -> int:
        return len(self.slice_index)

    @property
    def box_size_px(self) -> int:
        """Side of the images."""
        return self.stacks[0].box_size_px

    def read(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows n n"]:
        """Images (y, x) of these rows, float32, grey values as stored.

        Raises:
            ParticleFileError: pixels are NaN or infinite; the message counts them and names the first image.
        """
        stack_index, slice_index = self.stack_index[rows], self.slice_index[rows].numpy()
        images = torch.empty(len(rows), self.box_size_px, self.box_size_px)
        for stack in torch.unique(stack_index).tolist():
            here = (stack_index == stack).nonzero().squeeze(1)
            images[here] = torch.from_numpy(self.stacks[stack].read(slice_index[here.numpy()]))
        is_suspect = not bool(images.sum((1, 2)).isfinite().all())  # the count takes fifty times as long
        if is_suspect and (bad_pixels := (~torch.isfinite(images)).flatten(1).sum(1)).any():
            first = int(bad_pixels.nonzero()[0])
            path, number = self.stacks[int(stack_index[first])].path, int(slice_index[first]) + 1
            count, in_images = int(bad_pixels.sum()), int((bad_pixels > 0).sum())
            found = f"{path}: {count} pixels are NaN or infinite, in {in_images} of the {len(rows)} images read; "
            found += f"the first is image {number} (row {int(rows[first]) + 1})"
            raise ParticleFileError(
                found, "cryoeq needs finite pixels", "Extract these particles again or remove their rows"
            )
        return images


def locate_images(star: StarTable, datadir: Path | None) -> tuple[LazyImages, tuple[str, ...]]:
    """The images that rlnImageName points to, and notes on oddities of their files. Reads headers, no pixels.

    Args:
        star: its column rlnImageName holds ``000001@path/to/stack.mrcs``, counted from 1, or a file of one image.
        datadir: folder that is searched first for the stacks; None for none.

    Raises:
        ParticleFileError: a stack is missing (the message lists where it was sought) or damaged, a number is not in its
            stack, or the boxes differ, are odd or tiny.
    """
    names = star.require("rlnImageName")
    number, at, path = np.strings.partition(names, np.array("@", dtype=names.dtype))
    distinct, stack_index = np.unique(np.where(at == "@", path, names), return_inverse=True)
    slice_index = _image_numbers(star, np.where(at == "@", number, "1")) - 1
    paths = _find_stacks(distinct.tolist(), (star.path or Path("star")).absolute().parent, datadir)
    stacks = tuple(MrcStack.open(path) for path in paths)
    counts = np.array([len(stack) for stack in stacks])[stack_index]
    if (outside := np.flatnonzero((slice_index < 0) | (slice_index >= counts))).size:
        row = int(outside[0])
        found = f"{star.path}, row {row + 1}: image {slice_index[row] + 1} is beyond {paths[stack_index[row]]}, "
        found += f"which holds {counts[row]}"
        raise ParticleFileError(found, "Images are counted from 1", "Check that star file and stack belong together")
    check_boxes(stacks)
    images = LazyImages(stacks, torch.from_numpy(stack_index), torch.from_numpy(slice_index))
    return images, (*_header_notes(stacks), *_moved(distinct.tolist(), paths))


def _image_numbers(star: StarTable, text: Text) -> Int[np.ndarray, " particles"]:
    try:
        return text.astype(np.int64)
    except ValueError:
        row = next(i for i, value in enumerate(text.tolist()) if not value.strip().isdecimal())
        found = f"{star.path}, row {row + 1}: rlnImageName is {star.particles['rlnImageName'][row]}"
        raise ParticleFileError(found, "000001@path/to/stack.mrcs was expected", "Export the star file again") from None


def open_bare_stack(path: Path) -> tuple[LazyImages, tuple[str, ...]]:
    """All images of one stack, given without a star file, and notes on its header. Reads no pixels."""
    stack = MrcStack.open(path)
    check_boxes((stack,))
    images = LazyImages((stack,), torch.zeros(len(stack), dtype=torch.long), torch.arange(len(stack)))
    return images, (*stack.notes, *stack.header.pixel_size_notes)


def check_boxes(stacks: tuple[MrcStack, ...]) -> None:
    """Refuse boxes that differ, are odd, or are too small to hold a structure."""
    first = stacks[0]
    box = first.box_size_px
    other = next((stack for stack in stacks if stack.box_size_px != box), None)
    if other is not None:
        found = f"box sizes differ: {first.path} holds images of {box} px, {other.path} of {other.box_size_px} px"
        raise ParticleFileError(
            found, "All images need the same box", "Extract or rescale the particles to one box size"
        )
    if box % 2:
        advice = f"Crop the images to {box - 1} px, for example with relion_image_handler --new_box {box - 1}"
        raise ParticleFileError(f"{first.path} holds images of {box} px", "cryoeq needs an even box", advice)
    if box < SMALLEST_BOX_PX:
        found = f"{first.path} holds images of {box} px"
        raise ParticleFileError(
            found, f"cryoeq needs at least {SMALLEST_BOX_PX} px", "Extract the particles in a larger box"
        )


def _find_stacks(names: list[str], star_folder: Path, datadir: Path | None) -> list[Path]:
    """The file of each name, RELION's project folder being unknown: in the order of ``_candidates``."""
    located = [
        next((path for path in _candidates(name, star_folder, datadir) if path.is_file()), None) for name in names
    ]
    if missing := [name for name, path in zip(names, located, strict=True) if path is None]:
        folders = [
            *([f"--datadir {datadir}"] if datadir else []),
            f"{star_folder} and its parents",
            f"the current folder {Path.cwd()}",
        ]
        what = f"{len(missing)} of {len(names)} stacks were not found, the first is {missing[0]!r}; "
        what += f"looked in {', '.join(folders)}"
        raise ParticleFileError(
            what, "cryoeq needs the images of all particles", "Give the folder of the images with --datadir"
        )
    paths = [path for path in located if path is not None]
    owner: dict[Path, str] = {}
    for name, path in zip(names, paths, strict=True):
        if Path(owner.setdefault(path, name)) != Path(name):
            what = f"{owner[path]!r} and {name!r} both lead to {path}"
            advice = "Give the folder in which both paths exist with --datadir"
            raise ParticleFileError(what, "Two stacks of the same name need two files", advice)
    return paths


def _candidates(name: str, star_folder: Path, datadir: Path | None) -> Iterator[Path]:
    """Candidates for a stack: the data folder, the path itself, the star's folder and its parents, the current folder.

    In the data folder and the star's own folder the path may be cut from the left, down to the bare file name.
    """
    path = Path(name)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    shortened = [Path(*parts[start:]) for start in range(len(parts))]
    if datadir is not None:
        yield from (datadir / short for short in shortened)
    if path.is_absolute():
        yield path
    else:
        yield from (folder / path for folder in (star_folder, *star_folder.parents, Path.cwd()))
    yield from (star_folder / short for short in shortened[1:])


def _header_notes(stacks: tuple[MrcStack, ...]) -> tuple[str, ...]:
    """The first odd header, with the number of others like it."""
    odd = [note for stack in stacks for note in stack.notes]
    return (odd[0] + (f" {len(odd) - 1} more stacks are like it." if len(odd) > 1 else ""),) if odd else ()


def _moved(names: list[str], paths: list[Path]) -> tuple[str, ...]:
    """A note where a path had to be cut to find the file."""
    cut = [
        (name, path)
        for name, path in zip(names, paths, strict=True)
        if not path.as_posix().endswith(name.removeprefix("./"))
    ]
    return (
        (f"{len(cut)} of {len(paths)} stacks were found in another folder: {cut[0][0]} is {cut[0][1]}.",) if cut else ()
    )
