"""A trained encoder as a file: read as it was written, also by a later version."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.errors import CheckpointError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.pipelines.infer import load_encoder
from cryoeq.training.synthetic.encoder_input import EncoderInput, encoder_box_px
from cryoeq.training.synthetic.pose_estimator import PoseEstimator

CPU = torch.device("cpu")
RADIUS, BOX = 5, 16


@pytest.fixture
def estimator(generator: torch.Generator) -> PoseEstimator:
    torch.manual_seed(0)
    side = encoder_box_px(RADIUS)
    encoder = PoseEncoder("c4", side, 2, (32,), trunk="dense", low_passes=False).eval()
    plane = HalfPlane.up_to(side, RADIUS)
    weights, offsets = torch.rand(len(plane), generator=generator), torch.tensor([[0.0, 0.0], [1.5, 0.0]])
    return PoseEstimator(encoder, EncoderInput(plane, weights, BOX / side, offsets, False), RADIUS, BOX, 4.0, False)


def assert_same(first: PoseEstimator, second: PoseEstimator, generator: torch.Generator) -> None:
    assert (first.radius, first.box_size_px, first.pixel_size_angstrom) == (RADIUS, BOX, 4.0)
    assert torch.equal(first.encoder_input.weights, second.encoder_input.weights)
    assert torch.equal(first.encoder_input.offsets_px, second.encoder_input.offsets_px)
    images = torch.randn(4, encoder_box_px(RADIUS), encoder_box_px(RADIUS), generator=generator)
    for ours, theirs in zip(first.encoder(images).tensors(), second.encoder(images).tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_gives_the_encoder_back(tmp_path: Path, estimator: PoseEstimator, generator: torch.Generator) -> None:
    for diameter in (None, 50.0):
        save_checkpoint(tmp_path / "encoder.pt", replace(estimator, particle_diameter_angstrom=diameter).to_state())
        loaded = load_encoder(tmp_path, CPU)
        assert_same(loaded, estimator, generator)
        assert loaded.particle_diameter_angstrom == diameter


def test_a_file_of_version_0_1_is_read(tmp_path: Path, estimator: PoseEstimator, generator: torch.Generator) -> None:
    state = estimator.to_state()
    state["trials_px"] = state.pop("offsets_px")
    del state["particle_diameter_angstrom"]
    state["architecture"] = {**state["architecture"], "head": "rows"}
    save_checkpoint(tmp_path / "encoder.pt", state)
    assert_same(load_encoder(tmp_path, CPU), estimator, generator)


def test_a_head_that_is_gone_is_refused(tmp_path: Path, estimator: PoseEstimator) -> None:
    state = estimator.to_state()
    state["architecture"] = {**state["architecture"], "head": "columns"}
    save_checkpoint(tmp_path / "encoder.pt", state)
    with pytest.raises(CheckpointError, match=r"encoder\.pt.*encoder\.head=columns of version 0\.1 is gone"):
        load_encoder(tmp_path, CPU)
