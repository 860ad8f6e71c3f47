"""What a run leaves on record."""

import hashlib
from pathlib import Path

import pytest
import yaml

import cryoeq
from cryoeq.errors import ConfigError, DivergedError, OutputError, Terminated
from cryoeq.io.text import read_json
from cryoeq.outputs import run_folder
from cryoeq.outputs.run_folder import RunFolder, free_folder

COMMAND = ["cryoeq", "simulate", "my model.pdb"]
SETTINGS = {"seed": 7, "device": "cpu", "views": {"kind": "uniform"}}


def test_a_run_is_on_record_from_start_to_end(tmp_path: Path) -> None:
    model = tmp_path / "my model.pdb"
    model.write_bytes(b"ATOM")
    run = RunFolder.create(tmp_path / "new" / "run", command=COMMAND, settings=SETTINGS, inputs=[model])
    job = read_json(run.path("job.json"))
    assert (job["version"], job["seed"], job["device"], job["settings"]) == (cryoeq.__version__, 7, "cpu", SETTINGS)
    assert job["status"] == "running"
    assert job["inputs"] == [
        {
            "path": str(model),
            "bytes": 4,
            "sha256": hashlib.sha256(b"ATOM").hexdigest(),
            "sha256_of": "the whole file",
        }
    ]
    assert run.path("command.txt").read_text() == "cryoeq simulate 'my model.pdb'\n"
    assert yaml.safe_load(run.path("config.yaml").read_text()) == SETTINGS
    run.finish("done", {"resolution_angstrom": 12.0})
    job = read_json(run.path("job.json"))
    assert (job["status"], job["results"]) == ("done", {"resolution_angstrom": 12.0})
    assert job["finished"] >= job["started"]


def test_a_large_input_is_known_by_its_head_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_HASHED_BYTES", 4)
    stack = tmp_path / "particles.mrcs"
    stack.write_bytes(b"0123456789")
    run = RunFolder.create(tmp_path / "run", command=COMMAND, settings={}, inputs=[stack])
    (record,) = run.job()["inputs"]
    assert record["sha256"] == hashlib.sha256(b"0123").hexdigest()
    assert (record["bytes"], record["sha256_of"]) == (10, "the first 4 bytes")


def test_a_checkout_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "0123abc", "status": " M cryoeq/errors.py"}
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(cryoeq, "__file__", str(tmp_path / "cryoeq" / "__init__.py"))
    monkeypatch.setattr(run_folder.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(run_folder, "_git", lambda git, checkout, verb, *rest: answers[verb])
    run = RunFolder.create(tmp_path / "run", command=COMMAND, settings={})
    assert run.job()["commit"] == "0123abc, with changes"


@pytest.mark.parametrize("trace", ["job.json", "job.star", "run_it000_data.star", "run_class001.mrc"])
def test_the_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).write_text("precious")
    with pytest.raises(OutputError, match=rf"holds another run \({trace}\)"):
        RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [trace]
    assert (tmp_path / trace).read_text() == "precious"


def test_a_run_that_failed_before_it_did_anything_may_be_repeated(tmp_path: Path) -> None:
    """A wrong option must not cost a new folder name; results and stopped runs stay protected."""
    RunFolder.create(tmp_path, command=COMMAND, settings={"seed": 1}).finish("failed", {})
    again = RunFolder.create(tmp_path, command=[*COMMAND, "--seed", "2"], settings={"seed": 2})
    assert (again.job()["settings"], again.job()["status"]) == ({"seed": 2}, "running")
    assert again.path("command.txt").read_text().count("\n") == 2
    assert yaml.safe_load(again.path("config.yaml").read_text()) == {"seed": 2}
    again.finish("stopped", {})
    with pytest.raises(OutputError, match="holds another run"):
        RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)
    again.finish("failed", {})
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(OutputError, match="holds another run"):
        RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)


def test_a_folder_with_other_things_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "particles.star").touch()
    assert RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS).job()["status"] == "running"


def test_the_device_on_record_is_the_one_that_was_used(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, command=COMMAND, settings={"seed": 7, "device": "auto"}, device="cuda:0")
    assert (run.job()["device"], run.job()["settings"]["device"]) == ("cuda:0", "auto")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made a folder"):
        RunFolder.create(tmp_path / "file", command=COMMAND, settings=SETTINGS)


def test_a_resumed_run_keeps_its_record_with_todays_settings(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)
    first.finish("stopped", {})
    again = RunFolder.create(tmp_path, command=[*COMMAND, "--resume"], settings={"seed": 8}, resume=True)
    job = again.job()
    assert (job["settings"], job["status"], len(job["resumed"])) == ({"seed": 8}, "running", 1)
    assert job["started"] == first.job()["started"]
    assert again.path("command.txt").read_text().count("\n") == 2


def test_resuming_nothing_starts_a_new_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "missing", command=COMMAND, settings=SETTINGS, resume=True)
    assert "resumed" not in run.job()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergedError("NaN"), "failed"),
        (ZeroDivisionError(), "failed"),
        (Terminated(), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_breaks_off_says_so(tmp_path: Path, error: BaseException, status: str) -> None:
    run = RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)

    def break_off() -> None:
        with run:
            raise error

    with pytest.raises(type(error)):
        break_off()
    assert run.job()["status"] == status


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS) as run:
        run.finish("done", {"shells": 3})
    assert (run.job()["status"], run.job()["results"]) == ("done", {"shells": 3})


def test_the_default_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("cryoeq_demo") == Path("cryoeq_demo")
    Path("cryoeq_demo").mkdir()
    Path("cryoeq_demo_2").mkdir()
    assert free_folder("cryoeq_demo") == Path("cryoeq_demo_3")


@pytest.mark.parametrize("was_there", [False, True])
def test_settings_that_cannot_work_leave_nothing(tmp_path: Path, was_there: bool) -> None:
    folder = tmp_path / "run"
    if was_there:
        folder.mkdir()
        (folder / "mine.txt").touch()
    run = RunFolder.create(folder, command=COMMAND, settings=SETTINGS)
    with pytest.raises(ConfigError), run:
        raise ConfigError("the box does not fit")
    assert folder.exists() == was_there
    if was_there:
        assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_results_of_a_run_stay_whatever_ends_it(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, command=COMMAND, settings=SETTINGS)
    run.path("run_class001.mrc").touch()
    with pytest.raises(ConfigError), run:
        raise ConfigError("too late")
    assert run.job()["status"] == "failed"
