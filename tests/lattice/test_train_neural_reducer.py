"""Training of the neural reducer: its file loads, one seed gives one network, and its noise is logistic."""

import math
from pathlib import Path

import pytest
import torch

from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.lattice.neural_reducer import NeuralReducer, ReductionNetwork, load_reducer, network_from_checkpoint
from cryoeq.lattice.train_neural_reducer import (
    ReductionTraining,
    held_out_defects,
    log_probability,
    main,
    random_bases,
    train,
)


def test_training_writes_a_reducer_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["3", "-o", str(tmp_path / "n3.pt"), "--steps", "2", "--seed", "7"])
    printed = capsys.readouterr().out
    network = network_from_checkpoint(load_checkpoint(tmp_path / "n3.pt", torch.device("cpu")))
    assert float(network.out.weight.detach().abs().max()) > 0  # it starts at zero
    for name, defect in held_out_defects(network, 3, 7).items():
        assert f"{name:<14}{defect:.4f}" in printed


def test_one_seed_gives_one_network(generator: torch.Generator) -> None:
    networks = []
    for _ in range(2):
        seeded = torch.Generator().manual_seed(11)
        network = ReductionNetwork(4, 2, seeded)
        assert len(list(train(network, ReductionTraining(3, steps=2, batch_size=32, samples=4), seeded))) == 2
        networks.append(network)
    basis = random_bases(20, 3, generator)
    assert torch.equal(NeuralReducer(networks[0])(basis), NeuralReducer(networks[1])(basis))
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_shipped_networks_are_no_worse_than_rounding_alone() -> None:
    for n in (2, 3):
        network = load_reducer(n).network
        assert network is not None
        defects = held_out_defects(network, n, 0)
        assert defects["neural"] <= defects["rounding only"] < defects["unreduced"]


def test_probabilities_are_those_of_rounded_logistic_noise(generator: torch.Generator) -> None:
    integers = torch.arange(-30.0, 31.0)[:, None].expand(-1, 3)
    centre = torch.tensor([0.0, 0.4, -1.7])
    assert log_probability(integers, centre, 0.25).exp().sum(0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    uniform = torch.rand(20_000, 1, generator=generator).clamp(1e-6, 1 - 1e-6)
    sampled = (centre + 0.25 * torch.logit(uniform)).round()
    for value in (-2.0, 0.0, 1.0):
        expected = log_probability(torch.full((1, 3), value), centre, 0.25).exp()[0]
        for frequency, probability in zip((sampled == value).float().mean(0).tolist(), expected.tolist(), strict=True):
            assert abs(frequency - probability) < 5 * math.sqrt(probability * (1 - probability) / 20_000) + 1e-4
