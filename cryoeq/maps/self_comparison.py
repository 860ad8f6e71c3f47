"""Comparison of a map with its rotated or mirrored copies about a centre that is not known, in Fourier space.

Shells are weighted by one over their amplitude. By their plain power the few innermost ones, where all molecules look
alike, would decide alone; white shells would let the noise decide.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.physics.projection import prepare_slices

_PADDING = 2
_MASS_RADIUS = 4
_PEAK_DISTANCE = 0.3  # between the matrices of elements: a tilt of the axis by about 6 degrees
_ROWS_PER_PEAK = 32


@dataclass(frozen=True)
class Placement:
    """Elements of a group rotated by T (g -> T g T^-1) about a centre, with their mean correlation.

    Args:
        row: row of the search grid from which the rotation started.
        frame: T.
        centre: fixed by all elements, (x, y, z) from voxel n // 2 in units of the box.
        score: the mean correlation.
    """

    row: int
    frame: Float[Tensor, "3 3"]
    centre: Float[Tensor, " 3"]
    score: float


@dataclass(frozen=True)
class SelfComparison:
    """A map up to a radius in Fourier space, ready to be compared with its rotated or mirrored copies.

    Args:
        coords: (x, y, z) of each coefficient with x >= 0, in cycles per box.
        weights: one over the amplitude of the coefficient's shell.
        reference: coefficients of the map.
        padded: oversampled transform of the map; real and imaginary part.
    """

    coords: Float[Tensor, "points 3"]
    weights: Float[Tensor, " points"]
    reference: Complex[Tensor, " points"]
    padded: Float[Tensor, "2 m m m"]

    @classmethod
    def from_map(cls, volume: Volume, largest_radius: int) -> "SelfComparison":
        """The map up to that radius or Nyquist.

        Args:
            volume: map, its molecule inside the sphere that fits into the box.
            largest_radius: last shell.
        """
        radius = min(largest_radius, volume.box_size_px // 2 - 1)
        # Two spare shells: trilinear sampling at the rim looks one padded coefficient further out.
        low = _low_resolution(volume.values.float(), 2 * (radius + 2))
        padded = torch.view_as_real(prepare_slices(low, _PADDING)).movedim(-1, 0).contiguous()
        k = torch.arange(-radius, radius + 1, device=low.device)
        z, y, x = torch.meshgrid(k, k, k[radius:], indexing="ij")
        squared = x**2 + y**2 + z**2
        inside = (squared > 0) & (squared <= radius**2)
        coords = torch.stack([x[inside], y[inside], z[inside]], -1).to(low)
        reference = _sample(padded, coords)
        shells = _shells(coords)
        power = torch.bincount(shells, reference.abs().square()) / torch.bincount(shells).clamp(min=1)
        weights = power.clamp(min=torch.finfo(power.dtype).tiny).rsqrt()[shells]
        return cls(coords, weights.to(low), reference, padded)

    def rotated(
        self, elements: Float[Tensor, "elements 3 3"], centre: Float[Tensor, " 3"]
    ) -> Complex[Tensor, "elements points"]:
        """Coefficients of the map's copy at g (r - c) + c, for each g."""
        rotated = _sample(self.padded, self.coords @ elements)
        angles = (centre - elements @ centre) @ self.coords.T * (-2 * math.pi)
        return rotated * torch.polar(torch.ones_like(angles), angles)

    def correlations(
        self, elements: Float[Tensor, "elements 3 3"], centre: Float[Tensor, " 3"]
    ) -> Float[Tensor, " elements"]:
        """Correlation of the map with its copy at g (r - c) + c, for each g."""
        rotated = self.rotated(elements, centre)
        cross = (rotated.real * self.reference.real + rotated.imag * self.reference.imag) @ self.weights
        powers = (rotated.real.square() + rotated.imag.square()) @ self.weights
        reference_power = self.reference.abs().square() @ self.weights
        return cross / (powers * reference_power).clamp(min=torch.finfo(powers.dtype).tiny).sqrt()

    def shell_correlations(
        self, other: "SelfComparison", elements: Float[Tensor, "elements 3 3"], centre: Float[Tensor, " 3"]
    ) -> Float[Tensor, "elements shells"]:
        """Fourier shell correlation of another map with this one's copy at g (r - c) + c, for each g; 1 in shell 0.

        Args:
            other: map in the same frame, up to the same radius, such as the other half map.
            elements: rotations g.
            centre: c, in units of the box.
        """
        rotated, shells = self.rotated(elements, centre), _shells(self.coords)

        def sums(values: Float[Tensor, "rows points"]) -> Float[Tensor, "rows shells"]:
            return values.new_zeros(len(values), int(shells.max()) + 1).index_add(1, shells, values)

        cross = sums(rotated.real * other.reference.real + rotated.imag * other.reference.imag)
        powers = sums(rotated.abs().square()) * sums(other.reference.abs().square()[None])
        correlations = cross / powers.clamp(min=torch.finfo(powers.dtype).tiny).sqrt()
        correlations[:, 0] = 1.0
        return correlations


def centre_of_mass(volume: Volume) -> Float[Tensor, " 3"]:
    """Centre of the squared density at low resolution, in units of the box: squares suppress the noise.

    Args:
        volume: map, its molecule inside the sphere that fits into the box.

    Raises:
        MapFileError: a map without contrast.
    """
    low = _low_resolution(volume.values.float(), 2 * _MASS_RADIUS)
    mass = low.clamp(min=0).square()
    if float(mass.sum()) == 0:
        raise MapFileError(
            "the map is the same everywhere in its box", "Expected a map with contrast", "Check the file"
        )
    line = (torch.arange(len(low), device=low.device) - len(low) // 2) / len(low)
    moments = [(mass.sum(axes) * line).sum() for axes in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(moments) / mass.sum()


def highest_peaks(grid: Float[Tensor, "rows elements 3 3"], scores: Float[Tensor, " rows"], count: int) -> list[int]:
    """The best rows, no two of them nearly the same set of elements, in whatever order and direction of rotation.

    Args:
        grid: elements of each row.
        scores: of the rows.
        count: how many rows at most.
    """
    chosen: list[int] = []
    for row in scores.argsort(descending=True)[: _ROWS_PER_PEAK * count].tolist():
        symmetric = grid[[*chosen, row]]
        symmetric = symmetric + symmetric.mT
        apart = (symmetric[:-1, :, None] - symmetric[-1]).flatten(-2).norm(dim=-1).amin(2).amax(1)
        if len(chosen) < count and not bool((apart < _PEAK_DISTANCE).any()):
            chosen.append(row)
    return chosen


def refine_placement(
    comparison: SelfComparison, elements: Float[Tensor, "elements 3 3"], start: Placement
) -> Placement:
    """The nearest maximum of the mean correlation, over rotations of all elements and shifts of their centre.

    Args:
        comparison: the map.
        elements: of the group, at the row of the search grid from which ``start`` came.
        start: the placement to refine.
    """
    radius = float(comparison.coords.abs().max())
    # Steps that change the phases at the rim by about one radian.
    steps = comparison.coords.new_tensor([1 / (2 * math.pi * 0.25 * radius)] * 3 + [1 / (2 * math.pi * radius)] * 3)

    def placement(parameters: Tensor) -> tuple[Tensor, Tensor]:
        scaled = parameters.to(steps) * steps
        return rotation_from_vector(scaled[:3]) @ start.frame, start.centre + scaled[3:]

    def score(frame: Tensor, centre: Tensor) -> Tensor:
        return comparison.correlations(frame @ elements @ frame.T, centre).mean()

    def cost(parameters: Float64[np.ndarray, " 6"]) -> tuple[float, Float64[np.ndarray, " 6"]]:
        free = torch.tensor(parameters, dtype=torch.float32, device=steps.device, requires_grad=True)
        value = -score(*placement(free))
        (gradient,) = torch.autograd.grad(value, free)
        return float(value.detach()), gradient.double().cpu().numpy()

    from scipy.optimize import minimize  # not above: most maps are given no symmetry to find

    found = minimize(cost, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-3, "maxiter": 40})
    frame, centre = placement(torch.from_numpy(found.x))
    return replace(start, frame=frame, centre=centre, score=float(score(frame, centre)))


def _low_resolution(values: Float[Tensor, "n n n"], size: int) -> Float[Tensor, "m m m"]:
    """The map without its background, inside the sphere that fits into the box, Fourier-cropped."""
    n = values.shape[-1]
    k = torch.arange(n, device=values.device) - n // 2
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()
    background = values[(radii > 0.4 * n) & (radii < 0.5 * n)].median()
    mask = (0.5 + (0.47 * n - radii) / (0.06 * n)).clamp(0, 1)  # a linear edge from 0.44 to 0.5 of the box
    return ifft_map(crop_centred(fft_map((values - background) * mask), min(size, n), 3)).contiguous()


def _shells(coords: Float[Tensor, "points 3"]) -> Int[Tensor, " points"]:
    return (coords.norm(dim=-1) + 0.5).floor().long()


def _sample(
    padded: Float[Tensor, "2 m m m"], coords: Float[Tensor, "*batch points 3"]
) -> Complex[Tensor, "*batch points"]:
    """Coefficients at (x, y, z) in cycles per box, trilinearly from the oversampled transform."""
    m = padded.shape[-1]
    # grid_sample counts from -1 at the first sample to 1 at the last.
    grid = (coords * _PADDING + m // 2) * (2 / (m - 1)) - 1
    sampled = torch.nn.functional.grid_sample(padded[None], grid.reshape(1, 1, 1, -1, 3), align_corners=True)
    return torch.complex(*sampled[0, :, 0, 0]).reshape(coords.shape[:-1])
