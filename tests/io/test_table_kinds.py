"""Files that are given for particles and are none are named for what they are."""

import warnings
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoeq.errors import ParticleFileError
from cryoeq.io.mtf import read_mtf
from cryoeq.io.particles import read_particles

Make = Callable[..., Path]


def _loop(block: str, *labels: str) -> str:
    return (
        f"data_{block}\n\nloop_\n" + "".join(f"_{label}\n" for label in labels) + " ".join("1" for _ in labels) + "\n\n"
    )


TABLES = [
    ("data_optimiser_general\n\n_rlnOutputRootName run\n_rlnModelStarFile m.star\n", "optimiser star.*_data.star"),
    ("data_\n\n_rlnExperimentalDataStarFile d.star\n", "optimiser star.*_data.star"),
    ("data_sampling_general\n\n_rlnIs3DSampling 1\n", "sampling star"),
    ("data_model_general\n\n_rlnReferenceDimensionality 3\n\n" + _loop("model_pdf", "rlnAngleTiltX"), "model star"),
    (_loop("", "rlnReferenceImage", "rlnClassDistribution"), "class averages"),
    ("data_general\n\n_rlnFinalResolution 4.2\n\n" + _loop("guinier", "rlnResolutionSquared"), "post-processing"),
    ("data_job\n\n_rlnJobTypeLabel relion.import\n\n" + _loop("joboptions_values", "rlnJobOptionValue"), "job star"),
    ("data_pipeline_general\n\n_rlnPipeLineJobCounter 3\n", "star of a pipeline"),
    (_loop("", "rlnResolutionInversePixel", "rlnMtfValue"), "an MTF curve"),
    (_loop("coordinate_files", "rlnMicrographName", "rlnMicrographCoordinates"), "files of picked.*Extract"),
    (_loop("", "rlnCoordinateX", "rlnCoordinateY", "rlnAnglePsi"), "picked coordinates.*Extract"),
    (_loop("optics", "rlnOpticsGroup") + _loop("micrographs", "rlnMicrographName"), "of micrographs.*extracted"),
    (_loop("optics", "rlnOpticsGroup") + _loop("movies", "rlnMicrographMovieName"), "of micrographs.*extracted"),
    (_loop("global", "rlnTomoName", "rlnTomoTiltSeriesStarFile"), "tilt series"),
    ("data_\n\n_rlnTomoParticlesFile p.star\n", "optimisation set"),
    (_loop("", "cisTEMPositionInStack", "cisTEMAnglePsi"), "star file of cisTEM.*for RELION"),
]


@pytest.mark.parametrize(("text", "said"), TABLES)
def test_tables_of_other_things(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.star").write_text(text)
    with pytest.raises(ParticleFileError, match=rf"x\.star is .*{said}"):
        read_particles(tmp_path / "x.star")


def test_a_table_that_is_not_known_keeps_the_plain_message(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_text(_loop("particles", "rlnSomething"))
    with pytest.raises(ParticleFileError, match=r"x\.star: column rlnImageName is missing"):
        read_particles(tmp_path / "x.star")


PAGE = b"\r\n<!DOCTYPE html>\n<html><body>Not found</body></html>"
FILES = [
    (PAGE, "an HTML page.*Download"),
    (b"\xef\xbb\xbf<html>", "an HTML page"),
    (b"PK\x03\x04rest", "a ZIP archive.*unzip"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x00\x01\x02rest", "a binary file"),
]


@pytest.mark.parametrize(("content", "said"), FILES)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, said: str) -> None:
    for name, read in (("x.star", read_particles), ("mtf.star", read_mtf)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParticleFileError, match=rf"{name} is {said}"):
            read(tmp_path / name)
    (tmp_path / "x.cs").write_bytes(content)
    with pytest.raises(ParticleFileError, match=r"x\.cs is .*cryoSPARC"):
        read_particles(tmp_path / "x.cs")


def test_a_stack_under_the_name_of_a_table(make_stack: Make) -> None:
    path = make_stack()
    with pytest.raises(ParticleFileError, match=r"is an MRC file.*ends in \.mrcs"):
        read_particles(path.rename(path.with_suffix(".star")))


def test_the_group_file_of_cryosparc(tmp_path: Path) -> None:
    (tmp_path / "particles.csg").write_text("group:\n  type: particle\n")
    with pytest.raises(ParticleFileError, match=r"list of the files of a group.*\.cs"):
        read_particles(tmp_path / "particles.csg")


# Maps


def _map(path: Path, shape: tuple[int, int, int], *, kind: str) -> Path:
    """A file of noise by mrcfile: a volume (ISPG 1), an image stack (ISPG 0, MZ 1), or a map of RELION (ISPG 0)."""
    with warnings.catch_warnings(), mrcfile.new(path) as mrc:
        warnings.simplefilter("ignore", RuntimeWarning)
        mrc.set_data(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        if kind != "volume":
            mrc.set_image_stack()
        mrc.voxel_size = 2.0
        if kind == "relion":
            mrc.header.mz, mrc.header.cella.z = shape[0], 2.0 * shape[0]
    return path


@pytest.mark.parametrize(
    ("name", "depth", "kind", "outcome"),
    [
        ("m.mrc", 16, "volume", "refused"),
        ("m.mrcs", 16, "volume", "refused"),
        ("m.mrc", 16, "relion", "refused"),
        ("m.mrcs", 16, "relion", "doubted"),
        ("m.mrcs", 20, "volume", "doubted"),
        ("m.mrc", 20, "volume", "doubted"),
        ("m.mrc", 20, "relion", "read"),
        ("m.mrcs", 20, "relion", "read"),
        ("m.mrcs", 16, "stack", "read"),
        ("m.mrc", 16, "stack", "read"),
    ],
)
def test_a_map_is_no_stack_of_particles(tmp_path: Path, name: str, depth: int, kind: str, outcome: str) -> None:
    path = _map(tmp_path / name, (depth, 16, 16), kind=kind)
    if outcome == "refused":
        with pytest.raises(ParticleFileError, match=r"is a map of 16 x 16 x 16 voxels.*star file"):
            read_particles(path)
    else:
        notes = read_particles(path).notes
        assert any("may be a map" in note for note in notes) == (outcome == "doubted")


def test_a_star_file_may_name_sections_of_any_file(tmp_path: Path, make_star: Make) -> None:
    _map(tmp_path / "stack.mrcs", (16, 16, 16), kind="volume")
    assert read_particles(make_star()).notes == ()


# Names without a number


def test_a_file_of_one_image_needs_no_number(make_stack: Make, make_star: Make) -> None:
    for number in range(4):
        make_stack(f"p{number}.mrcs", np.random.default_rng(number).normal(size=(1, 16, 16)).astype(np.float32))
    stack = read_particles(make_star(rlnImageName=[f"p{number}.mrcs" for number in range(4)]))
    assert len(stack.table.stack_paths) == 4


@pytest.mark.parametrize(("depth", "said"), [(16, r"a volume of 16 x 16 x 16 voxels"), (7, "which holds 7 images")])
def test_several_images_need_numbers(make_stack: Make, make_star: Make, depth: int, said: str) -> None:
    make_stack("a.mrcs", np.zeros((depth, 16, 16), np.float32))
    names = ["1@a.mrcs", "2@a.mrcs", "a.mrcs", "3@a.mrcs"]
    with pytest.raises(ParticleFileError, match=rf"row 3: rlnImageName is a\.mrcs, {said}"):
        read_particles(make_star(rlnImageName=names))


def test_tilt_stacks_and_volumes_of_tomography(make_stack: Make, make_star: Make) -> None:
    make_stack("a.mrcs", np.zeros((7, 16, 16), np.float32))
    path = make_star(rlnImageName=["a.mrcs"] * 4)
    path.write_text("data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n" + path.read_text())
    with pytest.raises(ParticleFileError, match=r"row 1: .*a stack of 7 tilt images.*tomography"):
        read_particles(path)
    make_stack()
    with pytest.raises(ParticleFileError, match=r"rlnImageDimensionality is 3.*subtomograms"):
        read_particles(make_star(optics={"rlnImageDimensionality": "3"}))
