"""A view network in place of the slices of a view encoder: its posterior over views, in several precisions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.models.export.exported_network import export_network
from cryoeq.models.export.quantized_network import quantize_network
from cryoeq.models.view_network import ViewNetwork
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.training.views.network_input import NetworkInput, network_box_px
from cryoeq.training.views.network_projections import ProjectionSource

Precision = Literal["fp32", "bf16", "int8"]
_MAX_PIXELS = 2**21  # in one forward pass: 4,332 images of 22 px


class _InBfloat16(nn.Module):
    """A network in bf16 with inputs and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch out"]:
        outputs: Tensor = self.network(images.to(torch.bfloat16))
        return outputs.float()


@dataclass(frozen=True)
class NetworkViews:
    """A trained network with its preprocessing.

    Args:
        network: in evaluation mode.
        network_input: preprocessing of particles for it.
        source: projections of its training.
        exported: network that runs in its place; None for the network itself.
    """

    network: ViewNetwork
    network_input: NetworkInput
    source: ProjectionSource
    exported: nn.Module | None = None

    @torch.no_grad()
    def logits(self, particles: ParticleTransforms) -> Float[Tensor, "particles views offsets"]:
        """Logits of views at all offsets of the lattice: components of one posterior, up to a constant.

        Args:
            particles: particles up to the radius of the network or further, whose box is as wide in Angstrom.
        """
        given, network = self.network_input, self.exported or self.network
        images, features = particles.ctf_multiplied[:, : len(given.plane)], particles.ctf_features
        offsets = torch.arange(len(given.offsets_px), device=particles.device)
        size = max(1, _MAX_PIXELS // (given.plane.box_size_px**2 * len(offsets)))
        parts = []
        for rows in torch.arange(len(particles), device=particles.device).split(size):
            some = None if features is None else features[rows].repeat_interleave(len(offsets), 0)
            values: Tensor = network(given.shifted_images(images[rows], offsets.expand(len(rows), -1)), some)
            parts.append(values.unflatten(0, (len(rows), -1)).transpose(1, 2) + given.log_prior)
        return torch.cat(parts)

    def in_precision(self, precision: Precision, sample: ParticleTransforms) -> "NetworkViews":
        """The same network as plain tensors, which run faster, and in fewer bits.

        Args:
            precision: "fp32"; "bf16" pays on processors and devices that multiply it, "int8" on CPUs.
            sample: some hundred typical particles, for the ranges of 8 bits.

        Raises:
            ValueError: this network cannot run in that precision; see ``export_network`` and ``quantize_network``.
        """
        if precision == "int8":
            given = self.network_input
            rows = torch.arange(len(sample), device=sample.device)[:, None] % len(given.offsets_px)
            images = given.shifted_images(sample.ctf_multiplied[:, : len(given.plane)], rows)
            return replace(self, exported=quantize_network(self.network, images))
        exported = export_network(self.network)
        if precision == "bf16":
            exported.network = _InBfloat16(exported.network.to(torch.bfloat16))
        return replace(self, exported=exported)

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        weights = {name: values.detach().cpu() for name, values in self.network.state_dict().items()}
        return {
            "network": weights,
            "architecture": self.network.architecture,
            "input": self.network_input.to_state(),
            "training": self.source.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], volume: Float[Tensor, "n n n"]) -> "NetworkViews":
        """What ``to_state`` gave, on the device of the map.

        Args:
            state: what ``to_state`` gave.
            volume: the map, in the box of the comparison.

        Raises:
            KeyError: something is missing.
            RuntimeError: the weights do not fit the architecture.
            ValueError: the network is of a design that this version does not have.
        """
        given = NetworkInput.from_state(state["input"], volume.device)
        architecture, box = state["architecture"], network_box_px(given.radius)
        network = ViewNetwork(box_size_px=box, directions=state["network"]["directions"].cpu(), **architecture)
        network.load_state_dict(state["network"])
        source = ProjectionSource.from_state(state["training"], volume)
        return cls(network.to(volume.device).eval(), given, source)
