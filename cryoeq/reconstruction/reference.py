"""Reference: a map prepared for comparison with particles, once per iteration."""

from dataclasses import dataclass

from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_MAX_PREPARED = 2  # maps of the two half sets


@dataclass(frozen=True)
class Reference:
    """A map in Fourier space, and the noise precision of the particles.

    Args:
        volume: densities (z, y, x).
        padded: oversampled transform of the map.
        precision: inverse noise variance of each coefficient, sorted by radius.
    """

    volume: Float[Tensor, "n n n"]
    padded: Complex[Tensor, "m m m"]
    precision: Float[Tensor, " points"]

    @classmethod
    def build(cls, volume: Float[Tensor, "n n n"], precision: Float[Tensor, " points"]) -> "Reference":
        """A map with noise of known precision."""
        return cls(volume, prepare_slices(volume), precision)

    @classmethod
    def prepare(cls, volume: Float[Tensor, "n n n"], particles: ParticleTransforms) -> "Reference":
        """A map, with the noise of the particles estimated from their residuals.

        Args:
            volume: map at the particles' box.
            particles: CTF-multiplied transforms of all particles.
        """
        padded = prepare_slices(volume)
        return cls(volume, padded, noise_precision([padded], particles))

    def weights(self, plane: HalfPlane) -> Float[Tensor, " points"]:
        """Inverse noise variance of each coefficient of a plane, times its multiplicity (2 for a Friedel pair)."""
        return self.precision[: len(plane)] * plane.weights


class References:
    """References of the maps in use, each prepared once: two successive iterations use the same map.

    Args:
        particles: CTF-multiplied transforms of all particles, from which the noise is estimated.
    """

    def __init__(self, particles: ParticleTransforms) -> None:
        self.particles = particles
        self.unscaled = particles  # keeps its sums over all particles, from which the noise is estimated
        self._prepared: list[Reference] = []

    def rescale(self, scale: Float[Tensor, " particles"]) -> None:
        """Give the particles other scales. The noise does not depend on them, so that what was prepared is kept.

        Args:
            scale: amplitude of each particle.
        """
        self.particles = self.unscaled.with_scale(scale)

    def of(self, volume: Float[Tensor, "n n n"]) -> Reference:
        """Reference of a map."""
        for reference in self._prepared:
            if reference.volume is volume:
                return reference
        reference = Reference.prepare(volume, self.unscaled)
        self._prepared = [*self._prepared[1 - _MAX_PREPARED :], reference]
        return reference

    def release(self) -> None:
        """Free all that was prepared, before other maps take the place of these."""
        self._prepared = []
