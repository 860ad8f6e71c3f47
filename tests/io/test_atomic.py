"""Files appear whole or not at all, and the user is told why not."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.errors import CheckpointError, OutputError
from cryoeq.io.atomic import atomic_path
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.io.mrc import StackWriter, write_map
from cryoeq.io.text import read_json, write_json, write_text

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["/", "."])
def test_a_path_without_a_name_is_no_file(name: str) -> None:
    with pytest.raises(OutputError, match="could not be written: it is a folder"), atomic_path(Path(name)):
        pass


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def stop_halfway() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only")],
)
def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(OutputError, match=said), atomic_path(tmp_path / "note.txt"):
        raise OSError(number, "as the kernel would")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_file_as_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder does not exist"):
        write_text(tmp_path / "nowhere" / "note.txt", "text")
    write_text(tmp_path / "file", "text")
    with pytest.raises(OutputError, match="a part of its path is a file"):
        write_text(tmp_path / "file" / "note.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder of that name exists"):
        write_text(tmp_path / "folder", "text")


def test_an_error_of_another_kind_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="wires crossed"), atomic_path(tmp_path / "note.txt"):
        raise OSError(errno.EIO, "wires crossed")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(tiny_disk: Path) -> None:

    def write_stack() -> None:
        with StackWriter(tiny_disk / "s.mrcs", 16, 64, 1.0) as writer:
            for _ in range(2):
                writer.append(torch.zeros(8, 64, 64))

    with pytest.raises(OutputError, match="disk is full"):
        write_stack()
    with pytest.raises(OutputError, match="disk is full"):
        write_map(tiny_disk / "m.mrc", Volume(torch.zeros(32, 32, 32), 1.0))
    with pytest.raises(OutputError, match="disk is full"):
        save_checkpoint(tiny_disk / "c.pt", {"weights": torch.zeros(32, 32, 32)})
    with pytest.raises(OutputError, match="disk is full"):
        write_text(tiny_disk / "t.txt", "x" * 100_000)
    assert list(tiny_disk.iterdir()) == []


def test_json_comes_back_and_knows_no_nan(tmp_path: Path) -> None:
    value = {"resolution_angstrom": {"masked": 8.276}, "name": "Å", "none": None, "list": [1, 2.5]}
    write_json(tmp_path / "r.json", value)
    assert read_json(tmp_path / "r.json") == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path, generator: torch.Generator) -> None:
    state = {
        "step": 7,
        "weights": torch.randn(5, generator=generator),
        "rng": generator.get_state(),
        "loss": [0.5, 0.25],
    }
    save_checkpoint(tmp_path / "c.pt", state)
    back = load_checkpoint(tmp_path / "c.pt", CPU)
    assert back.keys() == state.keys()
    assert torch.equal(back["weights"], state["weights"])
    assert torch.equal(back["rng"], state["rng"])
    assert (back["step"], back["loss"]) == (7, [0.5, 0.25])


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(path, CPU)
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path, CPU)
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match="not the state of a run"):
        load_checkpoint(path, CPU)


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("harm",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"x": Harmful()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt", CPU)
