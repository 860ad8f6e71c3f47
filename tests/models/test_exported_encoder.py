"""An exported encoder: the same numbers from plain tensors, whatever the trunk and the group."""

import pytest
import torch

from cryoeq.equivariance import plane_group
from cryoeq.models.export.exported_encoder import ExportedEncoder, export_encoder
from cryoeq.models.pose_encoder import EncoderDesign, PoseEncoder, TrunkKind


def with_running_statistics(
    group: str,
    trunk: TrunkKind,
    generator: torch.Generator,
    *,
    design: EncoderDesign | None = None,
) -> PoseEncoder:
    """In evaluation mode, with running statistics of random images and norms that do something."""
    torch.manual_seed(0)
    widths = (16, 32, 32, 128) if plane_group(group).is_grid_exact else (16, 32, 128)
    channels = (128,) if trunk == "dense" else widths
    encoder = PoseEncoder(group, 16, 2, channels, trunk=trunk, design=design)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "activation" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for _ in range(5):
            encoder(torch.randn(16, 16, 16, generator=generator) + 0.1)
    return encoder.eval()


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
def test_an_exported_encoder_gives_the_same_numbers(
    group: str, design: EncoderDesign, trunk: TrunkKind, generator: torch.Generator
) -> None:
    encoder = with_running_statistics(group, trunk, generator, design=design)
    exported = export_encoder(encoder)
    images = torch.randn(8, 16, 16, generator=generator)
    features = encoder.features(images)
    values = torch.cat([conv(features).flatten(1) for conv in encoder.head.maps()], 1)
    for _ in range(2):  # nothing is changed by a call
        torch.testing.assert_close(exported.network(images), values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported(images).logits, encoder(images).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(exported(images).shifts_px, encoder(images).shifts_px, atol=1e-5, rtol=0)


def test_an_exported_encoder_holds_plain_tensors_only(generator: torch.Generator) -> None:
    exported = export_encoder(with_running_statistics("d4", "mobilenet", generator))
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
        export_encoder(PoseEncoder(group, 16, 1, (64,), trunk="dense", design=design))


def test_a_wrong_box_is_refused(generator: torch.Generator) -> None:
    exported: ExportedEncoder = export_encoder(with_running_statistics("c1", "dense", generator))
    with pytest.raises(ValueError, match="images of 17 px for an encoder of 16 px"):
        exported(torch.zeros(1, 17, 17))
