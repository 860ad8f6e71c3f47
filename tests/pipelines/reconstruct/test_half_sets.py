"""Half sets of ``cryoeq reconstruct``: no image in both, none empty in silence, and the record says what was found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note, result_of
from cryoeq.errors import ParticleFileError
from cryoeq.io.star import StarTable, read_star, text_column, write_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.half_sets import (
    given_half_set_notes,
    independence_notes,
    position_notes,
    split_particles,
)
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from pipeline_events import events_and_result

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

COUNT = 48
Rows = Callable[..., Path]


@pytest.fixture
def with_rows(tiny_particles: Path, tmp_path: Path) -> Rows:
    """A star file with these rows of ``truth.star``, in these half sets, whose images are of these files."""

    def write(rows: np.ndarray, half_set: np.ndarray, stacks: list[str]) -> Path:
        truth = read_star(tiny_particles / "truth.star").rows(rows.tolist())
        numbers = np.strings.partition(truth.particles["rlnImageName"], np.array("@", dtype=np.dtypes.StringDType()))[0]
        names = [f"{number}@{stack}" for number, stack in zip(numbers.tolist(), stacks, strict=True)]
        changed = {"rlnImageName": text_column(names), "rlnRandomSubset": half_set.astype(np.str_)}
        path = tmp_path / "rows.star"
        write_star(path, StarTable(truth.optics, truth.particles | changed))
        return path

    return write


@pytest.fixture
def of_two_files(with_rows: Rows, tiny_particles: Path, tmp_path: Path) -> Path:
    """Every image twice, the copy in another file and in the other half set."""
    stack = tiny_particles / "particles.mrcs"
    with mrcfile.new(tmp_path / "copy.mrcs") as copy:
        copy.set_data(mrcfile.read(stack).copy())
        copy.voxel_size = 5.0
    rows = np.repeat(np.arange(COUNT), 2)
    return with_rows(rows, np.tile([1, 2], COUNT), [str(stack), str(tmp_path / "copy.mrcs")] * COUNT)


def reconstruct(star: Path, folder: Path) -> tuple[dict[str, object], list[str]]:
    """Results and warnings of a run with known poses."""
    assert run(["reconstruct", str(star), "-o", str(folder), "--pose-inference", "known", "--device", "cpu"]) == 0
    job = read_json(folder / "job.json")
    return job["results"], [note["text"] for note in job["notes"] if note["level"] == "warning"]


def halves(folder: Path) -> list[np.ndarray]:
    return [mrcfile.read(folder / f"run_half{half}_class001_unfil.mrc") for half in (1, 2)]


def test_half_sets_that_share_images_are_split_anew(of_two_files: Path, tmp_path: Path) -> None:
    results, (counted,) = reconstruct(of_two_files, tmp_path / "run")
    assert (results["repeated_images"], results["repeated_rows"], results["repeated_across_halves"]) == (48, 96, 48)
    assert str(results["dependent_halves"]).startswith("the half sets shared 48 images")
    assert "each 2 times" in counted
    assert "the first is in rows 1 and 2" in counted
    split = read_star(tmp_path / "run" / "run_data.star").particles["rlnRandomSubset"].tolist()
    assert split[::2] == split[1::2]
    assert sorted(split) == ["1"] * 48 + ["2"] * 48
    first, second = halves(tmp_path / "run")
    assert np.corrcoef(first.flatten(), second.flatten())[0, 1] < 0.99


def test_copies_in_one_half_set_are_counted_only(with_rows: Rows, tiny_particles: Path, tmp_path: Path) -> None:
    """As symmetry expansion leaves them."""
    rows = np.repeat(np.arange(COUNT), 2)
    stack = str(tiny_particles / "particles.mrcs")
    results, (counted,) = reconstruct(with_rows(rows, 1 + rows % 2, [stack] * len(rows)), tmp_path / "run")
    assert (results["repeated_images"], results["repeated_across_halves"]) == (48, 0)
    assert "dependent_halves" not in results
    assert counted.endswith("All copies of an image are in one half set (rlnRandomSubset).")
    split = read_star(tmp_path / "run" / "run_data.star").particles["rlnRandomSubset"].tolist()
    assert split == [str(1 + row % 2) for row in rows]


def test_a_half_set_of_inverted_images_is_told(with_rows: Rows, tiny_particles: Path, tmp_path: Path) -> None:
    stack = tiny_particles / "particles.mrcs"
    with mrcfile.new(tmp_path / "inverted.mrcs") as inverted:
        inverted.set_data(-mrcfile.read(stack))
        inverted.voxel_size = 5.0
    rows = np.arange(COUNT)
    half_set = 1 + rows % 2
    stacks = [str(stack) if half == 1 else str(tmp_path / "inverted.mrcs") for half in half_set]
    results, _ = reconstruct(with_rows(rows, half_set, stacks), tmp_path / "run")
    assert "anticorrelate" in str(results["dependent_halves"])
    assert "half_map_resolution_angstrom" not in results
    verdict = read_json(tmp_path / "run" / "job.json")["verdict"]
    assert any("not independent: the maps anticorrelate" in reason["text"] for reason in verdict["reasons"])


def test_nothing_is_said_of_sound_half_sets(tiny_particles: Path, tmp_path: Path) -> None:
    results, warnings = reconstruct(tiny_particles / "truth.star", tmp_path / "run")
    assert not warnings
    assert not {"repeated_images", "dependent_halves"} & results.keys()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((50, 50), None),
        ((90, 10), None),
        ((91, 9), "half set 2 holds 9 of 100 rows (9.0%)"),
        ((0, 100), "All 100 rows are in half set 2 (rlnRandomSubset): no half maps are made"),
        ((100, 0), "All 100 rows are in half set 1 (rlnRandomSubset): no half maps are made"),
        (None, "no rlnRandomSubset"),
    ],
)
def test_half_sets_of_the_file_are_weighed(sizes: tuple[int, int] | None, said: str | None) -> None:
    half_set = None if sizes is None else torch.tensor([1] * sizes[0] + [2] * sizes[1])
    texts = [note.text for note in given_half_set_notes(half_set)]
    assert len(texts) == (0 if said is None else 1)
    assert said is None or said in texts[0]


def test_a_search_splits_by_image(of_two_files: Path) -> None:
    config = ReconstructConfig(particles=of_two_files, output=of_two_files.parent / "run")
    dataset = build_dataset(config, build_stack(config, with_poses=False), None)
    (note,), half_set = events_and_result(split_particles(dataset, 0))
    assert isinstance(note, Note)
    assert "48 images appear in more than one row of the particle table, 96 of 96 rows in all" in note.text
    assert torch.equal(half_set[::2], half_set[1::2])
    assert half_set.bincount().tolist() == [0, 48, 48]


def test_a_single_image_is_refused(with_rows: Rows, tiny_particles: Path) -> None:
    stack = str(tiny_particles / "particles.mrcs")
    star = with_rows(np.zeros(5, dtype=np.int64), np.ones(5, dtype=np.int64), [stack] * 5)
    config = ReconstructConfig(particles=star, output=star.parent / "run")
    dataset = build_dataset(config, build_stack(config, with_poses=False), None)
    with pytest.raises(ParticleFileError, match="all 5 rows of the particle table show the same image"):
        result_of(split_particles(dataset, 0))


def test_particles_that_were_picked_twice_are_told(tiny_particles: Path) -> None:
    config = ReconstructConfig(particles=tiny_particles / "truth.star", output=tiny_particles / "run")
    stack = build_stack(config, with_poses=False)
    assert not list(position_notes(stack))
    x = [str(row // 2 if row < 6 else row) for row in range(COUNT)]
    columns = {"rlnCoordinateX": text_column(x), "rlnCoordinateY": text_column(["7"] * COUNT)}
    (note,) = position_notes(replace(stack, star=replace(stack.star, particles=stack.star.particles | columns)))
    assert note.text.startswith("3 positions on a micrograph have more than one image, the first in rows 1 and 2")


def test_the_worth_of_the_correlation_is_told() -> None:
    at_nyquist = ReconstructionMetrics(half_map_resolution_angstrom=10.0)
    for metrics, angpix, level in (
        (at_nyquist, 5.0, "info"),
        (at_nyquist, 4.0, None),
        (replace(at_nyquist, dependent_halves="both are one"), 5.0, None),
        (ReconstructionMetrics(), 5.0, None),
    ):
        assert [note.level for note in independence_notes(metrics, angpix)] == ([] if level is None else [level])
