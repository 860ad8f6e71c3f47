"""``hybrid.posterior=network`` from end to end, on a tiny set: run, ``infer`` in all precisions, its bound."""

import math
from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.models.pose_encoder import EncoderDesign
from cryoeq.models.view_network import ViewNetwork
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")
STEPS, BATCH = 40, 64
SETTINGS = {
    "search.initial_model.iterations": 20, "search.consensus.shells": "[6,7]", "search.initial_model.batch_size": 60,
    "search.half_sets.iterations": 1, "hybrid.posterior": "network", "hybrid.training_steps": STEPS,
    "hybrid.batch_size": BATCH, "hybrid.held_out": 0.2, "encoder.channels": "[64]",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Particles of a phantom, and the run of them."""
    folder = tmp_path_factory.mktemp("network")
    write_map(folder / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    options = ["-n", "200", "--snr", "2", "--shift-sigma", "0", "--device", "cpu"]
    assert run(["simulate", str(folder / "phantom.mrc"), "-o", str(folder / "set"), *options]) == 0
    chosen = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    words = ["reconstruct", str(folder / "set" / "particles.star"), "-o", str(folder / "run"), "--device", "cpu"]
    assert run([*words, "--pose-inference", "hybrid", "--shift-sigma", "0", *chosen]) == 0
    return folder / "set" / "particles.star", folder / "run"


def test_a_network_of_each_half_map_is_kept(finished: tuple[Path, Path]) -> None:
    _, output = finished
    assert 0 < read_json(output / "job.json")["results"]["held_out_median_deg"] < 60
    assert f"view network {STEPS}/{STEPS}: " in (output / "run.log").read_text()
    halves = load_checkpoint(output / "encoder.pt", torch.device("cpu"))["classes"][0]["halves"]
    first, second = (half["network"]["network"]["head.weight"] for half in halves)
    assert not torch.equal(first, second)


def test_particles_are_posed_in_any_batch_and_precision(finished: tuple[Path, Path], tmp_path: Path) -> None:
    star, output = finished
    infer = ["infer", str(output), str(star), "--device", "cpu", "--no-refine", "-o"]
    assert run([*infer, str(tmp_path / "poses.star")]) == 0
    assert run([*infer, str(tmp_path / "again.star"), "-b", "7"]) == 0
    found, again = (read_star(tmp_path / f"{name}.star") for name in ("poses", "again"))
    torch.testing.assert_close(star_poses(found).rotations, star_poses(again).rotations, atol=1e-4, rtol=0)
    assert not found.floats("rlnOriginXAngst").any()  # --shift-sigma 0: particles are centred
    for precision in ("bf16", "int8"):
        assert run([*infer, str(tmp_path / f"{precision}.star"), "--precision", precision]) == 0
        other = star_poses(read_star(tmp_path / f"{precision}.star")).rotations
        angles = rotation_angle_rad(star_poses(found).rotations, other)
        assert math.degrees(float(angles.median())) < 5


def test_its_generalization_is_bounded(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The training projections of the run, the bound, its terms and the held-out bound."""
    _, output = finished
    limits = ["--error-threshold", "30", "--device", "cpu"]
    assert run(["evaluate", "--bound", str(output), "-o", str(tmp_path), *limits]) == 0
    metrics = read_json(tmp_path / "bound.json")
    assert metrics["training"]["count"] == STEPS * BATCH
    assert 0 < metrics["training"]["error_rate"] < 0.9
    assert metrics["held_out"]["count"] == 10_000
    assert metrics["held_out"]["value"] == pytest.approx(metrics["held_out"]["error_rate"] + 0.0122, abs=1e-3)
    gap = metrics["held_out"]["error_rate"] - metrics["training"]["error_rate"]
    assert metrics["measured_gap"] == pytest.approx(gap)
    assert abs(gap) < 0.1  # projections of one distribution
    assert metrics["norm_based"]["is_vacuous"]
    assert [layer["name"] for layer in metrics["norm_based"]["layers"]] == ["layer 1", "layer 2", "layer 3", "head"]
    assert metrics["particles"]["held_out"]["count"] + metrics["particles"]["own_count"] == 200
    assert metrics["particles"]["own_error_rate"] < 0.9
    assert run(["evaluate", "--bound", str(tmp_path), *limits]) == 3


def test_what_cannot_be_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Bounds of what they are not derived for, integers of what cannot be exported, files of something else."""
    star, output = finished
    state = load_checkpoint(output / "encoder.pt", torch.device("cpu"))
    half = state["classes"][0]["halves"][0]
    box = 2 * (half["network"]["input"]["radius"] + 1)
    directions = half["network"]["network"]["directions"]

    def other(name: str, network: ViewNetwork | None) -> str:
        for each in state["classes"][0]["halves"]:
            given = None if network is None else {"network": network.state_dict(), "architecture": network.architecture}
            each["network"] = None if given is None else half_network | given
        save_checkpoint(tmp_path / name, state)
        return str(tmp_path / name)

    half_network = dict(half["network"])
    smooth = other("c8.pt", ViewNetwork("c8", box, directions, (64,)))
    assert run(["evaluate", "--bound", smooth, "--device", "cpu"]) == 2
    conditioned = other("ctf.pt", ViewNetwork("d4", box, directions, (64,), design=EncoderDesign("implicit_ctf")))
    words = [conditioned, str(star), "-o", str(tmp_path / "poses.star"), "--device", "cpu", "--no-refine"]
    assert run(["infer", *words]) == 0
    assert run(["infer", *words, "--precision", "int8"]) == 2
    slices = other("slices.pt", None)
    assert run(["evaluate", "--bound", slices, "--device", "cpu"]) == 3
    assert run(["infer", slices, *words[1:], "--precision", "int8"]) == 2
    (tmp_path / "encoder.pt").write_bytes(b"not an encoder")
    assert run(["infer", str(tmp_path), str(star), "-o", str(tmp_path / "no.star")]) == 3
    assert run(["infer", str(output), str(star), "-o", str(tmp_path / "no.star"), "--angpix", "9"]) == 3
    save_checkpoint(tmp_path / "older.pt", {"encoder": {}, "architecture": {}})  # of version 0.1
    assert run(["infer", str(tmp_path / "older.pt"), str(star), "-o", str(tmp_path / "no.star")]) == 3
    assert not (tmp_path / "no.star").exists()
