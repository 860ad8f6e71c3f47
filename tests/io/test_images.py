"""Where the images of a star file are found, and that they stay on the disk until they are asked for."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cryoeq.errors import ParticleFileError
from cryoeq.io.mrc import MrcStack
from cryoeq.io.mrc_header import ValueStatistics, build_header
from cryoeq.io.particles import read_particles

Make = Callable[..., Path]
ALL = torch.arange(4)


def _noise(n: int = 4, box: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, box, box)).astype(np.float32)


# Path repair


RELATIVE, ABSOLUTE = "Extract/job1/s.mrcs", "/gone/Extract/job1/s.mrcs"


@pytest.mark.parametrize(
    ("named", "place", "datadir"),
    [
        (RELATIVE, "run/Extract/job1/s.mrcs", None),
        (RELATIVE, "Extract/job1/s.mrcs", None),
        (RELATIVE, "run/s.mrcs", None),
        (RELATIVE, "run/job1/s.mrcs", None),
        (RELATIVE, "cwd/Extract/job1/s.mrcs", None),
        (RELATIVE, "elsewhere/Extract/job1/s.mrcs", "elsewhere"),
        (RELATIVE, "elsewhere/job1/s.mrcs", "elsewhere"),
        (RELATIVE, "elsewhere/s.mrcs", "elsewhere"),
        (ABSOLUTE, "run/job1/s.mrcs", None),
        (ABSOLUTE, "run/s.mrcs", None),
        (ABSOLUTE, "elsewhere/gone/Extract/job1/s.mrcs", "elsewhere"),
        (ABSOLUTE, "elsewhere/Extract/job1/s.mrcs", "elsewhere"),
        (ABSOLUTE, "elsewhere/s.mrcs", "elsewhere"),
    ],
)
def test_stacks_are_found(
    tmp_path: Path,
    make_stack: Make,
    make_star: Make,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    place: str,
    datadir: str | None,
) -> None:
    make_stack(place)
    for folder in ("cwd", "run"):
        (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    star = make_star(name="run/p.star", stack=named)
    stack = read_particles(star, datadir=tmp_path / datadir if datadir else None)
    assert stack.table.stack_paths == (tmp_path / place,)
    is_cut = not place.endswith(named.removeprefix("/"))
    assert any("found in another folder" in note for note in stack.notes) == is_cut


def test_the_data_folder_comes_first(tmp_path: Path, make_stack: Make, make_star: Make) -> None:
    make_stack()
    preferred = make_stack("data/stack.mrcs")
    assert read_particles(make_star(), datadir=tmp_path / "data").table.stack_paths == (preferred,)


def test_a_stack_that_is_nowhere(tmp_path: Path, make_star: Make) -> None:
    path = make_star(stack="Extract/lost.mrcs")
    with pytest.raises(ParticleFileError) as caught:
        read_particles(path, datadir=tmp_path / "data")
    message = str(caught.value)
    assert ".star: 1 of 1 stacks were not found, the first is 'Extract/lost.mrcs'" in message
    assert all(str(place) in message for place in (tmp_path / "data", tmp_path, Path.cwd()))


def test_two_stacks_of_one_name_are_not_mixed_up(make_stack: Make, make_star: Make) -> None:
    make_stack("s.mrcs")
    names = ["1@job1/s.mrcs", "2@job2/s.mrcs", "3@job1/s.mrcs", "4@job1/s.mrcs"]
    with pytest.raises(ParticleFileError, match=r"'job1/s.mrcs' and 'job2/s.mrcs' both lead to"):
        read_particles(make_star(rlnImageName=names))


def test_one_stack_by_several_names(tmp_path: Path, make_stack: Make, make_star: Make) -> None:
    images = _noise()
    path = make_stack("job1/s.mrcs", images)
    (tmp_path / "link.mrcs").symlink_to(path)
    (tmp_path / "other").symlink_to(path.parent)
    names = ["job1/s.mrcs", str(path), "link.mrcs", "./other/s.mrcs", "/gone/project/job1/s.mrcs"]
    columns = {"rlnDefocusU": "1", "rlnMicrographName": "m"}
    stack = read_particles(
        make_star(5, rlnImageName=[f"{i % 4 + 1}@{name}" for i, name in enumerate(names)], **columns)
    )
    assert len(stack.table.stack_paths) == 1
    assert stack.table.stack_index.tolist() == [0] * 5
    np.testing.assert_array_equal(stack.images.read(torch.arange(5)).numpy(), images[[0, 1, 2, 3, 0]])


def test_a_stack_with_another_suffix_is_mentioned(make_stack: Make, make_star: Make) -> None:
    path = make_stack("stack.mrc")
    with pytest.raises(ParticleFileError, match=rf"'stack\.mrcs'.*{path} is there"):
        read_particles(make_star())


def test_a_folder_that_may_not_be_entered(
    tmp_path: Path, make_stack: Make, make_star: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack("private/s.mrcs")
    is_file, access = Path.is_file, os.access

    def guarded_is_file(path: Path) -> bool:
        if stack.parent in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded_is_file)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != stack.parent and access(path, mode))
    star = make_star(stack=str(stack))
    with pytest.raises(ParticleFileError, match=rf"s\.mrcs.*permission denied for the folder {stack.parent}"):
        read_particles(star)
    make_stack("s.mrcs")
    assert read_particles(star).table.stack_paths == (tmp_path / "s.mrcs",)


def test_a_name_that_no_file_can_have(make_star: Make) -> None:
    with pytest.raises(ParticleFileError, match="stacks were not found"):
        read_particles(make_star(stack="x" * 300 + ".mrcs"))


def test_particles_of_several_stacks_keep_their_order(make_stack: Make, make_star: Make) -> None:
    images = _noise(6)
    make_stack("a.mrcs", images[:3])
    make_stack("b.mrcs", images[3:])
    names = ["2@b.mrcs", "1@a.mrcs", "3@b.mrcs", "3@a.mrcs"]
    stack = read_particles(make_star(rlnImageName=names))
    np.testing.assert_array_equal(stack.images.read(ALL).numpy(), images[[4, 0, 5, 2]])


# Lazy


def test_opening_a_hundred_thousand_particles_reads_no_pixels(
    tmp_path: Path, make_star: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, per_stack, n_stacks = 64, 5000, 20
    header = build_header((per_stack, box, box), 1.0, ValueStatistics(0.0, 0.0, 0.0, 0.0), is_stack=True, label="")
    for number in range(n_stacks):
        with (tmp_path / f"s{number}.mrcs").open("wb") as file:
            file.write(header)
            os.truncate(file.fileno(), 1024 + per_stack * box * box * 4)
    names = [f"{i + 1:06d}@s{number}.mrcs" for number in range(n_stacks) for i in range(per_stack)]
    path = make_star(len(names), rlnImageName=names, rlnDefocusU="1e4", rlnMicrographName="m.mrc")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were read")

    with monkeypatch.context() as patch:
        patch.setattr(MrcStack, "read", refuse)
        patch.setattr(np, "memmap", refuse)
        patch.setattr(np, "fromfile", refuse)
        started_s = time.process_time()
        stack = read_particles(path)
        assert time.process_time() - started_s < 10
    assert (len(stack.table), len(stack.table.stack_paths)) == (100_000, n_stacks)
    assert stack.images.read(torch.tensor([99_999, 3])).abs().max() == 0


def test_no_file_stays_open(make_stack: Make, make_star: Make) -> None:
    make_stack()
    stack = read_particles(make_star())
    before = psutil.Process().num_fds()
    for _ in range(20):
        stack.images.read(ALL)
    assert psutil.Process().num_fds() == before
