"""Particles as a view network sees them: images at several offsets.

A particle is multiplied by its CTF, weighted shell by shell as a Wiener filter would, and cropped to the radius of the
comparison. So the network needs no CTF, and rotating or mirroring an image does to its CTF what it does to the
particle.

A network would have to learn every view at every offset. Instead it gets each particle at several offsets, a square
lattice, which quarter turns and mirrors map to itself. Views at all offsets are the components of one posterior.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.noise_model import noise_and_signal
from cryoeq.reconstruction.particle_transforms import ParticleTransforms


@dataclass(frozen=True)
class NetworkInput:
    """Preprocessing of particles for a view network.

    Args:
        plane: the coefficients, in the small box of the network.
        weights: factor of each coefficient, a Wiener weight over the standard deviation.
        box_size_px: box in whose pixels offsets are.
        offsets_px: offsets at which the network gets each particle.
        log_prior: of each offset.
    """

    plane: HalfPlane
    weights: Float[Tensor, " points"]
    box_size_px: int
    offsets_px: Float[Tensor, "offsets 2"]
    log_prior: Float[Tensor, " offsets"]

    @classmethod
    def from_map(
        cls,
        particles: ParticleTransforms,
        volume: Float[Tensor, "n n n"],
        radius: int,
        offsets_px: Float[Tensor, "offsets 2"],
        log_prior: Float[Tensor, " offsets"],
    ) -> "NetworkInput":
        """Wiener weights for the expected images of a map, scaled to unit variance.

        Args:
            particles: CTF-multiplied transforms, at the map's box.
            volume: map from which signal and noise are estimated.
            radius: largest spatial frequency, in cycles per box.
            offsets_px: offsets to try, in pixels of that box.
            log_prior: of each offset.
        """
        n = particles.plane.box_size_px
        subset = particles.within(radius, n)
        precision, signal = noise_and_signal(particles, volume, subset)
        weights = precision * signal.sqrt() / (1 + subset.ctf_squared.mean() * signal * precision)
        variance = (subset.ctf_multiplied * weights).abs().square().mean()
        plane = HalfPlane.up_to(network_box_px(radius), radius, volume.device)
        return cls(plane, weights / variance.sqrt(), n, offsets_px, log_prior)

    @property
    def radius(self) -> int:
        """Largest spatial frequency, in cycles per box."""
        return int(self.plane.last_radius)

    def images(self, ctf_multiplied: Complex[Tensor, "batch points"]) -> Float[Tensor, "batch m m"]:
        """Images for the network.

        Args:
            ctf_multiplied: coefficients of particles times their CTF, up to the radius.
        """
        return self.plane.images(ctf_multiplied * self.weights)

    def shifted_images(
        self, ctf_multiplied: Complex[Tensor, "batch points"], offsets: Int[Tensor, "batch offsets"]
    ) -> Float[Tensor, "pairs m m"]:
        """Images of each particle at some offsets, one for each pair.

        Args:
            ctf_multiplied: coefficients of particles times their CTF, up to the radius.
            offsets: indices into ``offsets_px`` for each particle.
        """
        moves = self.offsets_px[offsets.flatten()] * (self.plane.box_size_px / self.box_size_px)
        phases = shift_phases(-moves, self.plane.coords, self.plane.box_size_px)
        return self.images(ctf_multiplied.repeat_interleave(offsets.shape[1], 0) * phases)

    def nearest_offsets(self, shifts_px: Float[Tensor, "batch 2"]) -> Int[Tensor, " batch"]:
        """Index of the offset nearest to each shift."""
        return torch.cdist(shifts_px, self.offsets_px).argmin(1)

    @property
    def offsets_per_projection(self) -> int:
        """Offsets at which each training projection is used."""
        return 2 if len(self.offsets_px) > 1 else 1

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "radius": self.radius,
            "weights": self.weights.cpu(),
            "box_size_px": self.box_size_px,
            "offsets_px": self.offsets_px.cpu(),
            "log_prior": self.log_prior.cpu(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "NetworkInput":
        """What ``to_state`` gave, on a device."""
        plane = HalfPlane.up_to(network_box_px(state["radius"]), state["radius"], device)
        weights, offsets, prior = (state[key].to(device) for key in ("weights", "offsets_px", "log_prior"))
        return cls(plane, weights, state["box_size_px"], offsets, prior)


def network_box_px(radius: int) -> int:
    """Side of the images that just hold a radius, in the network's pixels."""
    return 2 * (radius + 1)
