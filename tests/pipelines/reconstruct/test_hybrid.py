"""``--pose-inference hybrid`` from end to end, on a tiny set."""

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
        "search.half_sets.iterations": 1,
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
    assert "40 held-out particles" in (output / "run.log").read_text()

    taught = load_encoder(output, torch.device("cpu"))
    assert taught.pixel_size_angstrom * taught.box_size_px == pytest.approx(80.0)
    assert taught.view.is_centred
    bound_and_check(output, tmp_path)
    infer_and_check(output, simulated, tmp_path)
    screen_and_check(output, tmp_path / "screening")


def screen_and_check(run_folder: Path, output: Path) -> None:
    """``cryoeq screen --graph embeddings``: another graph than that of the poses, and other scores."""
    columns = {}
    for graph in ("poses", "embeddings"):
        options = ["--scorer", "graph", "--graph", graph, "-o", str(output / graph)]
        assert run(["screen", str(run_folder), *options]) == 0
        columns[graph] = read_star(output / graph / "screened.star").floats("rlnParticleSelectZScore")
        assert read_json(output / graph / "screening.json")["particles"]["graph"] == graph
    assert not (columns["poses"] == columns["embeddings"]).all()


def bound_and_check(run_folder: Path, tmp_path: Path) -> None:
    """``cryoeq evaluate --bound``: training projections of the run, norm-based and held-out bound."""
    out, limits = tmp_path / "bound", ["--error-threshold", "60", "--device", "cpu"]
    assert run(["evaluate", "--bound", str(run_folder), "-o", str(out), *limits]) == 0
    figures = read_json(out / "bound.json")
    assert figures["training"]["count"] == 10 * 64
    assert 0 < figures["training"]["error_rate"] < 1
    assert figures["held_out"]["count"] == 10_000
    assert figures["held_out"]["value"] == pytest.approx(figures["held_out"]["error_rate"] + 0.0122, abs=1e-3)
    gap = figures["held_out"]["error_rate"] - figures["training"]["error_rate"]
    assert figures["measured_gap"] == pytest.approx(gap)
    assert abs(gap) < 0.1  # renderings that differ in nothing but chance
    assert figures["norm_based"]["is_vacuous"]
    assert [layer["name"] for layer in figures["norm_based"]["layers"]] == ["layer 1", "layer 2", "layer 3", "head"]
    assert figures["particles"]["held_out"]["count"] == 40
    assert figures["particles"]["searched_count"] == 160
    assert run(["evaluate", "--bound", str(tmp_path), *limits]) == 3
    state = load_checkpoint(run_folder / "encoder.pt", torch.device("cpu"))
    save_checkpoint(tmp_path / "old.pt", {key: value for key, value in state.items() if key != "course"})
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
    assert not found.floats("rlnOriginXAngst").any()  # the run was told that particles are centred
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
