"""Each part of the encoder's blocks can be chosen from the settings of ``cryoeq reconstruct``."""

from pathlib import Path

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.equivariance import (
    AdaptiveSampler,
    ConditionedConv,
    ImplicitBasis,
    InvertedResidual,
    RelaxedBasis,
    equivariance_penalty,
    learnt_degrees,
)
from cryoeq.errors import ConfigError
from cryoeq.pipelines.reconstruct.build_autoencoder import build_encoder
from cryoeq.pipelines.reconstruct.hybrid_views import network_settings


def config(encoder: dict[str, object] | None = None) -> ReconstructConfig:
    """The defaults with changes of the encoder's settings, keys dotted."""
    explicit = {f"encoder.{key}": value for key, value in (encoder or {}).items()}
    return load_config(ReconstructConfig, explicit={"particles": Path("none"), "output": Path("none")} | explicit)


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ({"design.kernel": "implicit", "design.trunk": "conv"}, ImplicitBasis),
        ({"design.kernel": "implicit_ctf"}, ConditionedConv),
        ({"design.trunk": "mobilenet"}, InvertedResidual),
        ({"design.degree": "learnt", "design.trunk": "conv", "group": "c4"}, RelaxedBasis),
        ({"design.degree": "learnt", "group": "so2"}, RelaxedBasis),
        ({"group": "so2", "design.sampler": "adaptive", "design.samples": 2}, AdaptiveSampler),
    ],
    ids=str,
)
def test_a_choice_makes_its_part(choice: dict[str, object], part: type) -> None:
    encoder = build_encoder(config(choice), 16)
    assert any(isinstance(module, part) for module in encoder.modules())
    assert not any(isinstance(module, part) for module in build_encoder(config(), 16).modules())
    assert encoder(torch.randn(4, 16, 16), torch.randn(4, 3)).rotations.isfinite().all()


@pytest.mark.parametrize("choice", [{"design.sampler": "adaptive"}, {"design.samples": 8, "group": "c8"}], ids=str)
def test_samples_of_a_finite_group_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="A finite group is evaluated on all its elements"):
        build_encoder(config(choice), 16)


@pytest.mark.parametrize("choice", [{"design.kernel": "implicit"}, {"design.trunk": "mobilenet"}], ids=str)
def test_a_learnt_degree_of_other_kernels_is_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="have a degree to learn"):
        build_encoder(config({"design.degree": "learnt"} | choice), 16)


def test_a_network_that_cannot_be_is_refused_before_the_search() -> None:
    """Its widths, and all that an encoder's blocks refuse."""
    chosen = {"pose_inference": "hybrid", "hybrid.posterior": "network", "particles": Path("a"), "output": Path("b")}
    fitting = load_config(ReconstructConfig, explicit=chosen | {"encoder.channels": (64,)})
    settings = network_settings(fitting, 32)
    assert settings is not None
    assert settings.channels == (64,)
    assert (
        network_settings(load_config(ReconstructConfig, explicit=chosen | {"hybrid.posterior": "slices"}), 32) is None
    )
    for wrong, found in (({"encoder.channels": (64, 64)}, "channels"), ({"encoder.design.samples": 3}, "finite group")):
        with pytest.raises(ConfigError, match=found):
            network_settings(load_config(ReconstructConfig, explicit=chosen | wrong), 32)


@pytest.mark.usefixtures("without_pictures")
def test_a_learnt_degree_is_reported(
    tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_training, "--set", "encoder.design.degree=learnt", "--set", "encoder.channels=[32]",
             "--set", "encoder.group=c4", "--pose-inference", "amortized"]  # fmt: skip
    assert run(["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path / "run"), *words]) == 0
    assert "Learnt equivariance, divergence from uniform of each layer" in capsys.readouterr().err


def test_strict_layers_cost_nothing_and_broken_ones_do() -> None:
    strict, learnt = (
        build_encoder(config({"design.degree": degree, "group": "c4"}), 16) for degree in ("strict", "learnt")
    )
    assert not learnt_degrees(strict)
    assert float(equivariance_penalty(strict)) == 0
    assert float(equivariance_penalty(learnt).detach()) == pytest.approx(0, abs=1e-6)
    for degree in learnt_degrees(learnt):
        degree.logit.data = -degree.values[0]
    assert float(equivariance_penalty(learnt).detach()) > 0.1, "the identity is the least likely element"


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("mode", ["amortized", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_an_encoder_with_filters_of_the_ctf_goes_through(
    mode: str, tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]
) -> None:
    settings = (
        "--set", "encoder.design.kernel=implicit_ctf", "--set", "encoder.channels=[64]",
        *(("--set", "hybrid.training_steps=4", "--set", "hybrid.batch_size=8",
           "--set", "search.initial_model.iterations=2", "--set", "search.multi_start.min=1",
           "--set", "search.consensus.max_extra_iterations=0",
           "--set", "hybrid.posterior=network", "--set", "hybrid.max_shell=6") if mode == "hybrid" else ()),
    )  # fmt: skip
    words = [*tiny_training, *settings, "--pose-inference", mode]
    assert run(["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path / "run"), *words]) == 0
    assert (tmp_path / "run" / "run_data.star").is_file()
