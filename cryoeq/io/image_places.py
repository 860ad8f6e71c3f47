"""Where the stacks of a star file are looked for.

RELION names images relative to its project folder, which a star file does not tell. What a run of cryoeq writes has the
names of its input, so that it can be used in that project; the record of the run tells where the input lay. A selection
of particles has a record of its own beside it, ``NAME.star.json``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cryoeq.io.text import read_json

_RECORD = "job.json"
# Results of runs in their own folder; anything else there may have images of its own.
_RESULTS = {"run_data.star", "run_data_mirrored.star", "diverged.star", "screened.star"}


@dataclass(frozen=True)
class ImagePlace:
    """Folders around a star file in which its stacks may lie.

    Args:
        star_folder: folder of the star file.
        working_directory: folder in which the program was started.
        datadir: folder that is searched first (``--datadir``); None for none.
    """

    star_folder: Path
    working_directory: Path
    datadir: Path | None = None


def places_of_images(star_path: Path, datadir: Path | None) -> list[ImagePlace]:
    """The place of a star file, and those of the input of the run whose folder it lies in, or that made it.

    For a result of a run, and for a file with a record of its own, these come first; for any other file, its own.

    Args:
        star_path: the star file, absolute.
        datadir: folder that is searched before all others; None for none.
    """
    places = _places(star_path, ImagePlace(star_path.parent, Path.cwd()), frozenset({star_path}))
    return [replace(places[0], datadir=datadir), *places] if datadir else places


def candidates(name: str, places: Iterable[ImagePlace]) -> Iterator[Path]:
    """Candidates for a stack, place by place.

    In each: the data folder, the path itself, the star's folder and its parents, the working directory. In the data
    folder and the star's own folder the path may be cut from the left, down to the bare file name.

    Args:
        name: path of the stack, as the star file has it.
        places: where to look.
    """
    path = Path(name)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    shortened = [Path(*parts[start:]) for start in range(len(parts))]
    for place in places:
        if place.datadir is not None:
            yield from (place.datadir / short for short in shortened)
        if path.is_absolute():
            yield path
        else:
            folders = (place.star_folder, *place.star_folder.parents, place.working_directory)
            yield from (folder / path for folder in folders)
        yield from (place.star_folder / short for short in shortened[1:])


def record_beside(path: Path) -> Path:
    """The record of one file of results: ``NAME.star.json`` of ``NAME.star``."""
    return path.with_name(f"{path.name}.json")


def _places(star_path: Path, here: ImagePlace, seen: frozenset[Path]) -> list[ImagePlace]:
    """Its own place and those of the input of the run that a file lies in; where that is a result, of its input too."""
    own, folders = record_beside(star_path), (star_path.parent, star_path.parent.parent)
    found = next(filter(None, map(_read_record, (own, *(folder / _RECORD for folder in folders)))), None)
    if found is None or found[0] in seen:
        return [here]
    others = _places(*found, seen | {found[0]})
    return [*others, here] if star_path.name in _RESULTS or own.is_file() else [here, *others]


def _read_record(record: Path) -> tuple[Path, ImagePlace] | None:
    """Particle file and place of the run of a record; None without a record of one that had particles."""
    try:
        job = read_json(record)
        settings = job["settings"]
        if "particles" not in settings:
            return None
        particles = Path(job["inputs"][0]["path"])
        directory, datadir = job.get("working_directory"), settings.get("input", {}).get("datadir")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or that of another program
        return None
    working_directory = Path(directory) if directory else particles.parent
    return particles, ImagePlace(particles.parent, working_directory, working_directory / datadir if datadir else None)
