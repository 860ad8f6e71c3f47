"""Memory that a reconstruction will need, from what it allocates: particles, batches, maps.

Bytes are those beyond what the process has before it starts. Float32 is 4 bytes, complex64 8. A map of box n is held as
its oversampled transform of m = 2 n, so that all that belongs to maps is counted per voxel of m^3; where arrays come
and go, the allocator holds a quarter more than they add up to.
"""

import math
from dataclasses import dataclass

from cryoeq.geometry.disk_harmonics import support_radius
from cryoeq.reconstruction.expectation import LOG_LIKELIHOODS_ON_CPU, offset_step_px
from cryoeq.reconstruction.global_realignment import OFFSETS_PER_WAVELENGTH, REACH
from cryoeq.reconstruction.known_poses import BATCH_PIXELS
from cryoeq.reconstruction.local_refinement import CHUNK_POINTS_ON_CPU, NUMBERS_PER_POINT
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, power_radii, reading_batch
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, grid_size

_SLACK = 1.25  # memory that the allocator holds, over the arrays in use
# Bytes per voxel of the oversampled transform. Sums have a real part, an imaginary part and a weight of one coefficient
# of each Friedel pair. Beside a reference there are its lines while it is made.
_SUMS, _REFERENCE, _LINES = 6, 8, 2
# Arrays that come and go while a map is made: lines of its transform and the map itself; weights, gains, their blur and
# its transform.
_WIENER_FILTER, _DENSITY_COMPENSATION = 8, 10
# Bytes per coefficient of the images in a batch: images, their transforms, CTFs; in a back-projection also positions,
# weights and indices of the eight neighbours.
_READING_BYTES, _BACKPROJECTION_BYTES, _IMAGE_BYTES = 80, 210, 10
_LIKELIHOOD_ARRAYS = 4  # of all poses of a batch: its Fourier series, even and odd orders, and their sum
_COPIES = 2.2  # of the transforms, where the particles of one class are copied, and those at low resolution kept
_FIGURES = 153 * 2**20  # libraries of pictures, tables and the report, loaded at the end
_EVENTS = 20 * 2**20  # what else a search keeps while it compares poses
COMPILER_BYTES = 230 * 2**20  # numba, with its kernels; the process that compiles them takes as much again
_ROW_BYTES = 6_000  # of a particle: its row as text, and what is measured of its fit
# Bytes per pixel of an encoder's input: filters as large as the image, which are solved for; and for each image of a
# batch its feature maps, of 1,024 channels in a wide encoder.
_FILTER_BYTES, _FEATURE_BYTES, _WIDE_BYTES = 46_000, 104, 1_000


@dataclass(frozen=True)
class SearchSize:
    """What decides how much memory a search takes.

    Args:
        count: number of particles.
        box_px: box in which poses are inferred.
        shift_sigma_px: standard deviation of the offsets per axis, in pixels of that box.
        max_exhaustive_shell: radius up to which all orientations are searched, in cycles per box.
        mask_radius: radius of the spherical mask, as a fraction of the box.
        threads: batches that are worked on side by side.
        n_classes: number of structures; the transforms of those of one class are copied while it is refined.
    """

    count: int
    box_px: int
    shift_sigma_px: float
    max_exhaustive_shell: int
    mask_radius: float
    threads: int
    n_classes: int = 1


def search_memory(size: SearchSize) -> dict[str, int]:
    """Bytes at the peak of a search, by what they are for.

    Args:
        size: particles, box and settings.
    """
    radius = size.box_px / 2 - 1
    voxels = (2 * size.box_px) ** 3
    maps = round(_SLACK * voxels * (6 * _SUMS + 2 * _REFERENCE + _WIENER_FILTER))
    copies = 1 if size.n_classes == 1 else _COPIES
    reading = min(size.count, reading_batch(size.box_px)) * _points(radius) * _READING_BYTES
    refinement = 4 * CHUNK_POINTS_ON_CPU * NUMBERS_PER_POINT
    batch = max(4 * _LIKELIHOOD_ARRAYS * max(LOG_LIKELIHOODS_ON_CPU, _poses_of_a_particle(size)), refinement)
    poses = size.threads * batch
    per_particle = transform_bytes(size.box_px) + 8 * _points(radius) + _ROW_BYTES  # with variances
    basis = _basis_bytes(size)
    return {
        "transforms of all particles": round(copies * size.count * per_particle),
        "maps": max(maps + basis, reading),
        "poses and offsets": poses,
        "compiler": COMPILER_BYTES,
        "figures": max(_EVENTS, _FIGURES - poses - basis),  # loaded when the memory of both is free again
    }


def reconstruction_memory(count: int, box_px: int, largest_set: int, n_sets: int) -> int:
    """Bytes at the peak of a reconstruction from known poses, and of the figures that follow.

    Args:
        count: number of particles of this process.
        box_px: box of the maps.
        largest_set: particles of the larger half set.
        n_sets: half sets; 1 where all particles make one map.
    """
    batch = min(count, max(1, BATCH_PIXELS // box_px**2))
    points = _points(box_px / 2)
    voxels = (2 * box_px) ** 3
    share, sums = largest_set / max(1, count), _SUMS * n_sets * voxels
    inserting = round(batch * points * (share * _BACKPROJECTION_BYTES + _IMAGE_BYTES)) + sums
    making = sums + _DENSITY_COMPENSATION * voxels
    return max(inserting, making, _FIGURES)


def full_box_memory(count: int, box_px: int, last_shell: int) -> dict[str, int]:
    """Bytes at the peak of a refinement at the full box that reaches its last shell, by what they are for.

    Args:
        count: number of particles of this process.
        box_px: box of the files.
        last_shell: last shell of the refinement, in cycles per box.
    """
    voxels = (2 * min(box_px, 2 * (last_shell + 1))) ** 3
    reading = min(count, reading_batch(box_px)) * _points(last_shell) * _READING_BYTES
    return {
        "transforms of all particles": round(count * (12 * _points(last_shell) + _ROW_BYTES)),
        "maps at full size": max(voxels * max(2 * _SUMS + _WIENER_FILTER, _REFERENCE + _LINES), reading),
    }


def encoder_memory(batch: int, box_px: int, *, is_wide: bool) -> int:
    """Bytes of an encoder and a batch.

    Args:
        batch: images that are encoded at a time.
        box_px: side of the encoder's input.
        is_wide: whether its filters start as many slices of a map, as in the hybrid mode.
    """
    return box_px**2 * (_FILTER_BYTES + batch * (_WIDE_BYTES if is_wide else _FEATURE_BYTES))


def transform_bytes(box_px: int) -> int:
    """Bytes of one particle's transform, CTF and CTF harmonics."""
    radius = box_px / 2 - 1
    return 12 * _points(radius) + 8 * POWER_ORDERS * len(power_radii(radius)) + 12


def _points(radius: float) -> int:
    """Coefficients of a half plane."""
    return round(math.pi * radius**2 / 2)


def _poses_of_a_particle(size: SearchSize) -> int:
    """Poses and offsets of one particle in global re-alignment, which are never split."""
    radius = min(COARSE_SHELL, size.max_exhaustive_shell)
    views, angles = grid_size(radius)
    step_px = offset_step_px(size.box_px, radius, OFFSETS_PER_WAVELENGTH)
    cell = 0.75**0.5 * step_px**2
    offsets = max(1, round(math.pi * (REACH * size.shift_sigma_px) ** 2 / cell))
    return 2 * views * angles * offsets * size.n_classes


def _basis_bytes(size: SearchSize) -> int:
    """The steerable basis at the last radius of the exhaustive search, while it is built, in double precision."""
    radius = size.max_exhaustive_shell
    reach = radius * support_radius(size.mask_radius, size.box_px) / size.box_px
    orders, radial = 2 * math.pi * reach, 2 * reach
    return round(orders * radial * _points(radius) * 3 * 16)
