"""The images of a run's results are found where they lie, whatever the current folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoeq.errors import ParticleFileError
from cryoeq.io.particles import read_particles
from cryoeq.io.text import write_json

Make = Callable[..., Path]


def record(run: Path, particles: Path, working_directory: Path | None, datadir: str | None = None) -> None:
    """The part of ``job.json`` that tells where the particles lay."""
    write_json(
        run / "job.json",
        {
            "settings": {"particles": particles.name, "input": {"datadir": datadir}},
            "inputs": [{"path": str(particles)}],
            **({"working_directory": str(working_directory)} if working_directory else {}),
        },
    )


@pytest.mark.parametrize(
    ("named", "place", "datadir"),
    [
        ("Extract/s.mrcs", "project/data/Extract/s.mrcs", None),  # beside the input
        ("Extract/s.mrcs", "project/Extract/s.mrcs", None),  # in the project folder, where the run was started
        ("data/s.mrcs", "project/data/s.mrcs", None),
        ("Extract/s.mrcs", "project/images/s.mrcs", "images"),  # a data folder relative to the project folder
    ],
)
@pytest.mark.parametrize("result", ["run_data.star", "run_data_mirrored.star", "screening/screened.star"])
def test_names_are_those_of_the_input(
    tmp_path: Path,
    make_stack: Make,
    make_star: Make,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    place: str,
    datadir: str | None,
    result: str,
) -> None:
    """A folder of results that was moved away, read from yet another folder."""
    stack = make_stack(place)
    for folder in ("project/data", "moved/screening", "cwd"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    record(tmp_path / "moved", tmp_path / "project/data/p.star", tmp_path / "project", datadir)
    monkeypatch.chdir(tmp_path / "cwd")
    star = make_star(name=f"moved/{result}", stack=named)
    assert read_particles(star).table.stack_paths == (stack,)
    assert read_particles(Path(os.path.relpath(star))).table.stack_paths == (stack,)


def test_a_result_does_not_take_another_stack_for_its_own(tmp_path: Path, make_stack: Make, make_star: Make) -> None:
    """A stack of that name above the run's folder is not the one that the run had read."""
    make_stack("stack.mrcs")
    right = make_stack("data/stack.mrcs")
    (tmp_path / "run").mkdir()
    record(tmp_path / "run", tmp_path / "data/p.star", tmp_path)
    assert read_particles(make_star(name="run/run_data.star")).table.stack_paths == (right,)


def test_other_files_in_a_run_folder_have_images_of_their_own(
    tmp_path: Path, make_stack: Make, make_star: Make
) -> None:
    make_stack("data/stack.mrcs")
    own = make_stack("run/stack.mrcs")
    record(tmp_path / "run", tmp_path / "data/p.star", tmp_path)
    assert read_particles(make_star(name="run/selected.star")).table.stack_paths == (own,)


def test_a_run_on_the_result_of_a_run(tmp_path: Path, make_stack: Make, make_star: Make) -> None:
    stack = make_stack("data/stack.mrcs")
    for name, particles in (("first", "data/p.star"), ("second", "first/run_data.star"), ("third", "third/x.star")):
        (tmp_path / name).mkdir()
        record(tmp_path / name, tmp_path / particles, None)
    assert read_particles(make_star(name="second/run_data.star")).table.stack_paths == (stack,)
    with pytest.raises(ParticleFileError, match="were not found"):  # a circle ends
        read_particles(make_star(name="third/run_data.star"))


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}', '{"settings": {"particles": "p"}, "inputs": []}'])
def test_a_record_of_another_program_is_none(tmp_path: Path, make_stack: Make, make_star: Make, content: str) -> None:
    stack = make_stack()
    (tmp_path / "job.json").write_text(content)
    assert read_particles(make_star(name="run_data.star")).table.stack_paths == (stack,)


def test_the_data_folder_comes_before_the_record(tmp_path: Path, make_stack: Make, make_star: Make) -> None:
    make_stack("data/stack.mrcs")
    given = make_stack("given/stack.mrcs")
    (tmp_path / "run").mkdir()
    record(tmp_path / "run", tmp_path / "data/p.star", tmp_path)
    star = make_star(name="run/run_data.star")
    assert read_particles(star, datadir=tmp_path / "given").table.stack_paths == (given,)
