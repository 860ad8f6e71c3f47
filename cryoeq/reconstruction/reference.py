"""Reference: a map prepared for comparison with particles, once per iteration."""

from dataclasses import dataclass

from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_HALF_SETS = 2


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
        max_prepared: maps that are kept prepared at a time: those of the two half sets, or one where memory counts.
    """

    def __init__(self, particles: ParticleTransforms, *, max_prepared: int = _HALF_SETS) -> None:
        self.particles = particles
        self.unscaled = particles  # keeps its sums over all particles, from which the noise is estimated
        self._max_prepared = max_prepared
        self._prepared: list[Reference] = []
        self._precisions: list[tuple[Tensor, Tensor]] = []

    def rescale(self, scale: Float[Tensor, " rows"], rows: Int[Tensor, " rows"]) -> None:
        """Give particles other scales. The noise does not depend on them, so that what was prepared is kept.

        Args:
            scale: amplitude of each.
            rows: the particles.
        """
        before = self.particles.scale
        scales = scale.new_ones(len(self.unscaled)) if before is None else before.clone()
        scales[rows] = scale
        self.particles = self.unscaled.with_scale(scales)

    def of(self, volume: Float[Tensor, "n n n"]) -> Reference:
        """Reference of a map."""
        for reference in self._prepared:
            if reference.volume is volume:
                return reference
        self._prepared = self._prepared[len(self._prepared) + 1 - self._max_prepared :]  # freed before the next
        precision = next((found for of, found in self._precisions if of is volume), None)
        if precision is None:
            reference = Reference.prepare(volume, self.unscaled)
            self._precisions = [*self._precisions[1 - _HALF_SETS :], (volume, reference.precision)]
        else:
            reference = Reference.build(volume, precision)
        self._prepared.append(reference)
        return reference

    def precision_of(self, volume: Float[Tensor, "n n n"]) -> Float[Tensor, " points"]:
        """Noise precision beside a map, which need not be prepared any more."""
        precision = next((found for of, found in self._precisions if of is volume), None)
        return self.of(volume).precision if precision is None else precision

    def release(self) -> None:
        """Free all that was prepared, before other maps take the place of these."""
        self._prepared, self._precisions = [], []
