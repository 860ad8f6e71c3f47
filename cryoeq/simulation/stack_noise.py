"""Noise of a stack: white, coloured, or as of vitreous ice; and the normalisation of the background that follows it.

``ice``. A micrograph is the CTF's image of the molecules and of all else in the ice (structural noise), to which the
counting of electrons adds shot noise that has not passed the CTF::

    image(k) = CTF(k) (particle(k) + structure(k)) + shot(k),      power of structure ~ 1 / (1 + (200 A s)^2)

Structure makes half of the variance, on average over the stack, and falls as 1/s^2. So the power of the background of
experimental ribosomes (EMPIAR-10028), beta-galactosidase (10204) and apoferritin (10146) is met to a factor of about 2
from 1/80 to 1/12 per Angstrom, where it falls by 4 to 10 with the zeros of the CTF in it; below 1/100 theirs is two to
three times as strong, since the thickness of the ice varies. The ring of amorphous ice near 3.7 Angstrom is left out:
it is beyond Nyquist for pixels of 1.85 Angstrom on.

Baxter et al., "Determination of signal-to-noise ratios and spectral SNRs in cryo-EM low-dose imaging of molecules",
J. Struct. Biol. 166 (2009) 126-132 (structural and shot noise). McMullan et al., "Thon rings from amorphous ice and
implications of beam-induced Brownian motion in single particle electron cryo-microscopy", Ultramicroscopy 158 (2015).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane, fft_image, ifft_image
from cryoeq.physics.ctf import image_transfer
from cryoeq.simulation.acquisition import GroupNoise
from cryoeq.simulation.particles import Noise, noise_amplitudes

_STRUCTURE_ANGSTROM = 200.0
_SAMPLE = 256


@dataclass(frozen=True)
class StackNoise:
    """Noise of a stack; its variance is 1 in the first optics group.

    Args:
        structure_levels: standard deviation of the structural noise of each optics group.
        amplitudes: standard deviation of each coefficient of the noise that has not passed the CTF, of each group;
            None where it is 1.
        plane: coefficients of the structural noise.
        structure: its standard deviation before the CTF where it makes all of the variance; None without any.
        pixel_size_angstrom: pixel size of the images.
    """

    structure_levels: Float[Tensor, " groups"]
    amplitudes: Float[Tensor, "groups n n"] | None
    plane: HalfPlane
    structure: Float[Tensor, " points"] | None
    pixel_size_angstrom: float

    @classmethod
    def of_groups(
        cls,
        noise: Noise,
        groups: Sequence[GroupNoise],
        box_size_px: int,
        pixel_size_angstrom: float,
        ctf: CtfParameters | None,
    ) -> "StackNoise":
        """The noise of a stack.

        Args:
            noise: its kind.
            groups: noise of each optics group.
            box_size_px: side of the images.
            pixel_size_angstrom: pixel size of the images.
            ctf: CTF of all images; None without one.
        """
        n, is_ice = box_size_px, noise == "ice"
        plane = HalfPlane.up_to(n, (n - 1) / 2)
        shot = [(1 - group.structural_share) ** 0.5 if is_ice else 1.0 for group in groups]
        spectra = [noise_amplitudes(n, noise, group.corner) for group in groups]
        levels = torch.tensor([part * group.deviation for part, group in zip(shot, groups, strict=True)])
        amplitudes = torch.stack(spectra) * levels[:, None, None]
        structure = _structure_amplitudes(plane, pixel_size_angstrom, ctf) if is_ice else None
        structure_levels = torch.tensor([group.deviation * group.structural_share**0.5 for group in groups])
        is_white = bool((amplitudes == 1).all())
        return cls(structure_levels, None if is_white else amplitudes, plane, structure, pixel_size_angstrom)

    def to(self, device: torch.device) -> "StackNoise":
        """The noise on another device."""
        amplitudes, structure = (
            None if values is None else values.to(device) for values in (self.amplitudes, self.structure)
        )
        levels, plane = self.structure_levels.to(device), self.plane.to(device)
        return StackNoise(levels, amplitudes, plane, structure, self.pixel_size_angstrom)

    def draw(
        self, group: Int[Tensor, " batch"], ctf: CtfParameters | None, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch n n"]:
        """Noise images.

        Args:
            group: index of each image's optics group.
            ctf: CTF of each image; None without one.
            generators: random number generators, of the noise that has not passed the CTF, and of that which has.
        """
        shape, device = (len(group), self.plane.box_size_px, self.plane.box_size_px), group.device
        images = torch.randn(shape, generator=generators[0], device=device)
        if self.amplitudes is not None:
            images = ifft_image(fft_image(images) * self.amplitudes[group])
        if self.structure is None:
            return images
        structure = self.plane.transform(torch.randn(shape, generator=generators[1], device=device)) * self.structure
        if ctf is not None:
            structure = structure * image_transfer(ctf, self.plane.frequencies_per_angstrom(self.pixel_size_angstrom))
        return images + self.structure_levels[group, None, None] * self.plane.images(structure)


def _structure_amplitudes(
    plane: HalfPlane, pixel_size_angstrom: float, ctf: CtfParameters | None
) -> Float[Tensor, " points"]:
    """Standard deviation of each coefficient of the structure, which gives images of mean variance 1 after the CTF."""
    frequencies = plane.frequencies_per_angstrom(pixel_size_angstrom)
    power = 1 / (1 + (_STRUCTURE_ANGSTROM**2) * frequencies.square().sum(-1))
    passed = power
    if ctf is not None:
        rows = torch.arange(0, len(ctf), max(1, len(ctf) // _SAMPLE))
        passed = power * image_transfer(ctf[rows], frequencies).square().mean(0)
    variance = (plane.weights * passed).sum() / plane.box_size_px**2
    return (power / variance).sqrt()


def normalise_extracted(
    images: Float[Tensor, "batch n n"],
) -> tuple[Float[Tensor, "batch n n"], Float[Tensor, " batch"]]:
    """Images normalised as RELION's extraction does it by default, and the divisor of each.

    A plane is fitted to the background outside a circle of 0.75 of half the box and subtracted from the image, which is
    then divided by the standard deviation of the background.
    """
    from cryoeq.data.preprocessing import background_mask  # not above, because of scipy

    n = images.shape[-1]
    x = (torch.arange(n, dtype=images.dtype) - n // 2) / n
    ramps = torch.stack([torch.ones(n, n), x.expand(n, n), x[:, None].expand(n, n)], -1).flatten(0, 1)
    outside = background_mask(n).flatten().nonzero().squeeze(1)
    fit = torch.linalg.pinv(ramps[outside]).T.to(images)
    ramps, outside = ramps.to(images), outside.to(images.device)
    pixels = images.flatten(1)
    slopes = pixels[:, outside] @ fit
    levelled = pixels - slopes @ ramps.T
    deviation = levelled[:, outside].std(1, correction=0)
    return (levelled / deviation[:, None]).view_as(images), deviation
