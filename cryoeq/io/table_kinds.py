"""Star files that are given for particles and hold something else, known by the tables in them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryoeq.io.labels import IMAGE_NAME


@dataclass(frozen=True)
class TableKind:
    """What a star file holds that holds no particles.

    Args:
        name: the kind of file, with its article.
        advice: what to give in its stead.
    """

    name: str
    advice: str


_EXTRACT = "Extract the particles and give the star file of that job"
_DATA = "Give the star file of the particles, run_data.star or run_itNNN_data.star beside it"
_PARTICLES = "Give the star file of the particles"
# By the blocks and labels that only they have, those that say most about a file first.
_BY_TABLES: tuple[tuple[frozenset[str], TableKind], ...] = (
    (
        frozenset({"optimiser_general", "rlnExperimentalDataStarFile"}),
        TableKind("RELION's optimiser star", _DATA),
    ),
    (frozenset({"sampling_general", "sampling_directions"}), TableKind("RELION's sampling star", _DATA)),
    (frozenset({"model_general", "model_classes"}), TableKind("RELION's model star", _DATA)),
    (frozenset({"rlnReferenceImage"}), TableKind("a table of class averages or references", _DATA)),
    (
        frozenset({"rlnFinalResolution", "rlnFourierShellCorrelation", "guinier"}),
        TableKind("a table of a Fourier shell correlation (post-processing)", _PARTICLES),
    ),
    (frozenset({"rlnJobTypeLabel", "rlnJobType", "joboptions_values"}), TableKind("RELION's job star", _PARTICLES)),
    (
        frozenset({"pipeline_general", "pipeline_processes", "output_nodes", "rlnPipeLineNodeName"}),
        TableKind("RELION's star of a pipeline", _PARTICLES),
    ),
    (frozenset({"rlnResolutionInversePixel", "rlnMtfValue"}), TableKind("an MTF curve", _PARTICLES)),
    (
        frozenset({"rlnTomoParticlesFile", "rlnTomoTomogramsFile"}),
        TableKind("RELION's star of an optimisation set (tomography)", "cryoeq reads 2D images of single particles"),
    ),
    (
        frozenset({"rlnTomoTiltSeriesStarFile", "rlnTomoTiltSeriesName", "rlnTomoTiltMovieFrameCount"}),
        TableKind("a table of tilt series (tomography)", "cryoeq reads 2D images of single particles"),
    ),
    (
        frozenset({"coordinate_files", "rlnMicrographCoordinates"}),
        TableKind("a table of files of picked coordinates", _EXTRACT),
    ),
    (frozenset({"rlnCoordinateX", "rlnCoordinateY"}), TableKind("a table of picked coordinates", _EXTRACT)),
    (
        frozenset({"movies", "micrographs", "rlnMicrographMovieName", "rlnMicrographName"}),
        TableKind("a table of micrographs", "Give the star file of the particles extracted from them"),
    ),
)
_CISTEM = TableKind(
    "a star file of cisTEM", "Export the refinement package from cisTEM for RELION and give its star file"
)


def other_kind(blocks: Mapping[str, Iterable[str]]) -> TableKind | None:
    """The kind of a star file that holds no particles; None for particles, and for what is not known.

    Args:
        blocks: labels of the file's tables but for the optics groups, by the names of these.
    """
    names = {*blocks, *(label for labels in blocks.values() for label in labels)}
    if {IMAGE_NAME, "rlnAngleRot"} & names:
        return None
    if any(name.startswith("cisTEM") for name in names):
        return _CISTEM
    return next((kind for marks, kind in _BY_TABLES if marks & names), None)
