"""Implicit decoder: the map as a network of Fourier coordinates, and the interface of all volume decoders.

The baseline on the same interface is in ``voxel_decoder``.
"""

import math
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoeq.geometry.fourier import HalfPlane, ifft_map

_CHUNK = 2**17


@runtime_checkable
class VolumeDecoder(Protocol):
    """A model of the map that gives its central slices; laws in tests/conformance/test_decoder.py."""

    def __call__(self, rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane) -> Complex[Tensor, "batch points"]:
        """Central slices at the given poses, without CTF and shift."""
        ...

    def to_map(self) -> Float[Tensor, "n n n"]:
        """The map in real space, axes (z, y, x)."""
        ...


class SineNetwork(nn.Module):
    """A perceptron with sine activations (SIREN) from coordinates in [-1, 1]^3 to two numbers.

    Args:
        width: number of units of each hidden layer.
        hidden_layers: number of hidden layers.
        omega: frequency factor of every layer; larger reaches finer detail.
        generator: random number generator of the initial weights.

    Sitzmann et al. 2020, Implicit Neural Representations with Periodic Activation Functions, section 3.2
    (initialisation).
    """

    def __init__(self, width: int, hidden_layers: int, omega: float, generator: torch.Generator) -> None:
        super().__init__()
        self.omega = omega
        widths = [3, *[width] * hidden_layers, 2]
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        for index, layer in enumerate(layers):
            bound = 1 / 3 if index == 0 else math.sqrt(6 / layer.in_features) / omega
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, coordinates: Float[Tensor, "points 3"]) -> Float[Tensor, "points 2"]:
        """Two outputs per coordinate."""
        values = coordinates
        for layer in self.layers[:-1]:
            values = torch.sin(self.omega * layer(values))
        output: Tensor = self.layers[-1](values)
        return output


class ImplicitDecoder(nn.Module):
    """The transform of the map as a network of spatial frequency: exp(envelope) times modulant, Friedel-symmetric.

    Two sine networks of k in [-1, 1]^3 (Nyquist at 1): the envelope spans the orders of magnitude of a protein's
    spectrum, the modulant its phases. The map is real because::

        V(k) = (N(k) + conj N(-k)) / 2

    Args:
        box_size_px: side of the map in pixels.
        generator: random number generator of the initial weights.
        width: number of units of each hidden layer of both networks.
        start_scale: initial factor on the output, small against the signal.

    After the FourierNet of Levy et al. 2022, CryoAI (ECCV); Friedel symmetry by construction is ours.
    """

    def __init__(
        self, box_size_px: int, generator: torch.Generator, *, width: int = 64, start_scale: float = 0.1
    ) -> None:
        super().__init__()
        self.box_size_px = box_size_px
        self.modulant = SineNetwork(width, 3, 40.0, generator)
        self.envelope = SineNetwork(width, 2, 30.0, generator)
        self.log_scale = nn.Parameter(torch.tensor(math.log(start_scale)))

    def transform(self, frequencies: Float[Tensor, "points 3"]) -> Complex[Tensor, " points"]:
        """The map's transform at (kx, ky, kz) in cycles per box, scaled as by ``fft_map``."""
        k = frequencies * (2 / self.box_size_px)
        both = torch.cat([k, -k])
        real, imag = (torch.exp(self.envelope(both) + self.log_scale) * self.modulant(both)).unbind(-1)
        (real, real_mate), (imag, imag_mate) = real.chunk(2), imag.chunk(2)
        return torch.complex((real + real_mate) / 2, (imag - imag_mate) / 2)

    def forward(self, rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane) -> Complex[Tensor, "batch points"]:
        """Central slices of the map at the given poses."""
        k = plane.coords.to(rotations.dtype) @ rotations[:, :2]  # A^T (kx, ky, 0), as rows
        return self.transform(k.flatten(0, 1)).unflatten(0, k.shape[:2])

    @torch.no_grad()
    def to_map(self) -> Float[Tensor, "n n n"]:
        """The map in real space, from its transform inside the Nyquist sphere."""
        n = self.box_size_px
        device, dtype = self.log_scale.device, self.log_scale.dtype
        axis = torch.arange(n, device=device, dtype=dtype) - n // 2
        kz, ky, kx = torch.meshgrid(axis, axis, axis, indexing="ij")
        k = torch.stack([kx, ky, kz], -1).reshape(-1, 3)
        inside = (k.norm(dim=-1) <= (n - 1) / 2).nonzero().squeeze(1)
        full = torch.zeros(n**3, dtype=dtype.to_complex(), device=device)
        full[inside] = torch.cat([self.transform(chunk) for chunk in k[inside].split(_CHUNK)])
        return ifft_map(full.view(n, n, n))
