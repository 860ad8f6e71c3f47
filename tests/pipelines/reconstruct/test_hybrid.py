"""``--pose-inference hybrid`` by regression from end to end, on a tiny set."""

import math
from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import load_checkpoint, save_checkpoint
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.models.pose_encoder import EncoderDesign, PoseEncoder
from cryoeq.pipelines.infer import load_encoder
from cryoeq.training.synthetic.encoder_input import encoder_box_px

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_every_particle_is_posed_and_the_encoder_can_be_used_again(tmp_path: Path) -> None:
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms
    from phantoms import chiral_phantom

    write_map(tmp_path / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    simulated, output = tmp_path / "particles", tmp_path / "run"
    options = ["-n", "200", "--snr", "2", "--shift-sigma", "0", "--device", "cpu"]
    assert run(["simulate", str(tmp_path / "phantom.mrc"), "-o", str(simulated), *options]) == 0
    settings = {
        "search.initial_model.iterations": 30, "search.consensus.shells": "[6,7]",
        "search.initial_model.batch_size": 60, "hybrid.training_steps": 30, "hybrid.final_training_steps": 10,
        "hybrid.batch_size": 64, "hybrid.held_out": 0.2, "encoder.heads": 2, "encoder.channels": "[64]",
        "search.half_sets.iterations": 1, "hybrid.head": "regression",
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    star = str(simulated / "particles.star")
    assert run(
        ["reconstruct", star, "-o", str(output), "--pose-inference", "hybrid", "--shift-sigma", "0", *chosen]
    ) == 0  # fmt: skip
    posed = read_star(output / "run_data.star")
    assert len(posed.floats("rlnAngleRot")) == 200
    assert set(posed.particles["rlnRandomSubset"].tolist()) == {"1", "2"}
    confidence = posed.floats("rlnMaxValueProbDistribution")
    assert ((confidence > 0) & (confidence <= 1)).all()
    results = read_json(output / "job.json")["results"]
    assert 0 < results["held_out_median_deg"] < 180
    log = (output / "run.log").read_text()
    for said in ("Encoder, held-out particles (40)", "encoder training 30/30: ", "encoder fine-tuning 10/10: "):
        assert said in log

    estimator = load_encoder(output, torch.device("cpu"))
    assert estimator.pixel_size_angstrom * estimator.box_size_px == pytest.approx(80.0)
    assert estimator.encoder_input.is_centred
    bound_and_check(output, tmp_path)
    infer_and_check(output, simulated, tmp_path)


def bound_and_check(run_folder: Path, tmp_path: Path) -> None:
    """``cryoeq evaluate --bound``: the training projections of the run, the bound, its terms and the held-out bound."""
    out, limits = tmp_path / "bound", ["--error-threshold", "60", "--device", "cpu"]
    assert run(["evaluate", "--bound", str(run_folder), "-o", str(out), *limits]) == 0
    metrics = read_json(out / "bound.json")
    assert metrics["training"]["count"] == 10 * 64
    assert 0 < metrics["training"]["error_rate"] < 1
    assert metrics["held_out"]["count"] == 10_000
    assert metrics["held_out"]["value"] == pytest.approx(metrics["held_out"]["error_rate"] + 0.0122, abs=1e-3)
    gap = metrics["held_out"]["error_rate"] - metrics["training"]["error_rate"]
    assert metrics["measured_gap"] == pytest.approx(gap)
    assert abs(gap) < 0.1  # projections of one distribution
    assert metrics["norm_based"]["is_vacuous"]
    assert [layer["name"] for layer in metrics["norm_based"]["layers"]] == ["layer 1", "layer 2", "layer 3", "head"]
    assert metrics["particles"]["held_out"]["count"] == 40
    assert metrics["particles"]["searched_count"] == 160
    assert run(["evaluate", "--bound", str(tmp_path), *limits]) == 3
    state = load_checkpoint(run_folder / "encoder.pt", torch.device("cpu"))
    save_checkpoint(tmp_path / "old.pt", {key: value for key, value in state.items() if key != "training"})
    assert run(["evaluate", "--bound", str(tmp_path / "old.pt"), *limits]) == 3
    smooth = PoseEncoder("c8", encoder_box_px(state["radius"]), 2, (64,), trunk="dense", low_passes=False)
    unfit = {"encoder": smooth.state_dict(), "architecture": smooth.architecture}
    save_checkpoint(tmp_path / "c8.pt", state | unfit)
    assert run(["evaluate", "--bound", str(tmp_path / "c8.pt"), *limits]) == 2


def infer_and_check(run_folder: Path, simulated: Path, tmp_path: Path) -> None:
    """``cryoeq infer`` poses the same particles, whatever the batch; what does not fit the encoder is refused."""
    star, poses = simulated / "particles.star", tmp_path / "poses.star"
    assert run(["infer", str(run_folder), str(star), "-o", str(poses), "--device", "cpu"]) == 0
    found, given = read_star(poses), read_star(star)
    assert found.particles["rlnImageName"].tolist() == given.particles["rlnImageName"].tolist()
    probability = found.floats("rlnMaxValueProbDistribution")
    assert ((probability > 0) & (probability <= 1)).all()
    assert not found.floats("rlnOriginXAngst").any()  # --shift-sigma 0: particles are centred
    again = tmp_path / "again.star"
    assert run(["infer", str(run_folder / "encoder.pt"), str(star), "-o", str(again), "-b", "7"]) == 0
    torch.testing.assert_close(star_poses(found).rotations, star_poses(read_star(again)).rotations, atol=1e-4, rtol=0)

    for precision, largest_median_deg in (("bf16", 5.0), ("int8", 15.0)):
        words = ["-o", str(again), "--device", "cpu", "--precision", precision]
        assert run(["infer", str(run_folder), str(star), *words]) == 0
        angles = rotation_angle_rad(star_poses(found).rotations, star_poses(read_star(again)).rotations)
        assert 0 < math.degrees(float(angles.median())) < largest_median_deg
    conditioned = PoseEncoder("d4", encoder_box_px(6), 2, (64,), trunk="dense", design=EncoderDesign("implicit_ctf"))
    state = load_checkpoint(run_folder / "encoder.pt", torch.device("cpu"))
    unfit = {"encoder": conditioned.state_dict(), "architecture": conditioned.architecture, "radius": 6}
    weights = torch.ones(len(HalfPlane.up_to(encoder_box_px(6), 6)))
    save_checkpoint(tmp_path / "conditioned.pt", state | unfit | {"weights": weights})
    words = [str(tmp_path / "conditioned.pt"), str(star), "-o", str(again), "--device", "cpu"]
    assert run(["infer", *words]) == 0
    assert run(["infer", *words, "--precision", "int8"]) == 2

    assert run(["infer", str(run_folder), str(star), "-o", str(star)]) == 2
    assert run(["infer", str(tmp_path), str(star), "-o", str(tmp_path / "no.star")]) == 3
    assert run(["infer", str(run_folder), str(star), "-o", str(tmp_path / "no.star"), "--angpix", "9"]) == 3
    (tmp_path / "encoder.pt").write_bytes(b"not an encoder")
    assert run(["infer", str(tmp_path), str(star), "-o", str(tmp_path / "no.star")]) == 3
    assert not (tmp_path / "no.star").exists()
