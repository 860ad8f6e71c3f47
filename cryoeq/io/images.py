"""Images of a particle table: the stacks are located at once, pixels read on demand."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.io.image_places import ImagePlace, candidates, places_of_images
from cryoeq.io.labels import IMAGE_NAME
from cryoeq.io.mrc import MrcStack
from cryoeq.io.star import StarTable
from cryoeq.io.star_text import Text

STACK_SUFFIXES = (".mrcs", ".mrc", ".st")
SMALLEST_BOX_PX = 16
_NUMBER = re.compile(r"\s*[+-]?\d{1,18}\s*", re.ASCII)
_TILT_STACKS = "rlnTomoSubTomosAre2DStacks"
_SINGLE_PARTICLES = "cryoeq reconstructs from 2D images of single particles"
_TOMOGRAPHY = "Use RELION's tomography tools for them"


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
        numbers = torch.unique(stack_index).tolist()
        if len(numbers) == 1:  # as they come, not copied
            images = torch.from_numpy(self.stacks[numbers[0]].read(slice_index))
        else:
            images = torch.empty(len(rows), self.box_size_px, self.box_size_px)
            for stack in numbers:
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


def image_keys(star: StarTable) -> list[str]:
    """The images' names in one spelling: numbers without leading zeros, paths without needless parts.

    Args:
        star: its column rlnImageName may be of a file that is not there.

    Raises:
        ParticleFileError: there is no such column.
    """
    parts = [name.rpartition("@") for name in star.require(IMAGE_NAME).tolist()]
    paths = {path: os.path.normpath(path) for _, _, path in parts}
    return [f"{number.lstrip('0')}{at}{paths[path]}" for number, at, path in parts]


def locate_images(star: StarTable, datadir: Path | None) -> tuple[LazyImages, tuple[str, ...]]:
    """The images that rlnImageName points to, and notes on oddities of their files. Reads headers, no pixels.

    Args:
        star: its column rlnImageName holds ``000001@path/to/stack.mrcs``, counted from 1, or a file of one image.
        datadir: folder that is searched first for the stacks; None for none.

    Raises:
        ParticleFileError: a stack is missing (the message lists where it was sought) or damaged, a number is not in its
            stack, a name without number leads to a volume or several images, or the boxes differ, are odd or tiny.
    """
    names = star.require(IMAGE_NAME)
    number, at, path = np.strings.partition(names, np.array("@", dtype=names.dtype))
    is_numbered = at == "@"
    distinct, stack_index = np.unique(np.where(is_numbered, path, names), return_inverse=True)
    slice_index = _image_numbers(star, np.where(is_numbered, number, "1")) - 1
    located = _find_stacks(distinct.tolist(), (star.path or Path("star")).absolute(), datadir)
    paths, file_index = _distinct_files(located)
    stack_index = file_index[stack_index]
    stacks = tuple(MrcStack.open(path) for path in paths)
    counts = np.array([len(stack) for stack in stacks])[stack_index]
    if (unnumbered := np.flatnonzero(~is_numbered & (counts != 1))).size:
        row = int(unnumbered[0])
        raise _no_image(star, row, stacks[stack_index[row]])
    if (outside := np.flatnonzero((slice_index < 0) | (slice_index >= counts))).size:
        row = int(outside[0])
        found = f"{star.where}, row {row + 1}: image {slice_index[row] + 1} is beyond {paths[stack_index[row]]}, "
        found += f"which holds {counts[row]}"
        advice = f"Check that {star.path.name if star.path else 'star'} and stack belong together"
        raise ParticleFileError(found, "Images are counted from 1", advice)
    check_boxes(stacks)
    images = LazyImages(stacks, torch.from_numpy(stack_index), torch.from_numpy(slice_index))
    return images, (*_header_notes(stacks), *_moved(distinct.tolist(), located))


def _image_numbers(star: StarTable, text: Text) -> Int[np.ndarray, " particles"]:
    try:
        return text.astype(np.int64)
    except (ValueError, OverflowError):
        row = next((i for i, value in enumerate(text.tolist()) if not _NUMBER.fullmatch(value)), 0)
        found = f"{star.where}, row {row + 1}: rlnImageName is {star.particles[IMAGE_NAME][row]}"
        raise ParticleFileError(found, "000001@path/to/stack.mrcs was expected", star.wording.repair) from None


def _no_image(star: StarTable, row: int, stack: MrcStack) -> ParticleFileError:
    """The error of a name without number that leads to a file of several images."""
    box = stack.box_size_px
    found = f"{star.where}, row {row + 1}: rlnImageName is {star.particles[IMAGE_NAME][row]}, "
    flag = star.others.get("general", {}).get(_TILT_STACKS)
    if flag is not None and flag[0] != "0":
        found += f"a stack of {len(stack)} tilt images ({_TILT_STACKS})"
        return ParticleFileError(found, _SINGLE_PARTICLES, _TOMOGRAPHY)
    if len(stack) == box:
        found += f"a volume of {box} x {box} x {box} voxels (a subtomogram)"
        return ParticleFileError(found, _SINGLE_PARTICLES, _TOMOGRAPHY)
    found += f"which holds {len(stack)} images"
    return ParticleFileError(found, "One of them is named as 000001@path/to/stack.mrcs", star.wording.repair)


def require_images(star: StarTable) -> None:
    """Refuse particles of which their optics groups say that they are volumes.

    Args:
        star: star file in the 3.1 layout, with the optics groups in use only.

    Raises:
        ParticleFileError: rlnImageDimensionality is 3.
    """
    if (star.optics_floats("rlnImageDimensionality", default=2.0) == 3).any():
        found = f"{star.where}: rlnImageDimensionality is 3, these are volumes (subtomograms)"
        raise ParticleFileError(found, _SINGLE_PARTICLES, _TOMOGRAPHY)


def open_bare_stack(path: Path) -> tuple[LazyImages, tuple[str, ...]]:
    """All images of one stack, given without a star file, and notes on its header. Reads no pixels.

    Raises:
        ParticleFileError: not a stack, or one of volumes, or a map.
    """
    stack = MrcStack.open(path)
    notes = (*stack.notes, *stack.header.pixel_size_notes, *_volume_notes(stack))
    check_boxes((stack,))
    images = LazyImages((stack,), torch.zeros(len(stack), dtype=torch.long), torch.arange(len(stack)))
    return images, notes


def _volume_notes(stack: MrcStack) -> tuple[str, ...]:
    """A note where the sections of a file may be those of a map; an error where they are."""
    header, path = stack.header, stack.path
    sides = " x ".join(map(str, reversed(header.shape)))
    is_cube = len(set(header.shape)) == 1 and header.sections_per_volume == len(stack)
    # RELION takes a .mrc of several sections for a map and a .mrcs for a stack; its maps have ISPG 0 or 1.
    if header.space_group > 1 or (is_cube and (header.space_group == 1 or path.suffix.lower() == ".mrc")):
        found = f"{path} is a map of {sides} voxels (ISPG {header.space_group})"
        advice = "Give a star file of particles; or, if these are images, set ISPG to 0 and name the file .mrcs"
        raise ParticleFileError(found, "cryoeq needs a stack of 2D images", advice)
    if header.space_group == 1 or is_cube:
        what = f"{sides} and MZ {header.sections_per_volume}, ISPG {header.space_group}"
        return (f"{path.name} may be a map ({what}): its {len(stack)} sections are taken for images.",)
    return ()


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


def _find_stacks(names: list[str], star_path: Path, datadir: Path | None) -> list[Path]:
    """The file of each name, RELION's project folder being unknown: in the order of ``candidates``."""
    places = places_of_images(star_path, datadir)
    located = [next(filter(_is_file, candidates(name, places)), None) for name in names]
    if missing := [name for name, path in zip(names, located, strict=True) if path is None]:
        raise _missing_stacks(star_path, missing, len(names), places, datadir)
    paths = [path for path in located if path is not None]
    names_of: dict[Path, list[str]] = {}
    for name, path in zip(names, paths, strict=True):
        names_of.setdefault(path, []).append(name)
    for path, several in names_of.items():
        if len(several) > 1 and not _may_be_one(several, path):
            what = f"{several[0]!r} and {several[1]!r} both lead to {path}"
            advice = "Give the folder in which both paths exist with --datadir"
            raise ParticleFileError(what, "Two stacks of the same name need two files", advice)
    return paths


def _is_file(path: Path) -> bool:
    """Whether there is such a file, as far as the user may know."""
    try:
        return path.is_file()
    except OSError:  # a folder that the user may not enter, or a name that is too long
        return False


def _missing_stacks(
    star_path: Path, missing: list[str], count: int, places: Sequence[ImagePlace], datadir: Path | None
) -> ParticleFileError:
    """The error of stacks that were not found, with what may have become of the first."""
    name, sought = missing[0], list(candidates(missing[0], places))
    star_folders = dict.fromkeys(place.star_folder for place in places)
    folders = [f"--datadir {datadir}"] if datadir else []
    folders += [f"{folder} and its parents" for folder in star_folders]
    found = f"{star_path}: {len(missing)} of {count} stacks were not found, the first is {name!r}; "
    found += f"looked in {', '.join([*folders, f'the current folder {Path.cwd()}'])}"
    advice = "Give the folder of the images with --datadir"
    others = (path.with_suffix(suffix) for path in sought if path.suffix for suffix in STACK_SUFFIXES)
    if denied := next(filter(None, map(_denied_folder, sought)), None):
        found += f"; permission denied for the folder {denied}"
        advice = "Ask the folder's owner for access, or give another folder of the images with --datadir"
    elif other := next(filter(_is_file, others), None):
        advice = f"{other} is there: give it the name that the table has, for example by a link"
    elif name.replace(".", "", 1).isdecimal():
        advice = "This is a number, not a file: check that the columns stand in the order of their labels"
    return ParticleFileError(found, "cryoeq needs the images of all particles", advice)


def _denied_folder(path: Path) -> Path | None:
    """The folder on the way to a file that the user may not enter; None where there is none."""
    return next(
        (folder for folder in reversed(path.parents) if folder.is_dir() and not os.access(folder, os.X_OK)), None
    )


def _may_be_one(names: list[str], path: Path) -> bool:
    """Whether names that lead to one file may mean one stack: none was cut, or one, but not to the bare name."""
    ends = {Path(os.path.normpath(name)).parts for name in names}
    cut = [end for end in ends if path.parts[-len(end) :] != end]
    return not cut or (len(cut) == 1 and (len(ends) == 1 or cut[0][-2:] == path.parts[-2:]))


def _distinct_files(paths: list[Path]) -> tuple[list[Path], Int[np.ndarray, " paths"]]:
    """The files without repetition, by whatever path, and the number of each path's file."""
    number: dict[str, int] = {}
    index = np.array([number.setdefault(os.path.realpath(path), len(number)) for path in paths])
    return [paths[i] for i in np.unique(index, return_index=True)[1]], index


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
