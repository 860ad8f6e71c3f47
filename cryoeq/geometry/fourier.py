"""Centred Fourier transforms of images and maps, by one convention.

The origin of an n-pixel axis is at index n // 2, in real and in Fourier space. Images use the orthonormal transform,
so white noise of variance v per pixel has variance v per coefficient. Maps use the transform whose central slices are
the orthonormal transforms of their projections (the sum along z): the plain three-dimensional sum divided by n.

Between images and the coefficients that matter (``HalfPlane.transform``, ``HalfPlane.images``) no full transform is
made: the real one gives half of it, and a phase does what moving the origin would.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.runtime.random_streams import to_device_async

_IMAGE = (-2, -1)
_MAP = (-3, -2, -1)
# From this many pixels on, FFTW's inverse real transform takes 1 / 1.3 to 1 / 4 of torch's time on CPU. Below, and for
# all other transforms that cryoeq makes, torch is as fast or faster (README, "Decisions").
_FFTW_MIN_PIXELS = 2**18


def fft_image(images: Float[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch n n"]:
    """Centred orthonormal transform of square images."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, dim=_IMAGE), norm="ortho"), dim=_IMAGE)


def ifft_image(transforms: Complex[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Real images of centred orthonormal transforms."""
    return torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(transforms, dim=_IMAGE), norm="ortho"), dim=_IMAGE
    ).real


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
    """Images resampled to a smaller box by cropping their transforms; grey values are kept.

    At even size the Nyquist frequencies of either sign share one coefficient of the new transform: it gets their mean.
    """
    n = images.shape[-1]
    if size == n:
        return images.clone()
    low, high = (size + 1) // 2, n - size // 2
    # x first, and of it the part that is kept; then y, which is next to it in memory.
    along_x = torch.fft.rfft(images, norm="ortho")[..., : size // 2 + 1]
    spectrum = torch.fft.fft(along_x.mT.contiguous(), norm="ortho")
    phases, nyquist_phase = (values.to(spectrum) for values in _crop_phases(n, size))
    parts = [spectrum[..., :low], spectrum[..., high:]]
    if size % 2 == 0:
        nyquist = (spectrum[..., high : high + 1] + spectrum[..., low : low + 1] * nyquist_phase) / 2
        parts[1:] = [nyquist, spectrum[..., high + 1 :]]
    cropped = (torch.cat(parts, dim=-1) * phases).mT
    if size % 2 == 0:
        last = cropped[..., -1]
        mates = torch.roll(last.flip(-1), 1, -1).conj()
        cropped = torch.cat([cropped[..., :-1], ((last + mates) / 2)[..., None]], dim=-1)
    return _invert_real(cropped, size) * (size / n)


@lru_cache(maxsize=16)
def _crop_phases(n: int, size: int) -> tuple[Complex[Tensor, "kx ky"], Complex[Tensor, " one"]]:
    """Phases that move the origin of a transform of n pixels to that of fewer, and that of its Nyquist frequency."""
    k = torch.arange(size)
    ky, kx = torch.where(k < (size + 1) // 2, k, k - size), k[: size // 2 + 1]
    phase_y, phase_x = (_origin_phases(axis, n) * _origin_phases(axis, size).conj() for axis in (ky, kx))
    return phase_x[:, None] * phase_y, _origin_phases(k.new_tensor([size]), n)


def _origin_phases(k: Int[Tensor, " points"], n: int) -> Complex[Tensor, " points"]:
    """Phases that move the origin of a transform from pixel 0 to pixel n // 2; computed in float64."""
    return torch.exp((k * (n // 2) % n).double() * (2j * math.pi / n))


def _invert_real(spectrum: Complex[Tensor, "*batch n half"], n: int) -> Float[Tensor, "*batch n n"]:
    """Orthonormal inverse of ``torch.fft.rfft2(..., norm="ortho")``, through FFTW where that is faster."""
    pixels = spectrum.numel() // (n // 2 + 1) * n
    is_single_cpu = spectrum.device.type == "cpu" and spectrum.dtype == torch.complex64
    if pixels < _FFTW_MIN_PIXELS or not is_single_cpu or (spectrum.requires_grad and torch.is_grad_enabled()):
        return torch.fft.irfft2(spectrum, s=(n, n), norm="ortho")
    import pyfftw  # here, because it takes half a second

    # FFTW overwrites the input of this transform, which may be the caller's.
    scratch = (spectrum.detach() / n).contiguous()
    images = torch.empty(*spectrum.shape[:-2], n, n)
    pyfftw.FFTW(
        scratch.numpy(),
        images.numpy(),
        axes=_IMAGE,
        direction="FFTW_BACKWARD",
        flags=("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT"),
        threads=torch.get_num_threads(),
    ).execute()
    return images


@dataclass(frozen=True)
class HalfPlane:
    """The coefficients of a centred n x n transform that determine a real image: one of each Friedel pair.

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
        # On the CPU and moved once: a GPU would have to be waited for, to tell how many there are.
        k = torch.arange(box_size_px) - box_size_px // 2
        ky, kx = torch.meshgrid(k, k, indexing="ij")
        keep = (kx**2 + ky**2 <= radius**2) & ((ky > 0) | ((ky == 0) & (kx >= 0)))
        flat = keep.flatten().nonzero().squeeze(1)
        coords = torch.stack([kx, ky], -1).reshape(-1, 2)[flat]
        order = torch.argsort(coords.square().sum(-1), stable=True)
        coords, flat = coords[order], flat[order]
        weights = torch.where((coords == 0).all(-1), 1.0, 2.0)
        plane = cls(box_size_px, coords, flat, weights)
        return plane if device is None or device.type == "cpu" else plane.to(device)

    def __len__(self) -> int:
        return len(self.flat_index)

    @property
    def radii(self) -> Float[Tensor, " points"]:
        """|k| of each coefficient, in cycles per box."""
        return self.coords.to(torch.get_default_dtype()).norm(dim=-1)

    @cached_property
    def shells(self) -> Int[Tensor, " points"]:
        """ROUND(|k|) of each coefficient."""
        return (self.radii + 0.5).floor().long()

    @cached_property
    def shell_counts(self) -> Int[Tensor, " shells"]:
        """Number of coefficients in each shell."""
        return self.shells.bincount()

    def shell_sums(self, values: Float[Tensor, "*batch points"]) -> Float[Tensor, "*batch shells"]:
        """Sums over each shell, in which a coefficient counts for its Friedel mate too.

        Args:
            values: a value of each coefficient, the same at its mate.
        """
        sums = values.new_zeros(*values.shape[:-1], self.last_shell + 1)
        return sums.index_add(-1, self.shells, values * self.weights)

    @cached_property
    def _squared_radii(self) -> Int[np.ndarray, " points"]:
        """In memory, so that no step of a training waits for a GPU to tell them."""
        return self.coords.square().sum(-1).cpu().numpy()

    @property
    def last_radius(self) -> float:
        """Largest |k|, in cycles per box."""
        return math.sqrt(int(self._squared_radii.max()))

    @property
    def last_shell(self) -> int:
        """Shell of the largest |k|."""
        return int(self.last_radius + 0.5)

    def to(self, device: torch.device) -> "HalfPlane":
        """The coefficients on another device."""
        parts = (self.coords, self.flat_index, self.weights)
        plane = HalfPlane(self.box_size_px, *(to_device_async(part, device) for part in parts))
        plane.__dict__["_squared_radii"] = self._squared_radii
        return plane

    def within(self, radius: float, box_size_px: int | None = None) -> "HalfPlane":
        """The leading coefficients, those with |k| <= radius.

        Args:
            radius: in cycles per box.
            box_size_px: box that they belong to; None for the same.
        """
        count = int(np.searchsorted(self._squared_radii, np.float32(radius**2), side="right"))
        parts = self.coords[:count], self.flat_index[:count], self.weights[:count]
        plane = HalfPlane(self.box_size_px if box_size_px is None else box_size_px, *parts)
        plane.__dict__["_squared_radii"] = self._squared_radii[:count]  # known already
        return plane

    def frequencies_per_angstrom(self, pixel_size_angstrom: float) -> Float[Tensor, "points 2"]:
        """(x, y) spatial frequency of each coefficient, in 1 / Angstrom."""
        return self.coords / (self.box_size_px * pixel_size_angstrom)

    def transform(self, images: Float[Tensor, "*batch n n"]) -> Complex[Tensor, "*batch points"]:
        """These coefficients of the centred orthonormal transforms of real images: ``gather(fft_image(images))``."""
        index, is_mate, phases = self._half_transform_index
        spectrum = torch.fft.rfft2(images, norm="ortho").flatten(-2)
        values = spectrum.index_select(-1, index)
        return torch.where(is_mate, values.conj(), values) * phases.to(values.dtype)

    def images(self, values: Complex[Tensor, "*batch points"]) -> Float[Tensor, "*batch n n"]:
        """Real images that have these coefficients and zeros elsewhere: ``ifft_image(scatter(values))``."""
        n = self.box_size_px
        index, is_mate, phases = self._half_transform_index
        paired, mates = self._pairs
        moved = values * phases.conj().to(values.dtype)
        moved = torch.where(is_mate, moved.conj(), moved)
        spectrum = values.new_zeros(*values.shape[:-1], n * (n // 2 + 1))
        spectrum[..., mates] = moved[..., paired].conj()
        spectrum[..., index] = moved
        return _invert_real(spectrum.unflatten(-1, (n, n // 2 + 1)), n)

    @cached_property
    def _pairs(self) -> tuple[Int[Tensor, " paired"], Int[Tensor, " paired"]]:
        """Coefficients whose Friedel mates rfft2 keeps too, all in the column kx = 0, and where it keeps the mates."""
        n = self.box_size_px
        paired = ((self.coords[:, 0] == 0) & (self.coords[:, 1] > 0)).nonzero().squeeze(1)
        return paired, (n - self.coords[paired, 1]) * (n // 2 + 1)

    @cached_property
    def _half_transform_index(
        self,
    ) -> tuple[Int[Tensor, " points"], Bool[Tensor, " points"], Complex[Tensor, " points"]]:
        """Index of each coefficient in rfft2's output, whether that is its mate's, and the phase that centres it."""
        n = self.box_size_px
        kx, ky = self.coords.unbind(1)
        is_mate = kx < 0
        sign = torch.where(is_mate, -1, 1)
        phases = _origin_phases(kx + ky, n)
        return (ky * sign % n) * (n // 2 + 1) + kx * sign, is_mate, phases

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
    squared = sum(
        (grid.double() ** 2 for grid in grids), torch.zeros((n,) * n_dims, dtype=torch.float64, device=device)
    )
    return (squared.sqrt() + 0.5).floor().long()
