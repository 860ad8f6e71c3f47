"""Particles of known maps: views, defocus and shifts drawn at random, images without noise, and noise.

Grey scale: over all pixels of all images the noise has variance 1 and the signal variance SNR; without noise the signal
has variance 1.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.fourier import HalfPlane, fft_image, ifft_image
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import apply_optics
from cryoeq.simulation.slicing import FourierSampler

Views = Literal["uniform", "preferred"]
Noise = Literal["white", "coloured", "ice"]

PREFERRED_SHARE = 0.7  # of the particles show the molecule from near +z, the others from anywhere
PREFERRED_KAPPA = 10.0  # concentration of the von Mises-Fisher distribution: half of them within 21 degrees of the axis
NOISE_CORNER = 0.2  # of Nyquist, where the low-frequency part of coloured noise has fallen to a half
_PIXELS_AT_ONCE = 2**21
_LARGER_ON_GPU = 64  # batches, whose kernels cost as much to launch for few images as for many


@dataclass(frozen=True)
class DefocusRange:
    """Distribution of the defocus.

    Args:
        min_angstrom: smallest mean defocus (U + V) / 2, positive is underfocus.
        max_angstrom: largest; the mean is uniform in between.
        astigmatism_angstrom: standard deviation of the normal whose absolute value is U - V.
        astigmatism_angle_rad: direction of U from x; None for one of each particle, uniform.
    """

    min_angstrom: float
    max_angstrom: float
    astigmatism_angstrom: float = 0.0
    astigmatism_angle_rad: float | None = None


def draw_ctf(count: int, optics: Optics, defocus: DefocusRange, generator: torch.Generator) -> CtfParameters:
    """CTF parameters of particles of one optics group.

    Args:
        count: number of particles.
        optics: voltage, Cs and amplitude contrast.
        defocus: distribution of the defocus.
        generator: random number generator on the CPU.
    """
    mean = defocus.min_angstrom + (defocus.max_angstrom - defocus.min_angstrom) * torch.rand(count, generator=generator)
    difference = defocus.astigmatism_angstrom * torch.randn(count, generator=generator).abs()
    angle = math.pi * torch.rand(count, generator=generator)
    if defocus.astigmatism_angle_rad is not None:
        angle = torch.full_like(angle, defocus.astigmatism_angle_rad % math.pi)
    zeros = torch.zeros(count)
    return CtfParameters(
        defocus_u_angstrom=mean + difference / 2,
        defocus_v_angstrom=mean - difference / 2,
        defocus_angle_rad=angle,
        phase_shift_rad=zeros,
        bfactor_angstrom2=zeros,
        scale=torch.ones(count),
        voltage_kv=torch.full((count,), optics.voltage_kv),
        spherical_aberration_mm=torch.full((count,), optics.spherical_aberration_mm),
        amplitude_contrast=torch.full((count,), optics.amplitude_contrast),
        is_premultiplied=zeros,
        is_phase_flipped=zeros,
    )


def draw_poses(count: int, views: Views, shift_sigma_angstrom: float, generator: torch.Generator) -> Poses:
    """Random poses.

    Args:
        count: number of particles.
        views: ``uniform`` over all rotations; or ``preferred``: 70 % of the view directions from the von Mises-Fisher
            distribution with concentration 10 about +z of the map, 30 % uniform, the in-plane angle uniform for all.
        shift_sigma_angstrom: standard deviation of the shift along x and along y.
        generator: random number generator on the CPU.
    """
    rotations = random_rotations(count, generator)
    if views == "preferred":
        near_axis = torch.rand(count, generator=generator) < PREFERRED_SHARE
        rotations = torch.where(near_axis[:, None, None], _views_near_z(count, generator), rotations)
    shifts_angstrom = shift_sigma_angstrom * torch.randn(count, 2, generator=generator)
    return Poses(rotations, shifts_angstrom + 0.0)  # lest the star file say -0


def _views_near_z(count: int, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Rotations whose view direction (third row) follows a von Mises-Fisher distribution about +z."""
    uniform, azimuth, in_plane = torch.rand(3, count, generator=generator)
    # The cosine to the axis has density exp(kappa c) on [-1, 1]; invert its distribution function.
    cosine = 1 + torch.log(uniform + (1 - uniform) * math.exp(-2 * PREFERRED_KAPPA)) / PREFERRED_KAPPA
    zeros = torch.zeros(count)

    def about_z(fractions: Tensor) -> Tensor:
        return rotation_from_vector(torch.stack([zeros, zeros, 2 * math.pi * fractions], -1))

    tilt = torch.acos(cosine.clamp(-1, 1))
    return about_z(in_plane) @ rotation_from_vector(torch.stack([zeros, -tilt, zeros], -1)) @ about_z(azimuth)


def noise_amplitudes(box_size_px: int, noise: Noise, corner: float = NOISE_CORNER) -> Float[Tensor, "n n"]:
    """Standard deviation of the noise in each coefficient of a centred orthonormal transform; the mean variance is 1.

    Args:
        box_size_px: n.
        noise: ``white``; or ``coloured`` with power proportional to 0.25 + 1 / (1 + (s / 0.2 Nyquist)^2): five times as
            strong at the origin as at high frequency, as of structural noise in ice. Of ``ice`` this is the shot noise,
            which is white.
        corner: frequency of coloured noise at which its second term has fallen to a half, as a fraction of Nyquist.
    """
    if noise != "coloured":
        return torch.ones(box_size_px, box_size_px)
    k = torch.fft.fftshift(torch.fft.fftfreq(box_size_px)) / 0.5
    squared = k[:, None].square() + k.square()
    power = 0.25 + 1 / (1 + squared / corner**2)
    amplitudes: Tensor = (power / power.mean()).sqrt()
    return amplitudes


def draw_noise(count: int, amplitudes: Float[Tensor, "n n"], generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Gaussian noise images of variance 1 and the given spectrum."""
    white = torch.randn(count, *amplitudes.shape, generator=generator)
    return white if bool((amplitudes == 1).all()) else ifft_image(fft_image(white) * amplitudes)


@dataclass(frozen=True)
class NoiseFreeStack:
    """Noise-free images of one map or several, computed on demand, always in the same batches.

    Args:
        samplers: transform of each map.
        plane: coefficients within Nyquist; images are band-limited to them.
        poses: poses of the particles.
        ctf: CTF parameters of the particles; None for images without a CTF.
        pixel_size_angstrom: pixel size of maps and images.
        model_index: index of the map that each particle shows; None where there is one.
    """

    samplers: tuple[FourierSampler, ...]
    plane: HalfPlane
    poses: Poses
    ctf: CtfParameters | None
    pixel_size_angstrom: float
    model_index: Int[Tensor, " particles"] | None = None

    @classmethod
    def from_map(cls, volume: Volume, poses: Poses, ctf: CtfParameters | None) -> "NoiseFreeStack":
        """Images of a map, computed on the map's device.

        Args:
            volume: map that is projected.
            poses: poses of the particles, on the map's device.
            ctf: CTF parameters of the particles, on the map's device; None for images without a CTF.
        """
        return cls.from_maps([volume], poses, ctf)

    @classmethod
    def from_maps(
        cls,
        volumes: Sequence[Volume],
        poses: Poses,
        ctf: CtfParameters | None,
        model_index: Int[Tensor, " particles"] | None = None,
    ) -> "NoiseFreeStack":
        """Images of several maps of one box and pixel size; see ``from_map``.

        Args:
            volumes: maps that are projected.
            poses: poses of the particles, on the maps' device.
            ctf: CTF parameters of the particles, on the maps' device; None for images without a CTF.
            model_index: index of each particle's map, on the maps' device; None for the first.
        """
        n = volumes[0].box_size_px
        plane = HalfPlane.up_to(n, (n - 1) / 2, volumes[0].values.device)
        samplers = tuple(FourierSampler(volume.values) for volume in volumes)
        return cls(samplers, plane, poses, ctf, volumes[0].pixel_size_angstrom, model_index)

    def __len__(self) -> int:
        return len(self.poses)

    def batches(self) -> Iterator[Float[Tensor, "batch n n"]]:
        """All images in order: exact slice of the map's transform, times CTF, times shift."""
        for rows in self.batch_rows():
            yield self.images(rows)

    def batch_rows(self) -> Iterator[slice]:
        """The rows of each batch."""
        pixels = _PIXELS_AT_ONCE * (_LARGER_ON_GPU if self.poses.rotations.device.type == "cuda" else 1)
        step = max(1, pixels // self.plane.box_size_px**2)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def images(self, rows: slice) -> Float[Tensor, "batch n n"]:
        """The images of some particles."""
        frequencies = self.plane.frequencies_per_angstrom(self.pixel_size_angstrom)
        poses = PoseSet.from_angstrom(self.poses[rows], self.pixel_size_angstrom, self.plane.box_size_px)
        transfer = None if self.ctf is None else image_transfer(self.ctf[rows], frequencies)
        slices = self._slices(poses.rotations, None if self.model_index is None else self.model_index[rows])
        return ifft_image(self.plane.scatter(apply_optics(slices, poses.shifts_px, transfer, self.plane)))

    def _slices(
        self, rotations: Float[Tensor, "batch 3 3"], models: Int[Tensor, " batch"] | None
    ) -> Complex[Tensor, "batch points"]:
        if models is None:
            return self.samplers[0].slices(rotations, self.plane)
        slices = rotations.new_zeros(len(rotations), len(self.plane), dtype=torch.complex64)
        for number, sampler in enumerate(self.samplers):
            chosen = (models == number).nonzero().squeeze(1)
            slices[chosen] = sampler.slices(rotations[chosen], self.plane)
        return slices


@dataclass(frozen=True)
class SignalStatistics:
    """Sums over the pixels of images, to which batches are added one by one.

    Args:
        count: pixels so far.
        total: their sum.
        squares: the sum of their squares.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def including(self, images: Float[Tensor, "batch n n"]) -> "SignalStatistics":
        """The statistics with these images added."""
        values = images.double()
        total, squares = torch.stack([values.sum(), values.square().sum()]).tolist()
        return SignalStatistics(self.count + values.numel(), self.total + total, self.squares + squares)

    @property
    def deviation(self) -> float:
        """Standard deviation of the pixels."""
        return math.sqrt(max(0.0, self.squares / self.count - (self.total / self.count) ** 2))

    def scale_for(self, snr: float) -> float:
        """Factor on the images that gives them variance ``snr`` (1 for an infinite one)."""
        mean = self.total / self.count
        variance = self.squares / self.count - mean**2
        if not variance > 1e-12 * mean**2:
            raise MapFileError(
                "the projections of the model are flat",
                "cryoeq needs a density that differs from its surroundings",
                "Check MODEL",
            )
        return math.sqrt((snr if math.isfinite(snr) else 1.0) / variance)
