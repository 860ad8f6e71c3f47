"""An exported network: the same numbers from plain tensors, whatever the trunk and the group."""

import pytest
import torch

from cryoeq.equivariance import plane_group
from cryoeq.geometry.so3 import random_rotations
from cryoeq.models.export.exported_network import ExportedNetwork, export_network
from cryoeq.models.pose_encoder import EncoderDesign, TrunkKind
from cryoeq.models.view_network import ViewNetwork

VIEWS = random_rotations(12, torch.Generator().manual_seed(5))[:, 2]


def with_running_statistics(
    group: str,
    trunk: TrunkKind,
    generator: torch.Generator,
    *,
    design: EncoderDesign | None = None,
) -> ViewNetwork:
    """In evaluation mode, with running statistics of random images and norms that do something."""
    torch.manual_seed(0)
    widths = (16, 32, 32, 128) if plane_group(group).is_grid_exact else (16, 32, 128)
    channels = (128,) if trunk == "dense" else widths
    network = ViewNetwork(group, 16, VIEWS, channels, trunk=trunk, low_passes=True, design=design)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "activation" in name or name.startswith("norm"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for _ in range(5):
            network(torch.randn(16, 16, 16, generator=generator) + 0.1)
    return network.eval()


@pytest.mark.parametrize("trunk", ["conv", "dense", "mobilenet"])
@pytest.mark.parametrize(
    ("group", "design"),
    [
        ("c1", EncoderDesign()),
        ("c8", EncoderDesign()),
        ("d4", EncoderDesign()),
        ("d4", EncoderDesign("implicit")),
        ("so2", EncoderDesign()),
        ("so2", EncoderDesign(samples=16)),
    ],
    ids=str,
)
@torch.no_grad()
def test_an_exported_network_gives_the_same_numbers(
    group: str, design: EncoderDesign, trunk: TrunkKind, generator: torch.Generator
) -> None:
    network = with_running_statistics(group, trunk, generator, design=design)
    exported = export_network(network)
    images = torch.randn(8, 16, 16, generator=generator)
    expected = network(images)
    for _ in range(2):  # nothing is changed by a call
        torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.std(0).min() > 1e-3  # they depend on the image


def test_an_exported_network_holds_plain_tensors_only(generator: torch.Generator) -> None:
    exported = export_network(with_running_statistics("d4", "mobilenet", generator))
    assert not list(exported.parameters())
    kinds = {type(module).__module__ for module in exported.modules()}
    assert not any("equivariance" in kind for kind in kinds)
    program = torch.export.export(exported.network, (torch.zeros(2, 16, 16),)).module()
    images = torch.randn(2, 16, 16, generator=generator)
    torch.testing.assert_close(program(images), exported.network(images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("group", "design", "reason"),
    [
        ("d4", EncoderDesign("implicit_ctf"), "filters depend on the CTF"),
        ("so2", EncoderDesign(sampler="adaptive"), "samples of the group depend on the image"),
    ],
)
def test_what_depends_on_the_particle_is_refused(group: str, design: EncoderDesign, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        export_network(ViewNetwork(group, 16, VIEWS, (64,), design=design))


def test_a_wrong_box_is_refused(generator: torch.Generator) -> None:
    exported: ExportedNetwork = export_network(with_running_statistics("c1", "dense", generator))
    with pytest.raises(ValueError, match="images of 17 px for a network of 16 px"):
        exported(torch.zeros(1, 17, 17))
