"""A folded network has the logits of the network, and its layers may be scaled."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.generalization.folded_layers import FoldedNet, fold_network, network_inputs
from cryoeq.geometry.so3 import random_rotations
from cryoeq.models.view_network import ViewNetwork

VIEWS = random_rotations(20, torch.Generator().manual_seed(3))[:, 2]


def trained_network(group: str, *, low_passes: bool) -> tuple[ViewNetwork, Tensor]:
    """A network whose norms and biases have moved, and images."""
    torch.manual_seed(0)
    network = ViewNetwork(group, 16, VIEWS, (32,), low_passes=low_passes)
    images = 0.7 * torch.randn(24, 16, 16) + 0.3
    with torch.no_grad():
        for _ in range(5):
            network(images)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval(), images


def outputs_of(network: ViewNetwork, net: FoldedNet, inputs: Tensor) -> Tensor:
    """Logits of the folded net: its layers with ReLU between them, and the invariants before the last."""
    *layers, head = net.layers
    for layer in layers:
        inputs = (inputs @ layer.matrix.T).relu()
    fields, constant = inputs[:, :-1], inputs[:, -1:]
    invariants = invariants_of(network, fields, 1e-3 * constant / net.constant)
    return torch.cat([invariants, constant], 1) @ head.matrix.T


def invariants_of(network: ViewNetwork, fields: Tensor, least: Tensor) -> Tensor:
    """What is invariant, and norms of the other irreps over the root of their dimension."""
    parts = network.group.irrep_spans("hidden")
    values = fields.unflatten(1, (-1, network.fields))
    found = [network.group.invariants("hidden").double() @ values]
    for span in parts:
        basis = span.basis.double()
        if float((network.group.invariants("hidden").double() @ basis).norm()) < 0.5:
            norms = (basis.T @ values).norm(dim=1, keepdim=True) / math.sqrt(basis.shape[1])
            found.append((norms.square() + least[..., None].square()).sqrt())
    return torch.cat(found, 1).flatten(1)


@pytest.mark.parametrize("low_passes", [False, True])
@pytest.mark.parametrize("group", ["c1", "c2", "c4", "d1", "d2", "d4"])
def test_the_folded_net_is_the_network(group: str, low_passes: bool) -> None:
    network, images = trained_network(group, low_passes=low_passes)
    net = fold_network(network)
    with torch.no_grad():
        logits = network(images).double()
    folded = outputs_of(network, net, network_inputs(network, net, images))
    torch.testing.assert_close(folded, logits, atol=1e-5 * float(logits.abs().max()), rtol=0)


@pytest.mark.parametrize("group", ["c1", "d4"])
def test_the_net_is_homogeneous_and_its_norms_bound_it(group: str) -> None:
    network, images = trained_network(group, low_passes=False)
    net = fold_network(network)
    inputs = network_inputs(network, net, images)
    outputs = outputs_of(network, net, inputs)
    torch.testing.assert_close(outputs_of(network, net, 3 * inputs), 3 * outputs)
    norms = [max(block.spectral_norm for block in layer.blocks(net.group)) for layer in net.layers]
    assert (outputs.norm(dim=1) <= torch.tensor(norms).prod() * inputs.norm(dim=1)).all()
    assert_norms_are_those_of_the_matrices(net, norms)


@pytest.mark.parametrize("group", ["c1", "c4", "d2", "d4"])
def test_invariants_are_no_further_apart_than_the_fields(group: str, generator: torch.Generator) -> None:
    """What the bound needs of them beside homogeneity."""
    network, _ = trained_network(group, low_passes=False)
    count = network.fields * network.group.dim("hidden")
    first, second = torch.randn(2, 300, count, dtype=torch.float64, generator=generator)
    second = torch.cat([second[:150], first[150:] + 1e-3 * second[150:]])
    least = torch.full((300, 1), 1e-3, dtype=torch.float64)
    apart = (invariants_of(network, first, least) - invariants_of(network, second, least)).norm(dim=1)
    assert (apart <= (first - second).norm(dim=1) * (1 + 1e-9)).all()
    ours = network.invariants(first[..., None, None].float())
    torch.testing.assert_close(ours.double(), invariants_of(network, first, least), atol=1e-5, rtol=1e-5)


def assert_norms_are_those_of_the_matrices(net: FoldedNet, norms: list[float]) -> None:
    whole = [float(torch.linalg.matrix_norm(layer.matrix, 2)) for layer in net.layers]
    assert norms == pytest.approx(whole, rel=1e-9)


def test_what_is_no_perceptron_is_refused() -> None:
    with pytest.raises(ValueError, match="convolutions"):
        fold_network(ViewNetwork("c4", 16, VIEWS, (16, 32, 32, 64), trunk="conv"))
    with pytest.raises(ValueError, match="the pixel grid does not serve"):
        fold_network(ViewNetwork("c8", 16, VIEWS, (64,)))
