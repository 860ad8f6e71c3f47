"""The demo says that the structure was found when it was, and only then."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryoeq.cli.main import run
from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.config.fsc import FscConfig
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Note
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines import demo
from cryoeq.pipelines.demo import FULL, QUICK, Verdict

SIDE_ANGSTROM = 192.0


@pytest.mark.parametrize(
    ("median_deg", "shell", "known_shell", "is_found"),
    [
        (3.0, 12, 14, True),
        (3.0, 14, 14, True),
        (3.0, 11, 14, False),  # right poses, a poor map
        (40.0, 14, 14, False),  # a good map of something else
        (10.0, 14, 14, False),
        (3.0, 0, 0, False),  # images that show nothing prove nothing
    ],
)
def test_what_counts_as_found(median_deg: float, shell: int, known_shell: int, is_found: bool) -> None:
    verdict = Verdict(median_deg, SIDE_ANGSTROM / shell if shell else None, shell, 13.7, known_shell)
    assert verdict.is_found == is_found


def fake_steps(monkeypatch: pytest.MonkeyPatch, median_deg: float, shell: int) -> list[object]:
    """Stand-ins for the four pipelines, which write what the demo reads."""
    asked: list[object] = []

    def reconstruct(config: ReconstructConfig) -> Iterator[Event]:
        asked.append(config)
        yield Note(f"reconstructing with {config.pose_inference} poses")

    def simulate(config: SimulateConfig) -> Iterator[Event]:
        asked.append(config)
        yield Note("simulating")

    def evaluate(config: EvaluateConfig) -> Iterator[Event]:
        asked.append(config)
        assert config.output is not None
        config.output.mkdir()
        write_json(config.output / "pose_errors.json", {"rotation_deg": {"median": median_deg}})
        yield Note("evaluating")

    def fsc(config: FscConfig) -> Iterator[Event]:
        asked.append(config)
        assert config.output is not None
        config.output.mkdir()
        reached = shell if config.with_alignment else 13
        resolution = SIDE_ANGSTROM / reached if reached else None
        results = {"box_size_px": 32, "pixel_size_angstrom": 6.0, "resolution_angstrom_half": {"unmasked": resolution}}
        write_json(config.output / "fsc.json", results)
        yield Note("correlating")

    for step in (simulate, reconstruct, evaluate, fsc):
        monkeypatch.setattr(demo, step.__name__, step)
    monkeypatch.setattr(demo, "_draw_comparison", lambda run: None)  # the stand-ins write no maps
    return asked


def test_a_structure_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake_steps(monkeypatch, median_deg=2.0, shell=12)
    assert run(["demo", "-o", str(tmp_path / "demo"), "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "The structure was found" in shown
    assert shown.splitlines()[-1].endswith(str(tmp_path / "demo" / "comparison.png")), "the picture is named last"
    verdict = read_json(tmp_path / "demo" / "verdict.json")
    assert (verdict["is_found"], verdict["shell"], verdict["known_pose_shell"]) == (True, 12, 13)
    assert read_json(tmp_path / "demo" / "job.json")["status"] == "done"
    reconstructions = [config for config in asked if isinstance(config, ReconstructConfig)]
    # What the images' poses are is known to the yardstick only.
    assert [config.particles.name for config in reconstructions] == ["particles.star", "truth.star"]
    assert [config.pose_inference for config in reconstructions] == ["search", "known"]
    assert {config.seed for config in asked} == {5}


@pytest.mark.parametrize(("median_deg", "shell"), [(60.0, 13), (2.0, 9), (2.0, 0)])
def test_a_structure_that_is_not_found(
    median_deg: float,
    shell: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_steps(monkeypatch, median_deg, shell)
    assert run(["demo", "--quick", "-o", str(tmp_path / "demo")]) == 4
    shown = capsys.readouterr()
    assert "The structure was NOT found" in shown.out
    assert shown.err.splitlines()[-1].startswith("cryoeq: the structure was not found in")
    assert read_json(tmp_path / "demo" / "verdict.json")["is_found"] is False
    assert read_json(tmp_path / "demo" / "job.json")["status"] == "failed"


def test_quick_is_no_easier_than_the_full_demo() -> None:
    assert QUICK.snr <= FULL.snr
    assert QUICK.count <= FULL.count


@pytest.mark.slow
def test_the_structure_is_really_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "-o", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("comparison.png")
    assert (tmp_path / "demo" / "comparison.png").is_file()
    assert (tmp_path / "demo" / "map" / "report.html").is_file()
