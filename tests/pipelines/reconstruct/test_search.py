"""``cryoeq reconstruct --pose-inference search``, from end to end: what it finds, leaves, may not know, and refuses."""

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from cryoeq.cli.main import run
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.atoms import Atoms
from cryoeq.domain.events import Note, result_of
from cryoeq.errors import DivergedError
from cryoeq.evaluation.poses import compare_poses
from cryoeq.io.labels import JUNK_PROBABILITY
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.maps.alignment import mirror_map
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_dataset, build_stack
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.acceptance import require_reproducible
from cryoeq.reconstruction.half_set_refinement import begin_refinement
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementState, Step
from cryoeq.runtime.torchrun import torchrun_environment
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, gaussian_blobs
from pipeline_events import events_and_result

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

MAPS = ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
FILES = {
    *MAPS, "command.txt", "config.yaml", "job.json", "junk.png", "progress.csv", "projections.png", "report.html",
    "run.log", "residuals.png", "run_data.star", "run_fsc.png",
    "run_fsc.star", "run_fsc.xml", "run_mask.mrc", "run_postprocess.mrc", "slices.png",
}  # fmt: skip
STAGES = (
    "reading 300/300: ", "initial model 40/40: log-likelihood ", "consensus refinement 3/", "global re-alignment: ",
    "half-set refinement 2/2: data to ", "local refinement 2/2: data to ", "final iteration 300/300: data to ",
)  # fmt: skip
POSES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
INFERRED = (*POSES, "rlnRandomSubset", "rlnMaxValueProbDistribution", "rlnParticleFigureOfMerit")


def median_error_deg(star: Path, truth: Path) -> float:
    found, true = (read_particles(path, datadir=truth.parent, with_poses=True).table.poses for path in (star, truth))
    assert found is not None
    assert true is not None
    return math.degrees(float(compare_poses(found, true).rotation_rad.median()))


def test_the_poses_are_found(searched_run: Path, searched_particles: Path) -> None:
    assert median_error_deg(searched_run / "run_data.star", searched_particles / "truth.star") < 15


def test_the_verdict_stands_in_the_record_and_at_the_end_of_the_log(searched_run: Path) -> None:
    verdict = read_json(searched_run / "job.json")["verdict"]
    assert verdict["answer"] in {"found", "doubtful"}
    log = (searched_run / "run.log").read_text(encoding="utf-8")
    assert f"{verdict['answer']}: {verdict['sentence']}" in log
    doubts = [reason for reason in verdict["reasons"] if reason["weight"] == "against"]
    assert all(f"Warning: {doubt['text']} {doubt['advice']}".rstrip() in log for doubt in doubts)


def test_what_is_left(searched_run: Path, searched_particles: Path) -> None:
    assert {path.name for path in searched_run.iterdir()} == FILES
    for name in MAPS:
        assert mrcfile.validate(searched_run / name), name
        volume = read_map(searched_run / name)
        assert (volume.box_size_px, volume.pixel_size_angstrom) == (20, 5.0)
        assert float(volume.values.std()) > 0
    curve = starfile.read(searched_run / "run_fsc.star")["fsc"]["rlnFourierShellCorrelationUnmaskedMaps"].to_numpy()
    assert len(curve) == 11
    assert (curve[1:5] > 0.5).all()
    before, after = (
        read_star(path) for path in (searched_particles / "particles.star", searched_run / "run_data.star")
    )
    for column, values in before.particles.items():
        assert after.particles[column].tolist() == values.tolist()
    assert sorted(after.particles["rlnRandomSubset"].tolist()) == ["1"] * 150 + ["2"] * 150


def test_resolutions_are_told_in_the_same_terms_everywhere(searched_run: Path) -> None:
    """In the log as on the terminal, in the record and in the report."""
    results = read_json(searched_run / "job.json")["results"]
    log, page = ((searched_run / name).read_text(encoding="utf-8") for name in ("run.log", "report.html"))
    names = {"half_map": "unmasked", "masked": "masked", "corrected": "corrected for the mask"}
    for key, name in names.items():
        resolution = results[f"{key}_resolution_angstrom"]
        (row,) = [line for line in log.splitlines() if f"half maps agree to (FSC 0.143, {name})" in line]
        assert row.endswith(f" {resolution:.1f} Å")
        assert re.search(rf"Half maps agree to \(Å, FSC 0.143, {name}\)</th><td>{resolution:.5g}</td>", page)
    curves = starfile.read(searched_run / "run_fsc.star")["fsc"]
    assert {"rlnFourierShellCorrelationMaskedMaps", "rlnFourierShellCorrelationCorrected"} <= set(curves.columns)


def test_a_stack_without_junk_has_hardly_any(searched_run: Path) -> None:
    probability = read_star(searched_run / "run_data.star").floats(JUNK_PROBABILITY)
    assert probability.mean() < 0.1
    assert read_json(searched_run / "job.json")["results"]["junk_share"] == pytest.approx(probability.mean(), abs=1e-4)


def test_confidence_and_figure_of_merit(searched_run: Path) -> None:
    star = read_star(searched_run / "run_data.star")
    confidence, merit = (star.floats(name) for name in INFERRED[-2:])
    for values in (confidence, merit):
        assert ((values > 0) & (values <= 1)).all()
        assert len(set(values.tolist())) > 100
    assert float(np.median(merit)) > math.cos(math.radians(15))


def test_the_half_maps_show_the_same_structure_and_are_not_the_same(searched_run: Path) -> None:
    every, first, second = (read_map(searched_run / name).values.flatten() for name in MAPS)
    assert 0.5 < float(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.999
    assert float(torch.corrcoef(torch.stack([every, first]))[0, 1]) > 0.5


def test_the_record(searched_run: Path) -> None:
    job = read_json(searched_run / "job.json")
    assert job["status"] == "done"
    assert job["settings"]["pose_inference"] == "search"
    assert set(job["results"]) >= {"log_evidence", "median_rotation_sigma_deg", "half_map_resolution_angstrom"}
    assert job["results"]["half_map_resolution_angstrom"] < 30
    log = (searched_run / "run.log").read_text()
    for said in ("300 particles of 20 px", *STAGES, "The hand"):
        assert said in log


def test_the_truth_does_not_leak_and_the_seed_decides(
    tmp_path: Path, searched_run: Path, searched_particles: Path, search_options: tuple[str, ...]
) -> None:
    """Poses, shifts and half sets that the star file happens to hold change no bit; another seed does."""
    truth = read_star(searched_particles / "truth.star")
    assert {*POSES, "rlnRandomSubset"} <= truth.particles.keys()
    command = ["reconstruct", str(searched_particles / "truth.star"), "-o", str(tmp_path / "run"), *search_options]
    assert run(command) == 0
    for name in MAPS:
        np.testing.assert_array_equal(mrcfile.read(tmp_path / "run" / name), mrcfile.read(searched_run / name), name)
    ours, theirs = (read_star(folder / "run_data.star") for folder in (tmp_path / "run", searched_run))
    for column in INFERRED:
        assert ours.particles[column].tolist() == theirs.particles[column].tolist(), column
    assert ours.particles["rlnRandomSubset"].tolist() != truth.particles["rlnRandomSubset"].tolist()


def test_an_amortized_search_finds_the_poses_and_is_resumed_bit_by_bit(
    tmp_path: Path, searched_particles: Path, search_options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks are in no checkpoint: each step that is saved begins with one of its own."""
    proposals = ["--set", "search.e_step=amortized", "--set", "search.amortized.channels=64"]

    def command(name: str) -> list[str]:
        words = ["reconstruct", str(searched_particles / "particles.star"), "-o", str(tmp_path / name)]
        return [*words, *search_options, *proposals]

    def stop(*_given: object, **_more: object) -> RefinementState:
        raise DivergedError("stopped", "", "")

    assert run(command("whole")) == 0
    assert median_error_deg(tmp_path / "whole" / "run_data.star", searched_particles / "truth.star") < 15
    with monkeypatch.context() as patched:
        patched.setattr("cryoeq.reconstruction.ab_initio.refine_consensus", stop)
        assert run(command("again")) == 4
    assert run([*command("again"), "--resume"]) == 0
    assert "Resumed from checkpoint initial_model_0" in (tmp_path / "again" / "run.log").read_text()
    whole, again = ((tmp_path / name / "run_data.star").read_bytes() for name in ("whole", "again"))
    assert whole == again


def test_an_amortized_search_takes_one_process(
    tmp_path: Path, searched_particles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = replace(torchrun_environment(), size=2)
    monkeypatch.setattr("cryoeq.pipelines.reconstruct.preflight.torchrun_environment", lambda: environment)
    words = ["reconstruct", str(searched_particles / "particles.star"), "-o", str(tmp_path / "run")]
    assert run([*words, "--set", "search.e_step=amortized", "--device", "cpu"]) == 2
    assert "search.e_step=amortized in a job of 2 processes" in capsys.readouterr().err


def two_copies(radius_angstrom: float) -> Atoms:
    """The chiral phantom and its half turn about z, side by side."""
    part = chiral_phantom(radius_angstrom)
    aside = part.positions_angstrom + torch.tensor([0.6 * radius_angstrom, 0.0, 0.0])
    positions = torch.cat([aside, aside * torch.tensor([-1.0, -1.0, 1.0])])
    return gaussian_blobs(positions, part.weights.repeat(2), radius_angstrom / 8)


def test_a_symmetry_is_imposed(
    tmp_path: Path, simulate_atoms: Callable[..., Path], search_options: tuple[str, ...]
) -> None:
    particles = simulate_atoms(two_copies(22.0))
    command = ["reconstruct", str(particles / "particles.star"), "-o", str(tmp_path / "run"), *search_options]
    assert run([*command, "--sym", "C2"]) == 0
    for name in MAPS:
        # At even n, plane 0 has no mate about n // 2.
        inner = read_map(tmp_path / "run" / name).values[:, 1:, 1:]
        assert float((inner - inner.flip(1, 2)).norm() / inner.norm()) < 0.05, name
    assert "Symmetry C2" in (tmp_path / "run" / "run.log").read_text()
    truth = read_particles(particles / "truth.star", with_poses=True).table.poses
    found = read_particles(tmp_path / "run" / "run_data.star", datadir=particles, with_poses=True).table.poses
    assert truth is not None
    assert found is not None
    difference = compare_poses(found, truth, symmetry="C2")
    assert math.degrees(float(difference.rotation_rad.median())) < 15


def test_noise_gives_no_map(
    tmp_path: Path, searched_particles: Path, search_options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = tmp_path / "noise"
    shutil.copytree(searched_particles, noisy)
    with mrcfile.open(noisy / "particles.mrcs", "r+") as stack:
        stack.data[:] = np.random.default_rng(3).standard_normal(stack.data.shape)
    command = ["reconstruct", str(noisy / "particles.star"), "-o", str(tmp_path / "run"), *search_options]
    assert run(command) == 4
    assert "no structure was found" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.mrc"))
    assert read_json(tmp_path / "run" / "job.json")["status"] == "failed"


@pytest.fixture
def opened(searched_particles: Path) -> Callable[..., tuple[ParticleTransforms, AbInitioSettings]]:
    """The particles of a search with some settings, keys dotted."""

    def read(**explicit: object) -> tuple[ParticleTransforms, AbInitioSettings]:
        changes = {name.replace("__", "."): value for name, value in explicit.items()}
        given = {"particles": searched_particles / "particles.star", "output": Path("none")} | changes
        config = load_config(ReconstructConfig, explicit=given)
        dataset = build_dataset(config, build_stack(config, with_poses=False), None)
        particles = result_of(load_transforms(dataset, torch.device("cpu")))
        return particles, build_ab_initio_settings(config, dataset)

    return read


def beginning(volume: torch.Tensor, particles: ParticleTransforms, settings: AbInitioSettings) -> RefinementState:
    """Both half sets at a map."""
    model = InitialModel(volume[None], torch.zeros(len(particles), 2), 0.0)
    return begin_refinement(model, particles, torch.arange(len(particles)) % 2 + 1, settings.refinement, 9)


@pytest.mark.parametrize(("mixed", "starts"), [((True, False), 2), ((False, False), 1), ((True, True), 2)])
def test_mixed_handedness_restarts_the_search(
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., tuple[ParticleTransforms, AbInitioSettings]],
    mixed: tuple[bool, bool],
    starts: int,
) -> None:
    particles, settings = opened(input__shift_sigma_angstrom=0.0)
    chiral = sample_atoms(chiral_phantom(36.0), 20, 5.0).values
    restarts: list[int] = []

    def start(*_: object, restart: int, **__: object) -> Step:
        restarts.append(restart)
        yield from ()
        return beginning(chiral + mirror_map(chiral) if mixed[restart] else chiral, particles, settings)

    def stay(state: RefinementState, *_: object, **__: object) -> Step:
        yield from ()
        return state

    monkeypatch.setattr("cryoeq.reconstruction.ab_initio.run_multi_start", start)
    monkeypatch.setattr("cryoeq.reconstruction.ab_initio.refine_consensus", stay)
    steps = reconstruct_ab_initio(particles, torch.arange(len(particles)) % 2 + 1, settings)
    events, _ = events_and_result(steps)
    assert restarts == list(range(starts))
    assert ["Mixed handedness" in event.text for event in events if isinstance(event, Note)] == [True] * (starts - 1)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_doubted_map_must_be_reproduced(
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., tuple[ParticleTransforms, AbInitioSettings]],
    is_same: bool,
) -> None:
    particles, settings = opened()
    chiral = sample_atoms(chiral_phantom(36.0), 20, 5.0).values
    other = mirror_map(chiral) if is_same else sample_atoms(two_copies(22.0), 20, 5.0).values

    def state_of(volume: torch.Tensor, agreed: int) -> RefinementState:
        return replace(beginning(volume, particles, settings), fsc=(torch.arange(11) <= agreed).float())

    def another_start(*_: object) -> Step:
        yield from ()
        return state_of(other, 0)

    monkeypatch.setattr("cryoeq.reconstruction.multi_start._start", another_start)
    consensus = state_of(chiral, 0)
    assert list(require_reproducible(particles, consensus, state_of(chiral, 10), settings)) == []
    doubted = require_reproducible(particles, consensus, state_of(chiral, 6), settings)
    if is_same:
        assert ["another random start converged to the same map" in note.text for note in doubted] == [True]
    else:
        with pytest.raises(DivergedError, match="another random start converged to a different map"):
            list(doubted)
    with pytest.raises(DivergedError, match="agree to shell 3 only"):
        list(require_reproducible(particles, consensus, state_of(chiral, 3), settings))


def test_both_hands_on_request(tmp_path: Path, searched_particles: Path) -> None:
    command = ["reconstruct", str(searched_particles / "truth.star"), "-o", str(tmp_path / "run")]
    assert run([*command, "--pose-inference", "known", "--both-hands"]) == 0
    for name in MAPS:
        ours = read_map(tmp_path / "run" / name)
        other = read_map(tmp_path / "run" / name.replace(".mrc", "_mirrored.mrc"))
        torch.testing.assert_close(other.values, mirror_map(ours.values))
    shutil.copy(tmp_path / "run" / "run_data_mirrored.star", searched_particles)
    again = ["reconstruct", str(searched_particles / "run_data_mirrored.star"), "-o", str(tmp_path / "again")]
    assert run([*again, "--pose-inference", "known"]) == 0
    remade = read_map(tmp_path / "again" / MAPS[0]).values
    mirrored = read_map(tmp_path / "run" / "run_class001_mirrored.mrc").values
    assert float((remade - mirrored).norm() / mirrored.norm()) < 0.05  # at Nyquist an even box has no mirror image
    assert float((remade - mirror_map(mirrored)).norm() / mirrored.norm()) > 0.5
