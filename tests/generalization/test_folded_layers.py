"""A folded network has the outputs of the network, and its layers may be scaled."""

import pytest
import torch
from benchmarks.bound import folded_outputs
from torch import Tensor

from cryoeq.generalization.folded_layers import FoldedNet, encoder_inputs, encoder_outputs, fold_encoder
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.models.pose_head import rotation_from_rows


def trained_encoder(group: str, *, low_passes: bool) -> tuple[PoseEncoder, Tensor]:
    """An encoder whose norms and biases have moved, and images."""
    torch.manual_seed(0)
    encoder = PoseEncoder(group, 16, 2, (32,), trunk="dense", low_passes=low_passes)
    images = 0.7 * torch.randn(24, 16, 16) + 0.3
    with torch.no_grad():
        for _ in range(5):
            encoder(images)
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder.eval(), images


@pytest.mark.parametrize("low_passes", [False, True])
@pytest.mark.parametrize("group", ["c1", "c2", "c4", "d1", "d2", "d4"])
def test_the_folded_net_is_the_encoder(group: str, low_passes: bool) -> None:
    encoder, images = trained_encoder(group, low_passes=low_passes)
    net = fold_encoder(encoder)
    with torch.no_grad():
        vectors, logits = encoder_outputs(encoder, images)
        proposals = encoder(images)
    assert torch.equal(logits, proposals.logits)
    assert torch.equal(rotation_from_rows(vectors), proposals.rotations)
    folded = folded_outputs(net, encoder_inputs(encoder, net, images))
    outputs = torch.cat([vectors.transpose(1, 2).flatten(1), logits], 1).double()
    torch.testing.assert_close(folded, outputs, atol=1e-5 * float(outputs.abs().max()), rtol=0)


def test_the_net_is_homogeneous_and_its_norms_bound_it() -> None:
    encoder, images = trained_encoder("d4", low_passes=False)
    net = fold_encoder(encoder)
    inputs = encoder_inputs(encoder, net, images)
    outputs = folded_outputs(net, inputs)
    torch.testing.assert_close(folded_outputs(net, 3 * inputs), 3 * outputs)
    norms = [max(block.spectral_norm for block in layer.blocks(net.group)) for layer in net.layers]
    assert (outputs.norm(dim=1) <= torch.tensor(norms).prod() * inputs.norm(dim=1)).all()
    assert_norms_are_those_of_the_matrices(net, norms)


def assert_norms_are_those_of_the_matrices(net: FoldedNet, norms: list[float]) -> None:
    whole = [float(torch.linalg.matrix_norm(layer.matrix, 2)) for layer in net.layers]
    assert norms == pytest.approx(whole, rel=1e-9)


def test_what_is_no_perceptron_is_refused() -> None:
    with pytest.raises(ValueError, match="convolutions"):
        fold_encoder(PoseEncoder("c4", 16, 1, (16, 32, 32, 64)))
    with pytest.raises(ValueError, match="the pixel grid does not serve"):
        fold_encoder(PoseEncoder("c8", 16, 1, (64,), trunk="dense"))
