"""``--pose-inference hybrid`` from end to end, on a tiny set."""

from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.models.encoder import PoseEncoder

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_every_particle_is_posed_and_the_encoder_can_be_used_again(tmp_path: Path) -> None:
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms
    from cryoeq.simulation.phantom import chiral_phantom

    write_map(tmp_path / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    simulated, output = tmp_path / "particles", tmp_path / "run"
    options = ["-n", "200", "--snr", "2", "--shift-sigma", "0", "--device", "cpu"]
    assert run(["simulate", str(tmp_path / "phantom.mrc"), "-o", str(simulated), *options]) == 0
    settings = {
        "search.start_iterations": 30, "search.settled_shells": "[6,7]",
        "search.batch_size": 60, "hybrid.steps": 30, "hybrid.final_steps": 10,
        "hybrid.batch_size": 64, "hybrid.held_out": 0.2, "encoder.heads": 2, "encoder.channels": "[64]",
        "search.iterations": 1,
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

    stored = load_checkpoint(output / "encoder.pt", torch.device("cpu"))
    shape = stored["architecture"]
    encoder = PoseEncoder(
        shape["group"], stored["box_size_px"], shape["heads"], tuple(shape["channels"]), trunk=shape["trunk"],
        head=shape["head"], low_passes=shape["low_passes"],
    )  # fmt: skip
    encoder.load_state_dict(stored["encoder"])
    assert stored["pixel_size_angstrom"] * stored["box_size_px"] == pytest.approx(80.0)
    assert len(stored["weights"]) > 0
