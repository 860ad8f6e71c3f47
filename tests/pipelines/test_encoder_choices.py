"""Each part of the encoder's blocks can be chosen from the settings of ``cryoeq reconstruct``."""

from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.equivariance import AdaptiveSampler, ConditionedConv, ImplicitBasis, InvertedResidual
from cryoeq.errors import ConfigError
from cryoeq.pipelines.build_training import build_encoder


def config(**encoder: object) -> ReconstructConfig:
    return ReconstructConfig.model_validate({"particles": "none", "output": "none", "encoder": encoder})


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ({"kernel": "implicit", "trunk": "conv"}, ImplicitBasis),
        ({"kernel": "implicit_ctf"}, ConditionedConv),
        ({"trunk": "mobilenet"}, InvertedResidual),
        ({"group": "so2", "sampler": "adaptive", "samples": 2}, AdaptiveSampler),
    ],
    ids=str,
)
def test_a_choice_makes_its_part(choice: dict[str, object], part: type) -> None:
    encoder = build_encoder(config(**choice), 16)
    assert any(isinstance(module, part) for module in encoder.modules())
    assert not any(isinstance(module, part) for module in build_encoder(config(), 16).modules())
    assert encoder(torch.randn(4, 16, 16), torch.randn(4, 3)).rotations.isfinite().all()


@pytest.mark.parametrize("choice", [{"sampler": "adaptive"}, {"samples": 8, "group": "c8"}], ids=str)
def test_samples_of_a_finite_group_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a finite group is evaluated on all its elements"):
        build_encoder(config(**choice), 16)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("mode", ["amortized", "hybrid"])
def test_an_encoder_that_knows_the_ctf_goes_through(
    mode: str, tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]
) -> None:
    settings = (
        "--set", "encoder.kernel=implicit_ctf", "--set", "encoder.channels=[64]",
        *(("--set", "hybrid.steps=4", "--set", "hybrid.final_steps=2", "--set", "hybrid.batch_size=8",
           "--set", "search.start_iterations=2", "--set", "search.starts=1", "--set", "search.further_iterations=0",
           "--set", "hybrid.shell=6", "--set", "hybrid.iterations=1") if mode == "hybrid" else ()),
    )  # fmt: skip
    words = [*tiny_training, *settings, "--pose-inference", mode]
    assert run(["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path / "run"), *words]) == 0
    assert (tmp_path / "run" / "run_data.star").is_file()
