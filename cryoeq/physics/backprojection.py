"""Reconstruction from images of known pose: sum their slices, divide by the sum of their weights, in Fourier space.

Dividing voxel by voxel would amplify noise where few slices pass. A map confined to its box has a smooth transform, so
the weights are compensated iteratively against their own blurred density instead, and the corners of the box, which
hold noise only, are filled with their mean.
Density compensation: Pipe and Menon 1999, Magn. Reson. Med. 41, 179-186. In cryo-EM: Scheres 2012, J. Struct. Biol.
180, 519-530. Wiener filter from half maps: Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721-745.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane, fft_map, ifft_map, shell_index
from cryoeq.geometry.shells import slabs
from cryoeq.geometry.soft_mask import falling_cosine
from cryoeq.physics.projection import collect_slices, insert_half
from cryoeq.physics.transform_radii import TransformRadii
from cryoeq.runtime.distributed import all_reduce

# RELION's Kaiser-Bessel blob: as wide as the correlation that a box imposes on the coefficients of the map inside it.
_BLOB_RADIUS, _BLOB_ALPHA = 1.9, 15.0
# Three of Pipe and Menon's iterations are within 0.003 in FSC of ten (70S tilts, RNA polymerase II), with less noise.
_ITERATIONS = 3
# The least weight, as a fraction of its shell's mean, that the sum over slices is divided by.
_MIN_WEIGHT = 1e-3
_EDGE_PX = 3.0


@dataclass(frozen=True)
class WienerBackprojection:
    """Sums over images from which a map is reconstructed; sums of disjoint sets of images add up.

    Friedel pairs are stored once: z and y go from -m / 2 to m / 2, x from 0 to m / 2, all three with their centre
    at 0. In the plane x = 0, which holds both of a pair, the sums of a coefficient are those of its mate too.

    Args:
        box_size_px: n, side of the images and of the map.
        padding: oversampling of the transform, m = padding n, which is even.
        sums: real and imaginary part of the weighted slices, and their weights.
    """

    box_size_px: int
    padding: int
    sums: Float[Tensor, "3 side side half"]

    @classmethod
    def empty(
        cls,
        box_size_px: int,
        padding: int = 2,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> "WienerBackprojection":
        """The sums over no image."""
        m = padding * box_size_px
        return cls(box_size_px, padding, torch.zeros(3, m + 1, m + 1, m // 2 + 1, dtype=dtype, device=device))

    @classmethod
    def from_full(cls, box_size_px: int, padding: int, sums: Float[Tensor, "3 m m m"]) -> "WienerBackprojection":
        """Sums over all coefficients, as they were stored by version 0.1.

        Args:
            box_size_px: n.
            padding: oversampling.
            sums: real and imaginary part, and weights, centred.
        """
        found, half = cls.empty(box_size_px, padding, dtype=sums.dtype, device=sums.device), sums.shape[-1] // 2
        found.sums[:, :-1, :-1, :-1] = sums[..., half:]
        mates = sums[..., 1:half].flip((-3, -2, -1)) * sums.new_tensor([1, -1, 1])[:, None, None, None]
        found.sums[:, 1:, 1:, 1:-1] += mates
        return found

    def all_reduced(self) -> "WienerBackprojection":
        """The sums over the images of all processes of the job."""
        return replace(self, sums=all_reduce(self.sums))

    def add_(
        self,
        matched: Complex[Tensor, "batch points"],
        power: Float[Tensor, "batch points"],
        rotations: Float[Tensor, "batch 3 3"],
        plane: HalfPlane,
    ) -> "WienerBackprojection":
        """These sums, to which more images are added in place.

        Args:
            matched: centred images times their transfer over their noise variance: ``undo_optics`` with that factor.
            power: squared transfer over noise variance: the value of ``matched`` where the map's transform is 1.
            rotations: RELION's matrices A.
            plane: coefficients that the images have.
        """
        insert_half(self.sums, matched, power, rotations, plane)
        return self

    def symmetrised(self, elements: Float[Tensor, "elements 3 3"]) -> "WienerBackprojection":
        """The sums in which each image counts once for each of some rotations.

        Args:
            elements: rotations that permute the axes, signs apart: those of ``pointgroup.split_over_lattice``; a
                group, so that one alone is the identity.
        """
        # Without symmetry no copy: a copy of these sums is much of the memory of a reconstruction.
        return self if len(elements) == 1 else replace(self, sums=rotate_on_lattice(self.sums, elements))

    def __add__(self, other: "WienerBackprojection") -> "WienerBackprojection":
        return replace(self, sums=self.sums + other.sums)

    def __iadd__(self, other: "WienerBackprojection") -> "WienerBackprojection":
        self.sums.add_(other.sums)
        return self

    def reconstruct(self) -> Float[Tensor, "n n n"]:
        """The map that explains the images in the sense of least squares, unfiltered, as half maps are."""
        gain = _compensate_density(self._weights_with_floor(), self.padding)
        summed = self._collect(lambda start, stop: gain[start:stop])
        return _fill_corners(summed)

    @property
    def shell_weights(self) -> Float[Tensor, " shells"]:
        """Mean weight of each shell of the map below Nyquist, per coefficient of the oversampled transform."""
        shells = self._radii.shells(self.box_size_px // 2)
        return (shells.sums(self._weights_by_radius()) / shells.counts).to(self.sums.dtype)

    def most_probable(self, prior_precision: Float[Tensor, " shells"]) -> Float[Tensor, "n n n"]:
        """The most probable map when each coefficient has a normal prior about zero.

        Args:
            prior_precision: inverse prior variance of each shell below Nyquist, in the units of ``shell_weights``;
                ``shell_weights`` over the signal-to-noise ratio of the map makes it a Wiener filter (Scheres 2012,
                J. Struct. Biol. 180, 519-530, equation 6). It must be positive.
        """
        prior = self._radii.shells(len(prior_precision)).between(prior_precision)
        prior = prior.masked_fill(self._radii.radii >= self.box_size_px / 2, torch.inf)  # nothing beyond Nyquist

        def gain(start: int, stop: int) -> Tensor:
            weight = self._rows(2, start, stop)
            return (weight + torch.take(prior, self._radii.squared(start, stop))).reciprocal()

        return self._collect(gain)

    def _collect(self, gain: Callable[[int, int], Float[Tensor, "rows m half"]]) -> Float[Tensor, "n n n"]:
        """The map of the sums times a gain, which is 0 from Nyquist on."""

        def rows(start: int, stop: int) -> Complex[Tensor, "rows m half"]:
            factor = gain(start, stop)
            return torch.complex(self._rows(0, start, stop) * factor, self._rows(1, start, stop) * factor)

        n, m = self.box_size_px, self.padding * self.box_size_px
        return collect_slices(rows, n, self.padding, like=self.sums).mul_(n**2 / m**3)

    def _rows(self, channel: int, start: int, stop: int) -> Float[Tensor, "rows m half"]:
        """A range of z of one channel, without the last sample of y, complete in the plane x = 0."""
        values, sign = self.sums[channel], -1 if channel == 1 else 1
        rows = values[start:stop, :-1].clone()
        last = len(values) - 1
        mates = values[last - stop + 1 : last - start + 1, 1:, 0].flip((0, 1))
        rows[..., 0].add_(mates, alpha=sign)
        return rows

    @property
    def _radii(self) -> TransformRadii:
        return TransformRadii.of(self.sums.shape[-1], self.padding, self.sums.device)

    def _weights_by_radius(self) -> Float[Tensor, " radii"]:
        """Sum of the weights over all coefficients with each |k|^2, in float64."""
        radii = self._radii
        sums = torch.zeros_like(radii.counts)
        for start, stop in slabs(self.sums.shape[-2] - 1, self.sums.device):
            weights = self._rows(2, start, stop) * radii.multiplicity
            sums.scatter_add_(0, radii.squared(start, stop).flatten(), weights.flatten())
        return sums

    def _weights_with_floor(self) -> Float[Tensor, "m m half"]:
        """Weights held above a small fraction of their shell's mean."""
        radii, m = TransformRadii.of(self.sums.shape[-1], 1, self.sums.device), self.sums.shape[-2] - 1
        shells = radii.shells(radii.last_shell + 1)
        means = shells.sums(self._weights_by_radius()) / shells.counts.clamp(min=1)
        least = means.to(self.sums.dtype)[shells.of_radius] * _MIN_WEIGHT
        held = self.sums.new_empty(m, m, m // 2 + 1)
        for start, stop in slabs(m, self.sums.device):
            held[start:stop] = self._rows(2, start, stop).maximum(torch.take(least, radii.squared(start, stop)))
        return held


def rotate_on_lattice(
    sums: Float[Tensor, "3 side side half"], elements: Float[Tensor, "elements 3 3"]
) -> Float[Tensor, "3 side side half"]:
    """The sum of copies of a half transform that are rotated about its origin, exactly: slices of A g for each g.

    Args:
        sums: sums of slices of rotations A, as those of ``WienerBackprojection``.
        elements: rotations g that permute the axes, signs apart.
    """
    total = torch.zeros_like(sums)
    for number, (channel, sign) in enumerate(zip(sums, (1, -1, 1), strict=True)):  # one at a time, which saves memory
        half, whole = len(channel) // 2, channel.new_empty(*channel.shape[:2], channel.shape[1])
        mates = sign * channel.flip((0, 1, 2))
        whole[..., half:], whole[..., : half + 1] = channel, mates
        whole[..., half] = channel[..., 0] + mates[..., -1]
        for element in elements:
            # The copy at k is the transform at g k, whose component i is sign i times component source i of k.
            source, direction = element.abs().argmax(1).tolist(), element.sum(1).tolist()
            turned = whole.flip([2 - axis for axis in range(3) if direction[axis] < 0])
            total[number] += turned.permute([2 - source.index(2 - axis) for axis in range(3)])[..., half:]
        total[number, ..., 0] /= 2  # complete, where a sum has each of a pair
    return total


def wiener_filter(volume: Float[Tensor, "n n n"], signal_to_noise: Float[Tensor, " shells"]) -> Float[Tensor, "n n n"]:
    """A map with each shell multiplied by s / (1 + s), which minimises its expected squared error.

    Args:
        volume: unfiltered map.
        signal_to_noise: s, power of the map's signal over that of its noise, per shell up to Nyquist; 2 FSC / (1 - FSC)
            of its half maps.
    """
    n = volume.shape[-1]
    gain = (signal_to_noise / (1 + signal_to_noise)).to(volume)
    # Beyond Nyquist lie the corners only, which hold no data.
    shells = shell_index(n, 3, volume.device).clamp(max=len(gain) - 1)
    return ifft_map(fft_map(volume) * gain[shells])


def _compensate_density(weight: Float[Tensor, "m m half"], padding: int) -> Float[Tensor, "m m half"]:
    """Gains by which the sums are multiplied: 1 / weight, in the sense that gain * weight is 1 everywhere once blurred.

    Both factors are real and even, so the blur, a convolution over k, is a product of real, even transforms. Outside
    the sphere of Nyquist's radius nothing was measured and the gain is 0.
    """
    m, tiny, eps = len(weight), torch.finfo(weight.dtype).tiny, torch.finfo(weight.dtype).eps
    k = torch.arange(m, device=weight.device) - m // 2
    window = _blur_window(m, padding, weight)
    gain = torch.empty_like(weight)
    for start, stop in slabs(m, gain.device):
        squared = k[start:stop, None, None].square() + k[:, None].square() + k[m // 2 :].square()
        inside = torch.nn.functional.pad(squared < (m // 2) ** 2, (0, 1))
        gain[start:stop] = inside & (weight[start:stop] > tiny)
    for _ in range(_ITERATIONS):
        blurred = _blur(gain, weight, window)
        # Rounding leaves noise, even negative, where nothing lies near: no more than the transform's precision.
        gain /= blurred.clamp_(min=(blurred.max() * eps).clamp(min=tiny))
        del blurred
    return gain


def _blur(
    gain: Float[Tensor, "m m half"], weight: Float[Tensor, "m m half"], window: Float[Tensor, "half half half"]
) -> Float[Tensor, "m m half"]:
    """The product of two real, even functions of k, blurred: times a window, an octant of it, in real space."""
    m, half = len(gain), gain.shape[-1]
    transform = gain.new_empty(m, half, half, dtype=gain.dtype.to_complex())
    for start, stop in slabs(m, gain.device):
        transform[start:stop] = torch.fft.rfft(gain[start:stop] * weight[start:stop], dim=1)
    place = torch.arange(m, device=gain.device)
    place = place.minimum(m - place)
    for start, stop in slabs(half, gain.device):
        values = torch.fft.irfft(torch.fft.fft(transform[:, start:stop], dim=0), n=m)
        values *= window[:, start:stop][place][..., place]
        transform[:, start:stop] = torch.fft.ifft(torch.fft.rfft(values), dim=0)
    blurred = torch.empty_like(gain)
    for start, stop in slabs(m, gain.device):
        blurred[start:stop] = torch.fft.irfft(transform[start:stop], n=m, dim=1)
    return blurred


def _blur_window(m: int, padding: int, like: Tensor) -> Float[Tensor, "half half half"]:
    """Transform of the blob that blurs, of sum 1: the octant of positions from 0 to m / 2 along each axis."""
    k = torch.arange(math.ceil(_BLOB_RADIUS * padding), dtype=like.dtype, device=like.device)
    squared = (k[:, None, None].square() + k[:, None].square() + k.square()) / (_BLOB_RADIUS * padding) ** 2
    blob = torch.i0(_BLOB_ALPHA * (1 - squared).clamp(min=0).sqrt()) * (squared < 1)
    cosines = torch.cos(2 * math.pi / m * k[:, None] * torch.arange(m // 2 + 1, device=like.device))
    cosines[1:] *= 2  # k and -k
    blob /= torch.einsum("abc,a,b,c->", blob, *[cosines[:, 0]] * 3)
    return torch.einsum("abc,az,by,cx->zyx", blob, cosines, cosines, cosines)


def _fill_corners(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The map inside the sphere that fits the box, its mean outside, with a cosine edge of 3 pixels past the sphere."""
    n = volume.shape[-1]
    x = torch.arange(n, dtype=volume.dtype, device=volume.device) - n // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).sqrt()
    inside = falling_cosine((radius - n / 2) / _EDGE_PX)
    outside_mean = ((1 - inside) * volume).sum() / (1 - inside).sum()
    return inside * volume + (1 - inside) * outside_mean
