"""Symmetry of a map about axes or planes that are not known: a point group to impose, the mirror plane of mixed hands.

Mixed hands. Images cannot tell a map from its mirror image, so a run without poses may pose part of the particles in
either hand. Its map is then V(r) + V(-Q r), Q any rotation. Rotated by -Q it becomes V(-Q r) + V(Q^2 r): the same map,
for a V without symmetry, only if Q^2 = 1. Then Q is a half turn and -Q a mirror plane, or Q = 1 and -Q the inversion.
A run drifts to such Q, because it lets the two parts overlap as well as they can. The overlap is the same for Q and
its inverse, so its derivative vanishes at Q = 1, and in every direction at the best of all half turns; for five of six
structures the best of all rotations was a half turn, for the sixth (8BK7, D2) no other was clearly better. So mirror
planes and the inversion are looked for; other improper rotations would raise the score of maps of one hand, too.

Both questions are answered alike: the map is compared with its copies, rotated about an unknown centre. The centre of
mass lies on every axis and plane and is the first guess; directions come from an even grid; then both are refined.
Shells are weighted by one over their amplitude. By their plain power the few innermost ones, where all molecules look
alike, would decide alone; white shells would let the noise decide.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.geometry.so3_grid import so3_grid, view_directions
from cryoeq.maps.alignment import rotate_map
from cryoeq.physics.projection import prepare_slices

_PADDING = 2
_GRID_ORDER = 3  # directions about 7 degrees apart
_SEARCH_RADIUS = 6
_SCORE_RADIUS = 8
_FINAL_RADIUS = 24
_MASS_RADIUS = 4
_PEAKS = 6
_PEAK_DISTANCE = 0.3  # between the matrices of elements: a tilt of the axis by about 6 degrees
_CHUNK_POINTS = 2**18

# See ``planar_symmetry_score`` for what the score separates, and what not.
MIXED_HANDS_SCORE = 0.9
# Warning of a run, which its verdict looks for.
MIXED_HANDS_WARNING = "both hands may be mixed"


@dataclass(frozen=True)
class SymmetryFit:
    """Axes of a point group in a map: r' = R r + d is the standard frame.

    Args:
        rotation: R, from the frame of the map to that of ``symmetry_rotations``, vectors (x, y, z) from voxel n // 2.
        shift_angstrom: d, in Angstrom.
        correlation: correlation of the map with its copies rotated by the group, the mean over all elements but the
            identity.
        element_correlations: correlation with each rotated copy, in the order of ``symmetry_rotations``; 1 for the
            identity.
    """

    rotation: Float[Tensor, "3 3"]
    shift_angstrom: Float[Tensor, " 3"]
    correlation: float
    element_correlations: Float[Tensor, " order"]


def find_symmetry(volume: Volume, symmetry: str) -> SymmetryFit:
    """The axes and the centre about which a map agrees best with its copies rotated by a point group.

    Args:
        volume: map, noisy or not, in any orientation, its molecule inside the sphere that fits into the box.
        symmetry: point group, as for ``symmetry_rotations``; the axes of C1 are those of the map.

    Raises:
        ConfigError: no such group.
        MapFileError: a map without contrast.
    """
    group = symmetry_rotations(symmetry).to(volume.values.device, torch.float32)
    identity, nowhere = group[0], torch.zeros_like(group[0, 0])
    if len(group) == 1:
        return SymmetryFit(identity, nowhere, 1.0, torch.ones_like(nowhere[:1]))
    frames = _frames(group, is_cyclic=symmetry.strip().upper().startswith("C"))
    half = _one_of_each_pair(group)
    found = _best_placement(volume, frames.mT[:, None] @ half @ frames[:, None], _FINAL_RADIUS)
    rotation = frames[found.row] @ found.frame.T
    correlations = _SelfComparison.from_map(volume, _SCORE_RADIUS).correlations(
        rotation.T @ group @ rotation, found.centre
    )
    shift_angstrom = -rotation @ found.centre * volume.box_size_px * volume.pixel_size_angstrom
    return SymmetryFit(rotation, shift_angstrom, float(correlations[1:].mean()), correlations)


def impose_symmetry(volume: Volume, symmetry: str, fit: SymmetryFit) -> Volume:
    """The map rotated into the standard frame of a point group and averaged over the group.

    Args:
        volume: map that was fitted, or another in its frame such as a half map.
        symmetry: point group that was fitted.
        fit: axes and centre of the group in the map, from ``find_symmetry``.
    """
    shift_px = fit.shift_angstrom / volume.pixel_size_angstrom
    group = symmetry_rotations(symmetry).to(fit.rotation)
    copies = (rotate_map(volume.values, element @ fit.rotation, element @ shift_px) for element in group)
    return replace(volume, values=sum(copies, torch.zeros_like(volume.values)) / len(group))


def planar_symmetry_score(volume: Volume) -> float:
    """Correlation of a map with its mirror image in the best plane, or its inversion: 1 where hands are mixed.

    Six structures (1WCM, 5ME2, 6MSM, 7EZ0, 7L2I, 8BK7), low-passed at shell 5 to 15 of the box: 0.55 to 0.87; added to
    a mirror image: 0.99 to 1, and 0.93 and more where the noise equals the signal at the last shell, from shell 9 on.
    At half the weight of the first hand, the second gives 0.71 to 0.97, which is no longer separate. Below shell 5 no
    map is far from its mirror image, and some shapes are close to theirs at any resolution (cryoDRGN's toy model:
    0.98). So a score above ``MIXED_HANDS_SCORE`` is a reason to run again with another seed, not a proof; and one below
    it does not show that the poses are right: a run whose particles had many wrong poses, of either hand, had 0.60.

    Args:
        volume: map in any orientation, its molecule inside the sphere that fits into the box.

    Raises:
        MapFileError: a map without contrast.
    """
    azimuth, polar = view_directions(_GRID_ORDER).unbind(1)
    normals = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)
    normals = normals[normals[:, 2] >= 0].to(volume.values.device, torch.float32)
    identity = torch.eye(3, device=normals.device)
    planes = identity - 2 * normals[:, :, None] * normals[:, None]
    return _best_placement(volume, torch.cat([planes, -identity[None]])[:, None], _SCORE_RADIUS).score


@dataclass(frozen=True)
class _Placement:
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
class _SelfComparison:
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
    def from_map(cls, volume: Volume, largest_radius: int) -> "_SelfComparison":
        """Up to that radius or Nyquist."""
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
        shells = (coords.norm(dim=-1) + 0.5).floor().long()
        power = torch.bincount(shells, reference.abs().square()) / torch.bincount(shells).clamp(min=1)
        weights = power.clamp(min=torch.finfo(power.dtype).tiny).rsqrt()[shells]
        return cls(coords, weights.to(low), reference, padded)

    def correlations(
        self, elements: Float[Tensor, "elements 3 3"], centre: Float[Tensor, " 3"]
    ) -> Float[Tensor, " elements"]:
        """Correlation of the map with its copy at g (r - c) + c, for each g."""
        rotated = _sample(self.padded, self.coords @ elements)
        angles = (centre - elements @ centre) @ self.coords.T * (-2 * math.pi)
        rotated = rotated * torch.polar(torch.ones_like(angles), angles)
        cross = (rotated.real * self.reference.real + rotated.imag * self.reference.imag) @ self.weights
        powers = (rotated.real.square() + rotated.imag.square()) @ self.weights
        reference_power = self.reference.abs().square() @ self.weights
        return cross / (powers * reference_power).clamp(min=torch.finfo(powers.dtype).tiny).sqrt()


def _low_resolution(values: Float[Tensor, "n n n"], size: int) -> Float[Tensor, "m m m"]:
    """The map without its background, inside the sphere that fits into the box, Fourier-cropped."""
    n = values.shape[-1]
    k = torch.arange(n, device=values.device) - n // 2
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()
    background = values[(radii > 0.4 * n) & (radii < 0.5 * n)].median()
    mask = (0.5 + (0.47 * n - radii) / (0.06 * n)).clamp(0, 1)  # a linear edge from 0.44 to 0.5 of the box
    return ifft_map(crop_centred(fft_map((values - background) * mask), min(size, n), 3)).contiguous()


def _sample(
    padded: Float[Tensor, "2 m m m"], coords: Float[Tensor, "*batch points 3"]
) -> Complex[Tensor, "*batch points"]:
    """Coefficients at (x, y, z) in cycles per box, trilinearly from the oversampled transform."""
    m = padded.shape[-1]
    # grid_sample counts from -1 at the first sample to 1 at the last.
    grid = (coords * _PADDING + m // 2) * (2 / (m - 1)) - 1
    sampled = torch.nn.functional.grid_sample(padded[None], grid.reshape(1, 1, 1, -1, 3), align_corners=True)
    return torch.complex(*sampled[0, :, 0, 0]).reshape(coords.shape[:-1])


def _centre_of_mass(volume: Volume) -> Float[Tensor, " 3"]:
    """Centre of the squared density at low resolution, in units of the box: squares suppress the noise."""
    low = _low_resolution(volume.values.float(), 2 * _MASS_RADIUS)
    mass = low.clamp(min=0).square()
    if float(mass.sum()) == 0:
        raise MapFileError(
            "the map is the same everywhere in its box", "Expected a map with contrast", "Check the file"
        )
    line = (torch.arange(len(low), device=low.device) - len(low) // 2) / len(low)
    moments = [(mass.sum(axes) * line).sum() for axes in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(moments) / mass.sum()


def _frames(group: Float[Tensor, "order 3 3"], *, is_cyclic: bool) -> Float[Tensor, "frames 3 3"]:
    """Rotations R of which no two bring the axes of the group onto the same lines of the map.

    S R does the same as R for S in the group: of those the one nearest to the identity is kept. About the axis of
    a cyclic group any rotation does.
    """
    if is_cyclic:
        return so3_grid(_GRID_ORDER, 1, device=group.device)
    grid = so3_grid(_GRID_ORDER, device=group.device)
    traces = torch.einsum("sij,rji->rs", group, grid)
    return grid[traces[:, 0] > traces.amax(1) - 1e-4]


def _one_of_each_pair(group: Float[Tensor, "order 3 3"]) -> Float[Tensor, "elements 3 3"]:
    """The elements but the identity, and of two inverse ones, which correlate alike, the first."""
    inverses = (group.mT[:, None] - group).abs().amax((-2, -1)).argmin(1)
    rows = torch.arange(len(group), device=group.device)
    return group[(rows > 0) & (inverses >= rows)]


def _best_placement(volume: Volume, grid: Float[Tensor, "rows elements 3 3"], final_radius: int) -> _Placement:
    """Search the grid about the centre of mass, refine the highest peaks, then the best of them again."""
    centre = _centre_of_mass(volume)
    coarse = _SelfComparison.from_map(volume, _SEARCH_RADIUS)
    rows = max(1, _CHUNK_POINTS // (len(coarse.coords) * grid.shape[1]))
    scores = torch.cat(
        [
            coarse.correlations(batch.flatten(0, 1), centre).unflatten(0, batch.shape[:2]).mean(1)
            for batch in torch.split(grid, rows)
        ]
    )
    comparison = _SelfComparison.from_map(volume, _SCORE_RADIUS)
    start = torch.eye(3, device=centre.device)
    peaks = [_Placement(row, start, centre, float(scores[row])) for row in _peaks(grid, scores)]
    best = max((_refine(comparison, grid[peak.row], peak) for peak in peaks), key=lambda peak: peak.score)
    if final_radius == _SCORE_RADIUS:
        return best
    return _refine(_SelfComparison.from_map(volume, final_radius), grid[best.row], best)


def _peaks(grid: Float[Tensor, "rows elements 3 3"], scores: Float[Tensor, " rows"]) -> list[int]:
    """The best rows, no two of them nearly the same set of elements, in whatever order and direction of rotation."""
    chosen: list[int] = []
    for row in scores.argsort(descending=True)[: 32 * _PEAKS].tolist():
        symmetric = grid[[*chosen, row]]
        symmetric = symmetric + symmetric.mT
        apart = (symmetric[:-1, :, None] - symmetric[-1]).flatten(-2).norm(dim=-1).amin(2).amax(1)
        if len(chosen) < _PEAKS and not bool((apart < _PEAK_DISTANCE).any()):
            chosen.append(row)
    return chosen


def _refine(comparison: _SelfComparison, elements: Float[Tensor, "elements 3 3"], start: _Placement) -> _Placement:
    """The nearest maximum of the mean correlation, over rotations of all elements and shifts of their centre."""
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
