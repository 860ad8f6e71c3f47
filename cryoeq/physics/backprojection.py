"""Reconstruction from images of known pose: sum their slices, divide by the sum of their weights, in Fourier space.

Dividing voxel by voxel would amplify noise where few slices pass. A map confined to its box has a smooth transform, so
the weights are compensated iteratively against their own blurred density instead, and the corners of the box, which
hold noise only, are filled with their mean.
Density compensation: Pipe and Menon 1999, Magn. Reson. Med. 41, 179-186. In cryo-EM: Scheres 2012, J. Struct. Biol.
180, 519-530. Wiener filter from half maps: Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721-745.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cryoeq.geometry.fourier import HalfPlane, fft_map, ifft_map, shell_index
from cryoeq.geometry.soft_mask import falling_cosine
from cryoeq.physics.projection import collect_slices, spread_slices
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

    Args:
        box_size_px: n, side of the images and of the map.
        padding: oversampling of the transform, m = padding n.
        sums: real and imaginary part of the weighted slices, and their weights.
    """

    box_size_px: int
    padding: int
    sums: Float[Tensor, "3 m m m"]

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
        return cls(box_size_px, padding, torch.zeros(3, m, m, m, dtype=dtype, device=device))

    def all_reduced(self) -> "WienerBackprojection":
        """The sums over the images of all processes of the job."""
        return WienerBackprojection(self.box_size_px, self.padding, all_reduce(self.sums))

    def add(
        self,
        matched: Complex[Tensor, "batch points"],
        power: Float[Tensor, "batch points"],
        rotations: Float[Tensor, "batch 3 3"],
        plane: HalfPlane,
    ) -> "WienerBackprojection":
        """The sums with more images.

        Args:
            matched: centred images times their transfer over their noise variance: ``undo_optics`` with that factor.
            power: squared transfer over noise variance: the value of ``matched`` where the map's transform is 1.
            rotations: RELION's matrices A.
            plane: coefficients that the images have.
        """
        channels = torch.stack([matched.real, matched.imag, power])
        return replace(self, sums=self.sums + spread_slices(channels, rotations, plane, self.sums.shape[-1]))

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

    def reconstruct(self) -> Float[Tensor, "n n n"]:
        """The map that explains the images in the sense of least squares, unfiltered, as half maps are."""
        real, imag, weight = self._with_mates()
        gain = _compensate_density(_with_floor(weight), self.padding)
        summed = collect_slices(torch.complex(real * gain, imag * gain), self.padding)
        return _fill_corners(summed * (self.box_size_px**2 / weight.shape[-1] ** 3))

    @property
    def shell_weights(self) -> Float[Tensor, " shells"]:
        """Mean weight of each shell of the map below Nyquist, per coefficient of the oversampled transform."""
        index, shells, counts = _shells_below_nyquist(self.box_size_px, self.padding, self.sums.device)
        weight = self.sums[2].flatten()
        # A Friedel mate lies in the same shell, so both together weigh twice as much.
        return 2 * weight.new_zeros(len(counts)).index_add(0, shells, weight[index]) / counts

    def most_probable(self, prior_precision: Float[Tensor, " shells"]) -> Float[Tensor, "n n n"]:
        """The most probable map when each coefficient has a normal prior about zero.

        Args:
            prior_precision: inverse prior variance of each shell below Nyquist, in the units of ``shell_weights``;
                ``shell_weights`` over the signal-to-noise ratio of the map makes it a Wiener filter (Scheres 2012,
                J. Struct. Biol. 180, 519-530, equation 6). It must be positive.
        """
        real, imag, weight = self._with_mates()
        m = weight.shape[-1]
        radii = _radii(m, weight.dtype, weight.device)
        for plane in range(m):  # plane by plane: what comes and goes here would be most of the memory
            gain = self._gain(radii[plane], weight[plane], prior_precision)
            real[plane] *= gain
            imag[plane] *= gain
        del weight
        summed = collect_slices(torch.complex(real, imag), self.padding)
        return summed * (self.box_size_px**2 / m**3)

    def _gain(
        self, radii: Float[Tensor, "m m"], weight: Float[Tensor, "m m"], prior_precision: Float[Tensor, " shells"]
    ) -> Float[Tensor, "m m"]:
        """1 / (weight + prior) below Nyquist, 0 beyond, on a plane of the oversampled transform."""
        radius, last = radii / self.padding, len(prior_precision) - 1
        below = radius.long().clamp(max=last)
        above = (below + 1).clamp(max=last)
        prior = torch.lerp(prior_precision[below], prior_precision[above], (radius - below).clamp(max=1.0))
        return (radius < self.box_size_px / 2) / (weight + prior)

    def _with_mates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Real part, imaginary part and weight of the sums over all coefficients, the Friedel mates' too."""
        real, imag, weight = self.sums
        return real + _friedel_mate(real), imag - _friedel_mate(imag), weight + _friedel_mate(weight)


def rotate_on_lattice(
    sums: Float[Tensor, "channels m m m"], elements: Float[Tensor, "elements 3 3"]
) -> Float[Tensor, "channels m m m"]:
    """The sum of copies of a transform that are rotated about sample m // 2, exactly: slices of A g for each g.

    Args:
        sums: sums of slices of rotations A, with axes (z, y, x) and m even.
        elements: rotations g that permute the axes, signs apart.
    """
    total = torch.zeros_like(sums)
    for element in elements:
        # The copy at k is the transform at g k, whose component i is sign i times component source i of k.
        source, sign = element.abs().argmax(1).tolist(), element.sum(1).tolist()
        reversed_axes = [2 - axis for axis in range(3) if sign[axis] < 0]
        order = [2 - source.index(2 - axis) for axis in range(3)]
        for number, channel in enumerate(sums):  # one at a time, which saves memory
            turned = channel.flip(reversed_axes)
            for axis in reversed_axes:  # sample 0 is -m / 2, whose opposite is itself
                turned = turned.roll(1, axis)
            total[number] += turned.permute(order)
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


def _friedel_mate(transform: Float[Tensor, "*batch m m m"]) -> Float[Tensor, "*batch m m m"]:
    """Value at -k of each coefficient k of a centred transform; 0 at even m's Nyquist planes, where no data are."""
    first = 1 - transform.shape[-1] % 2
    inner = transform[..., first:, first:, first:]
    return pad(inner.flip((-3, -2, -1)), (first, 0) * 3)


@lru_cache(maxsize=2)
def _radii(m: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "m m m"]:
    """Distance of each coefficient of a centred transform from its origin; cached, so not to be changed."""
    k = torch.arange(m, dtype=dtype, device=device) - m // 2
    return (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt()


@lru_cache(maxsize=2)
def _shells_below_nyquist(
    box_size_px: int, padding: int, device: torch.device
) -> tuple[Int[Tensor, " coefficients"], Int[Tensor, " coefficients"], Int[Tensor, " shells"]]:
    """Flat index and shell of each coefficient below Nyquist, and their count per shell; cached."""
    count = box_size_px // 2
    shells = (_radii(box_size_px * padding, torch.float32, device) / padding + 0.5).long().flatten()
    index = (shells < count).nonzero().squeeze(1)
    return index, shells[index], shells[index].bincount(minlength=count)


def _with_floor(weight: Float[Tensor, "m m m"]) -> Float[Tensor, "m m m"]:
    """Weights held above a small fraction of their shell's mean."""
    shells = shell_index(weight.shape[-1], 3, weight.device).flatten()
    counts = torch.bincount(shells)
    mean = weight.new_zeros(len(counts)).index_add(0, shells, weight.flatten()) / counts
    return torch.maximum(weight, (mean * _MIN_WEIGHT)[shells].reshape(weight.shape))


def _compensate_density(weight: Float[Tensor, "m m m"], padding: int) -> Float[Tensor, "m m m"]:
    """Gains by which the sums are multiplied: 1 / weight, in the sense that gain * weight is 1 everywhere once blurred.

    Both factors are real, so the blur, a convolution over k, is a product of real transforms. Outside the sphere of
    Nyquist's radius nothing was measured and the gain is 0.
    """
    m = weight.shape[-1]
    k = torch.fft.fftfreq(m, 1 / m, dtype=weight.dtype, device=weight.device)
    radius = (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt()
    inside = radius < _BLOB_RADIUS * padding
    profile = (1 - (radius[inside] / (_BLOB_RADIUS * padding)).square()).sqrt()
    blob = torch.zeros_like(radius).masked_scatter(inside, torch.i0(_BLOB_ALPHA * profile))
    window = torch.fft.rfftn(blob / blob.sum()).real
    weight = torch.fft.ifftshift(weight)
    tiny = torch.finfo(weight.dtype).tiny
    gain = ((radius < m / 2) & (weight > tiny)).to(weight.dtype)
    for _ in range(_ITERATIONS):
        blurred = torch.fft.irfftn(torch.fft.rfftn(gain * weight) * window, s=list(weight.shape))
        # Rounding leaves noise, even negative, where nothing lies near: no more than the transform's precision.
        least = (blurred.max() * torch.finfo(weight.dtype).eps).clamp(min=tiny)
        gain = gain / torch.maximum(blurred, least)
    return torch.fft.fftshift(gain)


def _fill_corners(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The map inside the sphere that fits the box, its mean outside, with a cosine edge of 3 pixels past the sphere."""
    n = volume.shape[-1]
    x = torch.arange(n, dtype=volume.dtype, device=volume.device) - n // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).sqrt()
    inside = falling_cosine((radius - n / 2) / _EDGE_PX)
    outside_mean = ((1 - inside) * volume).sum() / (1 - inside).sum()
    return inside * volume + (1 - inside) * outside_mean
