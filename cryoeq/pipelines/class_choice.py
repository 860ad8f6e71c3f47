"""Tables of particles of several classes, each of which has a frame of its own: which there are, and one of them."""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.io.image_places import record_beside
from cryoeq.io.labels import CLASS_NUMBER
from cryoeq.io.star import StarTable
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics

_TABLE, _SCREENED = "run_data.star", "screened.star"
_RESULTS_OF_RUN = {_TABLE, "run_data_mirrored.star", "run_data.cs", "run_data_mirrored.cs", _SCREENED}


def table_of(path: Path) -> Path:
    """A table of particles, or that of the folder of a run.

    Args:
        path: the file, or the folder.

    Raises:
        ParticleFileError: the folder holds none.
    """
    if not path.is_dir():
        return path
    if not (path / _TABLE).is_file():
        found = f"{path} holds no {_TABLE}"
        raise ParticleFileError(found, "Expected the folder of a run that is done", "Give a star file or a .cs")
    return path / _TABLE


def metrics_of_table(path: Path) -> ReconstructionMetrics:
    """Metrics of the run that wrote a table or that its particles were selected from; empty without a record.

    Columns do not tell: a run of one class keeps the class numbers of its input, which mean something else.

    Args:
        path: the table, by ``table_of``.
    """
    seen = set[Path]()
    while path not in seen:
        seen.add(path)
        try:
            if (own := record_beside(path)).is_file():
                path = Path(read_json(own)["inputs"][0]["path"])
            elif path.name in _RESULTS_OF_RUN:
                folder = path.parent if path.name != _SCREENED else path.parent.parent
                return ReconstructionMetrics.from_json(read_json(folder / "job.json")["results"])
            else:
                break
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or that of another program
            break
    return ReconstructionMetrics()


def rows_of_class(star: StarTable, number: int | None) -> Int[Tensor, " rows"]:
    """Rows of the particles of a class.

    Args:
        star: the particles.
        number: of the class, from 1; None for all particles.

    Raises:
        ParticleFileError: there is no column of classes.
    """
    if number is None:
        return torch.arange(len(star))
    return (torch.from_numpy(star.floats(CLASS_NUMBER)) == number).nonzero().squeeze(1)


def rows_of_one_frame(star: StarTable, path: Path, number: int | None) -> Int[Tensor, " rows"]:
    """Rows of the particles of a class, or of all where they have one frame.

    Args:
        star: the particles.
        path: their table, by ``table_of``.
        number: of the class, from 1; None where it was not chosen.

    Raises:
        ConfigError: they are of several structures and none was chosen, or the class is empty.
        ParticleFileError: there is no column of classes.
    """
    several = metrics_of_table(path).n_classes > 1
    present = sorted({int(value) for value in star.floats(CLASS_NUMBER).tolist()}) if several or number else []
    listed = ", ".join(map(str, present))
    if number is None and len(present) > 1:
        raise ConfigError(
            f"{path} holds particles of classes {listed}, each in a frame of its own",
            "The particles of one structure were expected",
            f"Choose one by --class N; where that is no option, cryoeq select {path} --class N -o class.star",
        )
    rows = rows_of_class(star, number)
    if not len(rows):
        raise ConfigError(f"--class {number}: {path} has no particle of it", f"The classes are {listed}", "Choose one")
    return rows
