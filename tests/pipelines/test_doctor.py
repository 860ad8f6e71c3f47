"""What the doctor finds."""

import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cryoeq.cli.main import run
from cryoeq.domain.events import Note, Report
from cryoeq.errors import ConfigError
from cryoeq.pipelines import doctor
from cryoeq.pipelines.doctor import diagnose, report_diagnosis, require_usable


def test_this_installation_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "cryoeq can work here" in shown.out.splitlines()[0], "the first line says how it is"
    for label in ("Memory", "CPU cores", "Disk", "torch ", "numba", "mrcfile", "CUDA of torch", "Python"):
        assert label in shown.out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_usable"] is True
    assert "cryoeq can work here" in found["summary"]
    assert found["sections"]["Versions"]["numpy"] == importlib.metadata.version("numpy")


def test_a_missing_library_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == "gemmi":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert run(["doctor"]) == 2
    shown = capsys.readouterr()
    first = shown.out.splitlines()[0]
    assert first.startswith("cryoeq cannot work here: gemmi is not installed. Install cryoeq again as the README says")
    assert "Warning: gemmi is not installed. Install cryoeq again as the README says" in shown.err
    assert shown.err.splitlines()[-1].startswith("cryoeq: this installation cannot work: gemmi is not installed.")


def test_a_broken_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("cryoeq.no_such_package",))
    diagnosis = diagnose()
    assert not diagnosis.is_usable
    with pytest.raises(ConfigError, match=r"cryoeq\.no_such_package cannot be imported \(ModuleNotFoundError"):
        require_usable(diagnosis)


def test_missing_data_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGED_FILES", ("no_such_folder",))
    with pytest.raises(ConfigError, match="no_such_folder is missing"):
        require_usable(diagnose())


def test_what_only_slows_down_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    diagnosis = diagnose()
    assert diagnosis.is_usable
    events = list(report_diagnosis(diagnosis))
    titles = [event.title for event in events if isinstance(event, Report)]
    assert titles == [diagnosis.summary, *diagnosis.sections]
    assert re.fullmatch(
        r"All is well: cryoeq can work here, on the CPU, threads: \d+, memory: [\d.]+ GiB free\.",
        diagnosis.summary,
    )
    notes = [event for event in events if isinstance(event, Note)]
    assert all(note.level == "info" for note in notes)
    assert any("apt-get install g++" in note.text for note in notes)


def test_several_faults_are_counted_and_the_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGED_FILES", ("no_such_folder", "nor_this_one", "nor_that_one"))
    summary = diagnose().summary
    assert summary.startswith("cryoeq cannot work here:")
    assert "no_such_folder is missing" in summary
    assert summary.endswith(" 2 more below.")
    assert "\n" not in summary


@pytest.mark.parametrize(
    ("cuda", "remedy"), [(None, "pip install --force-reinstall torch"), ("13.0", "nvidia-smi tells")]
)
def test_a_gpu_that_is_not_used_stands_in_the_first_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, remedy: str
) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    diagnosis = diagnose()
    assert diagnosis.is_usable
    assert diagnosis.summary.startswith("cryoeq can work here, but: There is an NVIDIA driver, but torch finds no GPU.")
    assert remedy in diagnosis.summary


def test_little_room_stands_in_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=2**30, total=2**34)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**29))
    summary = diagnose().summary
    assert "Only 1.0 GiB of memory are free. End other programs" in summary
    assert "Only 0.5 GiB of disk are free in this folder. Free some space" in summary
    assert "set TMPDIR to another folder" in summary
