"""Scores of inferred poses and maps against the truth: one yardstick for all benchmarks of this folder.

Poses: errors after removal of frame, hand and symmetry copy (``cryoeq.evaluation.poses``). Maps: FSC against the true
map after alignment over rotation, shift and hand, both within one soft sphere of 0.42 of the box, read off at 0.5. The
map's shells are first given the power of the truth's, so that no filter of the map counts: a mask mixes shells, and
after a Wiener filter the masked curve of the same data crosses 0.5 by up to half a shell earlier.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.poses import compare_poses, summarise_errors
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, resolution_angstrom
from cryoeq.geometry.fourier import fft_map, ifft_map, shell_index
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.io.mrc import read_map
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import star_poses
from cryoeq.io.star import StarTable, read_star
from cryoeq.maps.alignment import align_map
from cryoeq.pipelines.evaluate import match_rows

_MASK_RADIUS, _MASK_EDGE_PX = 0.42, 0.5
_DENSE = 0.3  # of the maximum: voxels above it are molecule


@dataclass(frozen=True)
class Truth:
    """What the particles of a set really are.

    Args:
        star: their rows, in order.
        poses: in a frame whose axes are those that RELION names for the point group.
        volume: the map they show.
        symmetry: point group, Cn or Dn.
    """

    star: StarTable
    poses: Poses
    volume: Volume
    symmetry: str


def read_truth(folder: Path, symmetry: str = "C1") -> Truth:
    """The truth of a folder as ``cryoeq simulate`` leaves it.

    Args:
        folder: holds ``truth.star`` and ``truth_volume.mrc``.
        symmetry: point group of the map, whatever the direction of its axes.
    """
    star = read_star(folder / "truth.star")
    volume = read_map(folder / "truth_volume.mrc", angpix=star_pixel_size(star))
    poses = star_poses(star)
    frame = torch.eye(3) if symmetry == "C1" else symmetry_frame(volume, symmetry)
    return Truth(star, Poses(poses.rotations @ frame, poses.shifts_angstrom), volume, symmetry)


def symmetry_frame(volume: Volume, symmetry: str) -> Float[Tensor, "3 3"]:
    """Columns x, y, z: the axes of Cn or Dn of a map, n-fold on z and, of Dn, 2-fold on x.

    An axis of symmetry is a principal axis of inertia, or very nearly: a map on a grid is not quite symmetric. Each of
    the three is refined by aligning the map with itself, and the one that fits best is taken.
    """
    weights = (volume.values - _DENSE * volume.values.max()).clamp(min=0).double()
    grid = torch.arange(volume.box_size_px, dtype=torch.float64) - volume.box_size_px // 2
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    places = torch.stack([x, y, z], -1).reshape(-1, 3)
    places = places - (weights.reshape(-1, 1) * places).sum(0) / weights.sum()
    principal = torch.linalg.eigh(torch.einsum("i,ij,ik->jk", weights.flatten(), places, places)).eigenvectors.mT
    correlation, main = max(_refined_axis(volume, axis, int(symmetry[1:])) for axis in principal)
    others = [torch.linalg.cross(main, axis) for axis in principal if abs(float(axis @ main)) < 0.7]
    if symmetry.startswith("D"):
        correlation, second = max(_refined_axis(volume, axis, 2) for axis in others)
    else:
        second = others[0]
    if correlation < 0.5:
        raise ValueError(f"the map has no {symmetry} symmetry: mean FSC with its turned copy {correlation:.2f}")
    across = torch.nn.functional.normalize(torch.linalg.cross(main, second), dim=0)
    return torch.stack([torch.linalg.cross(across, main), across, main], 1).float()


def _refined_axis(volume: Volume, axis: Float[Tensor, " 3"], order: int) -> tuple[float, Float[Tensor, " 3"]]:
    """Mean FSC of the map with its copy turned about an axis, and the axis after refinement."""
    turn = rotation_from_vector(torch.nn.functional.normalize(axis, dim=0) * (2 * math.pi / order))
    found = align_map(volume, volume, with_hand=False, start=turn)
    return found.correlation, torch.linalg.svd(found.rotation.double() - torch.eye(3)).Vh[-1]


def read_poses(path: Path, truth: Truth) -> Poses:
    """Poses of a star file, in the order of the truth.

    Args:
        path: the star file; its rows may be in another order, matched by image name.
        truth: of the same images.
    """
    star = read_star(path)
    order = torch.from_numpy(match_rows(star, truth.star)).argsort()
    return star_poses(star)[order]


def score_poses(predicted: Poses, truth: Truth) -> dict[str, dict[str, float]]:
    """Spread of the rotation errors in degrees and of the shift errors in pixels.

    Args:
        predicted: in the order of the truth.
        truth: of the same images.
    """
    return pose_figures(predicted, truth.poses, truth.volume.pixel_size_angstrom, truth.symmetry)


def pose_figures(
    predicted: Poses, truth: Poses, pixel_size_angstrom: float, symmetry: str = "C1"
) -> dict[str, dict[str, float]]:
    """The same without a map.

    Args:
        predicted: in the order of the truth.
        truth: true poses.
        pixel_size_angstrom: of the images.
        symmetry: point group in the frame of the truth.
    """
    errors = compare_poses(predicted, truth, symmetry=symmetry, generator=torch.Generator().manual_seed(0))
    summary = summarise_errors(errors, pixel_size_angstrom)
    figures = {name: summary[name] for name in ("rotation_deg", "shift_px")}
    return {name: {key: round(value, 4) for key, value in spread.items()} for name, spread in figures.items()}


def score_map(path: Path, truth: Truth) -> dict[str, object]:
    """FSC of a map against the truth, and where it ends at 0.5.

    ``shell`` and ``resolution_angstrom`` follow RELION: the last shell, ROUND(|k|), before the curve first drops below
    0.5. ``crossing_angstrom`` interpolates between shells floor(|k|): a finer figure, up to half a shell worse.

    Args:
        path: the map.
        truth: of its particles.
    """
    reference = truth.volume
    n, pixel_size = reference.box_size_px, reference.pixel_size_angstrom
    read = read_map(path, angpix=pixel_size)
    moving = replace(read, values=with_power_of(read.values, reference.values))
    aligned = align_map(moving, reference, with_hand=True).apply(moving)
    mask = soft_sphere(n)
    fsc = fourier_shell_correlation(aligned.values, reference.values, mask)
    resolution = resolution_angstrom(fsc, TRUTH_THRESHOLD, n, pixel_size)
    crossing = _crossing_shell(_floored_correlation(aligned.values * mask, reference.values * mask))
    return {
        "shell": round(n * pixel_size / resolution) if math.isfinite(resolution) else 0,
        "resolution_angstrom": round(resolution, 3) if math.isfinite(resolution) else None,
        "crossing_angstrom": round(n * pixel_size / crossing, 3) if crossing else None,
        "fsc": [round(value, 4) for value in fsc.tolist()],
    }


def with_power_of(values: Float[Tensor, "n n n"], reference: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """A map whose shells are scaled to the power of another's.

    Args:
        values: densities to scale.
        reference: densities of that power.
    """
    n = values.shape[-1]
    shells, transform = shell_index(n, 3).clamp(max=n // 2), fft_map(values)
    ours, theirs = (
        torch.bincount(shells.flatten(), hat.abs().square().flatten().double())
        for hat in (transform, fft_map(reference))
    )
    gain = (theirs / ours.clamp(min=torch.finfo(ours.dtype).tiny)).sqrt().to(values)
    return ifft_map(transform * gain[shells])


def soft_sphere(n: int) -> Float[Tensor, "n n n"]:
    """Mask of a box of ``n`` px: a sphere of 0.42 n with an edge of a pixel or two, sigmoid((0.42 n - r) / 0.5)."""
    x = torch.arange(n) - n // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).float().sqrt()
    return torch.sigmoid((_MASK_RADIUS * n - radius) / _MASK_EDGE_PX)


def _floored_correlation(first: Float[Tensor, "n n n"], second: Float[Tensor, "n n n"]) -> Float[Tensor, " shells"]:
    """FSC over the shells floor(|k|) below Nyquist."""
    n = first.shape[-1]
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    shells = (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt().floor().long().flatten()
    a, b = (torch.fft.fftn(values.double()).flatten() for values in (first, second))
    cross, power_a, power_b = (
        torch.bincount(shells, product)[: n // 2]
        for product in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    )
    return cross / (power_a * power_b).clamp(min=torch.finfo(torch.float64).tiny).sqrt()


def _crossing_shell(fsc: Float[Tensor, " shells"]) -> float:
    """Where the straight lines between shells first fall below 0.5; Nyquist if they do not, 0 if shell 1 is below."""
    below = (fsc[1:] < TRUTH_THRESHOLD).nonzero()
    if not len(below):
        return float(len(fsc))
    last = int(below[0])
    return last + float((fsc[last] - TRUTH_THRESHOLD) / (fsc[last] - fsc[last + 1])) if last else 0.0
