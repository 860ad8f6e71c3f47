"""Centred Fourier transforms of images and maps, decided once for everybody.

The origin of an n-pixel axis is at index n // 2, in real and in Fourier space. Images use the orthonormal transform, so white noise of
variance v per pixel has variance v per coefficient. Maps use the transform whose central slices are the orthonormal transforms of
their projections (the sum along z): the plain three-dimensional sum divided by n.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

_IMAGE = (-2, -1)
_MAP = (-3, -2, -1)


def fft_image(images: Float[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
    """Centred orthonormal transform of square images."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, dim=_IMAGE), norm="ortho"), dim=_IMAGE)


def ifft_image(transforms: Complex[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Real images of centred orthonormal transforms."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(transforms, dim=_IMAGE), norm="ortho"), dim=_IMAGE).real


def fft_map(volume: Float[Tensor, "*batch n n n"]) -> Complex[Tensor, "*batch n n n"]:
    """Centred transform of a map, scaled so that its central slices are ``fft_image`` of its projections."""
    shifted = torch.fft.fftn(torch.fft.ifftshift(volume, dim=_MAP), dim=_MAP)
    return torch.fft.fftshift(shifted, dim=_MAP) / volume.shape[-1]


def ifft_map(transform: Complex[Tensor, "*batch n n n"]) -> Float[Tensor, "*batch n n n"]:
    """Real map of a centred transform scaled as by ``fft_map``."""
    shifted = torch.fft.ifftn(torch.fft.ifftshift(transform, dim=_MAP), dim=_MAP)
    return torch.fft.fftshift(shifted, dim=_MAP).real * transform.shape[-1]


def crop_centred(array: Tensor, size: int, n_dims: int) -> Tensor:
    """The central ``size`` of the last ``n_dims`` axes, origin (index n // 2) kept."""
    for axis in range(array.ndim - n_dims, array.ndim):
        array = array.narrow(axis, array.shape[axis] // 2 - size // 2, size)
    return array


def pad_centred(array: Tensor, size: int, n_dims: int) -> Tensor:
    """The last ``n_dims`` axes padded with zeros to ``size``, origin (index n // 2) kept."""
    widths: list[int] = []
    for axis in range(array.ndim - 1, array.ndim - 1 - n_dims, -1):
        before = size // 2 - array.shape[axis] // 2
        widths += [before, size - array.shape[axis] - before]
    return torch.nn.functional.pad(array, widths)


def fourier_crop_images(images: Float[Tensor, "*batch n n"], size: int) -> Float[Tensor, "*batch m m"]:
    """Images resampled to a smaller box by cropping their transforms; grey values are kept."""
    n = images.shape[-1]
    return ifft_image(crop_centred(fft_image(images), size, 2)) * (size / n)


@dataclass(frozen=True)
class HalfPlane:
    """The coefficients of a centred n x n transform that determine a real image up to a radius: one of each Friedel pair.

    Args:
        box_size_px: n.
        coords: (kx, ky) of each coefficient, in cycles per box.
        flat_index: its index in the flattened n x n transform.
        weights: 2 where the Friedel mate was left out, 1 at the origin.
    """

    box_size_px: int
    coords: Int[Tensor, "points 2"]
    flat_index: Int[Tensor, " points"]
    weights: Float[Tensor, " points"]

    @classmethod
    def up_to(cls, box_size_px: int, radius: float, device: torch.device | None = None) -> "HalfPlane":
        """All coefficients with |k| <= radius, radius below n / 2, sorted by |k|."""
        k = torch.arange(box_size_px, device=device) - box_size_px // 2
        ky, kx = torch.meshgrid(k, k, indexing="ij")
        keep = (kx**2 + ky**2 <= radius**2) & ((ky > 0) | ((ky == 0) & (kx >= 0)))
        flat = keep.flatten().nonzero().squeeze(1)
        coords = torch.stack([kx, ky], -1).reshape(-1, 2)[flat]
        order = torch.argsort(coords.square().sum(-1), stable=True)
        coords, flat = coords[order], flat[order]
        weights = torch.where((coords == 0).all(-1), 1.0, 2.0)
        return cls(box_size_px, coords, flat, weights)

    def __len__(self) -> int:
        return len(self.flat_index)

    @property
    def radii(self) -> Float[Tensor, " points"]:
        """|k| of each coefficient, in cycles per box."""
        return self.coords.float().norm(dim=-1)

    def gather(self, transforms: Complex[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch points"]:
        """These coefficients of centred transforms."""
        return transforms.flatten(-2)[..., self.flat_index]

    def scatter(self, values: Complex[Tensor, "*batch points"]) -> Complex[Tensor, "*batch n n"]:
        """Centred transforms of real images that have these coefficients and zeros elsewhere."""
        n = self.box_size_px
        full = values.new_zeros(*values.shape[:-1], n * n)
        mate = (n // 2 - self.coords[:, 1]) * n + n // 2 - self.coords[:, 0]
        full[..., mate] = values.conj()
        full[..., self.flat_index] = values
        return full.unflatten(-1, (n, n))


def shell_index(n: int, n_dims: int, device: torch.device | None = None) -> Int[Tensor, "..."]:
    """ROUND(|k|) of each coefficient of a centred transform with ``n_dims`` axes of n: RELION's shells."""
    k = torch.arange(n, device=device) - n // 2
    grids = torch.meshgrid(*[k] * n_dims, indexing="ij")
    squared = sum((grid.double() ** 2 for grid in grids), torch.zeros((n,) * n_dims, dtype=torch.float64, device=device))
    return (squared.sqrt() + 0.5).floor().long()
