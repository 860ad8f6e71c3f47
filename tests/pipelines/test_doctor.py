"""What the doctor finds."""

import importlib.metadata
import json
import shutil

import pytest

from cryoeq.cli.main import run
from cryoeq.domain.events import Note, Report
from cryoeq.errors import ConfigError
from cryoeq.pipelines import doctor
from cryoeq.pipelines.doctor import diagnose, report_diagnosis, require_usable


def test_this_installation_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "cryoeq can work here" in shown.err
    for label in ("Memory", "CPU cores", "Disk", "torch ", "numba", "mrcfile", "CUDA of torch", "Python"):
        assert label in shown.out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_usable"] is True
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
    assert [event.title for event in events if isinstance(event, Report)] == list(diagnosis.sections)
    notes = [event for event in events if isinstance(event, Note)]
    assert all(note.level == "info" for note in notes)
    assert any("apt-get install g++" in note.text for note in notes)
