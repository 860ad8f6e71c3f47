"""Probabilities of being junk, from the search that finds the structure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.junk_comparison import PosedRows
from cryoeq.evaluation.junk_probability import JunkEstimate
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.io.labels import JUNK_KIND, JUNK_PROBABILITY
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct.junk import judge_particles
from cryoeq.reconstruction.known_poses import reconstruct_from_poses
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def _simulate(folder: Path, count: int, *options: str) -> Path:
    from cryoeq.cli.main import run

    write_map(folder / "phantom.mrc", sample_atoms(chiral_phantom(45.0), 24, 6.0))
    command = ["simulate", str(folder / "phantom.mrc"), "-o", str(folder / "particles"), "-n", str(count)]
    assert run([*command, "--shift-sigma", "5", "--device", "cpu", *options]) == 0
    return folder / "particles"


def _with_true_poses(particles: Path) -> tuple[ReconstructConfig, ParticleDataset, list[HalfMaps], PosedRows]:
    stack = read_particles(particles / "truth.star", with_poses=True)
    dataset, table = ParticleDataset.open(stack, sign=1), stack.table
    assert table.poses is not None
    halves = reconstruct_from_poses(dataset, table.poses, table.half_set, device=CPU, symmetry="C1").halves
    assert halves is not None
    assert table.half_set is not None
    poses = PoseSet.from_angstrom(table.poses, dataset.pixel_size_angstrom, dataset.box_size_px)
    explicit = {"particles": particles / "particles.star", "output": particles / "run", "device": "cpu"}
    config = load_config(ReconstructConfig, explicit=explicit)
    return config, dataset, [halves], PosedRows(poses, table.half_set, torch.zeros_like(table.half_set))


@pytest.mark.slow
def test_junk_is_told_from_decoys_that_were_searched_for(tmp_path: Path) -> None:
    particles = _simulate(tmp_path, 600, "--snr", "0.4", "--junk", "0.3")
    found = judge_particles(*_with_true_poses(particles), CPU)
    assert isinstance(found, JunkEstimate)
    kind = read_star(particles / "truth.star").particles[JUNK_KIND]
    is_junk = torch.tensor([str(name) != "none" for name in kind])
    assert roc_auc(found.probability.any_kind, is_junk) > 0.9
    assert abs(found.share - 0.3) < 0.1


def test_few_particles_have_no_probability(tmp_path: Path) -> None:
    found = judge_particles(*_with_true_poses(_simulate(tmp_path, 120, "--snr", "1")), CPU)
    assert isinstance(found, str)
    assert "fewer than" in found


def test_noise_has_no_probability(tmp_path: Path) -> None:
    found = judge_particles(*_with_true_poses(_simulate(tmp_path, 300, "--snr", "0.001")), CPU)
    assert isinstance(found, str)
    assert "too few shells" in found


@pytest.mark.slow
def test_a_search_leaves_the_probabilities(tmp_path: Path) -> None:
    from cryoeq.cli.main import run

    particles = _simulate(tmp_path, 600, "--snr", "0.5", "--junk", "0.2")
    output = tmp_path / "map"
    command = ["reconstruct", str(particles / "particles.star"), "-o", str(output), "--device", "cpu", "-j", "1"]
    settings = ("multi_start.min=1", "initial_model.iterations=60", "consensus.max_extra_iterations=4")
    assert run([*command, *(word for setting in settings for word in ("--set", f"search.{setting}"))]) == 0
    probability = read_star(output / "run_data.star").floats(JUNK_PROBABILITY)
    assert ((probability >= 0) & (probability <= 1)).all()
    results = read_json(output / "job.json")["results"]
    assert results["junk_share"] == pytest.approx(probability.mean(), abs=1e-3)
    assert (output / "junk.png").is_file()
    assert read_map(output / "run_class001.mrc").box_size_px == 24
    kept = tmp_path / "kept.star"
    assert run(["select", str(output), "--junk-below", "0.5", "-o", str(kept)]) == 0
    assert 0 < len(read_star(kept)) == int((probability < 0.5).sum())


@pytest.mark.slow
def test_a_class_without_resolution_takes_no_probability_from_the_others(tmp_path: Path) -> None:
    """Its own particles are as likely junk as not; those of the others are judged as if these were not there."""
    config, dataset, (halves,), posed = _with_true_poses(_simulate(tmp_path, 260, "--snr", "1", "--junk", "0.1"))
    values = torch.randn(2, *halves.first.values.shape, generator=torch.Generator().manual_seed(0))
    noise = HalfMaps(*(replace(halves.first, values=each) for each in values))
    rows, others = torch.arange(1, 260), torch.arange(0, 260, 10)
    judged = rows[rows % 10 > 0]
    mixed = replace(posed, class_index=torch.arange(260).remainder(10).clamp(max=1))
    found = judge_particles(config, dataset, [noise, halves], mixed, CPU)
    alone = judge_particles(config, dataset.rows(judged), [halves], posed.rows(judged), CPU)
    assert isinstance(found, JunkEstimate)
    assert isinstance(alone, JunkEstimate)
    torch.testing.assert_close(found.probability.any_kind[judged], alone.probability.any_kind)
    assert (found.probability.any_kind[others] == 0.5).all()
    assert isinstance(judge_particles(config, dataset, [noise, noise], mixed, CPU), str)
