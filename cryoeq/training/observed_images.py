"""All images of a stack as a pose search needs them: Fourier coefficients times their CTF, and the CTF squared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.disk_harmonics import DiskHarmonics
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.ctf import ctf_condition, matched_filter
from cryoeq.physics.shift import shift_phases
from cryoeq.training.view_scores import POWER_ORDERS, MatchedImages, power_radii

_BATCH = 1024
_ANGLES = 8  # over half a turn, from which the harmonics of the squared CTF are found
_LEAST_NOISE, _QUIETEST = 0.05, 0.8  # of a shell's own variance, and of the least of all shells'


@dataclass(frozen=True)
class ObservedImages:
    """Particles up to a radius in Fourier space, sorted by radius so that a lower one is a prefix.

    Args:
        plane: the coefficients; shifts are in pixels of its box.
        matched: images times their CTF (as they are where premultiplied), not centred.
        power: CTF squared.
        power_harmonics: the CTF squared at the hats' radii, real and imaginary part of angular orders 0, 2 and 4.
        condition: what a conditioned encoder is told of each CTF, None without.
    """

    plane: HalfPlane
    matched: Complex[Tensor, "particles points"]
    power: Float[Tensor, "particles points"]
    power_harmonics: Float[Tensor, "power_orders particles hats 2"]
    condition: Float[Tensor, "particles 3"] | None = None

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def total_variance(self) -> Float[Tensor, " shells"]:
        """Variance per coefficient of signal and noise together, per shell, as seen through a CTF of 1."""
        return _shell_sums(self.matched.abs().square().sum(0), self.plane) / self._power_sums

    def noise_variance(self, map_power: Float[Tensor, " points"]) -> Float[Tensor, " shells"]:
        """Variance of the noise per shell, what a map leaves of the images' variance.

        Noise is flat, or falls with frequency, so no shell has much less of it than the quietest has of signal and
        noise together. Without that floor a map too strong in its first shells, which a CTF near 0 barely determines,
        would make them count for more than all others.

        Args:
            map_power: mean |P|^2 of the map's projections at each coefficient.
        """
        signal = _shell_sums(self.power.square().sum(0) * map_power, self.plane) / self._power_sums
        total = self.total_variance
        floor = (_LEAST_NOISE * total).clamp(min=_QUIETEST * float(total[1:].min()))
        return torch.maximum(total - signal, floor)

    @property
    def _power_sums(self) -> Float[Tensor, " shells"]:
        return _shell_sums(self.power.sum(0), self.plane).clamp(min=torch.finfo(torch.float32).tiny)

    def within(self, radius: float, box_size_px: int) -> "ObservedImages":
        """Fewer coefficients, of a smaller box.

        Args:
            radius: in cycles per box.
            box_size_px: of the new plane, in whose pixels shifts are counted.
        """
        part = self.plane.within(radius)
        count = len(part)
        hats = len(power_radii(float(part.radii.max())))
        return ObservedImages(
            replace(part, box_size_px=box_size_px),
            self.matched[:, :count],
            self.power[:, :count],
            self.power_harmonics[:, :, :hats],
            self.condition,
        )

    def rows(self, rows: Int[Tensor, " rows"]) -> "ObservedImages":
        """Some of the particles."""
        return replace(
            self,
            matched=self.matched[rows],
            power=self.power[rows],
            power_harmonics=self.power_harmonics[:, rows],
            condition=None if self.condition is None else self.condition[rows],
        )

    def centred(self, shifts_px: Float[Tensor, "particles 2"]) -> Complex[Tensor, "particles points"]:
        """The matched images, shifted."""
        return self.matched * shift_phases(-shifts_px, self.plane.coords, self.plane.box_size_px)

    def at_shifts(
        self,
        shifts_px: Float[Tensor, "particles trials 2"],
        harmonics: DiskHarmonics,
    ) -> MatchedImages:
        """Each particle at each of its trial shifts, one row per pair."""
        trials = shifts_px.shape[1]
        phases = shift_phases(-shifts_px.flatten(0, 1), self.plane.coords, self.plane.box_size_px)
        shifted = self.matched[:, None] * phases.view(len(self), trials, -1)
        power = self.power_harmonics.repeat_interleave(trials, 1) if trials > 1 else self.power_harmonics
        return MatchedImages(harmonics.analyse(shifted.flatten(0, 1)), power)


def observe_all(dataset: ParticleDataset, device: torch.device) -> Iterator[tuple[int, ObservedImages]]:
    """Read the stack; one pair (particles read, their images) per batch, to be joined by ``join``.

    Args:
        dataset: the particles, at the box where poses are inferred.
        device: where they are kept.
    """
    n = dataset.box_size_px
    plane = HalfPlane.up_to(n, n / 2 - 1, device)
    done = 0
    for batch in dataset.batches(_BATCH):
        moved = batch.to(device)
        matched, power, harmonics = plane.transform(moved.images), None, None
        if moved.ctf is not None:
            factor, power = matched_filter(moved.ctf, plane.frequencies_per_angstrom(dataset.pixel_size_angstrom))
            matched = matched * factor
            harmonics = _power_harmonics(moved.ctf, plane, dataset.pixel_size_angstrom)
        done += len(batch)
        if power is None or harmonics is None:
            power = torch.ones(matched.shape, device=device)
            hats = len(power_radii(float(plane.radii.max())))
            harmonics = torch.zeros(POWER_ORDERS, len(batch), hats, 2, device=device)
            harmonics[0, ..., 0] = 1.0
        condition = None if moved.ctf is None else ctf_condition(moved.ctf)
        yield done, ObservedImages(plane, matched, power, harmonics, condition)


def shell_precision(noise_variance: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Inverse noise variance per shell; 0 for shell 0, the mean of the image, which normalisation has changed."""
    return torch.cat([torch.zeros_like(noise_variance[:1]), noise_variance[1:].reciprocal()])


def join(parts: list[ObservedImages]) -> ObservedImages:
    """The batches of ``observe_all`` in one."""
    return ObservedImages(
        parts[0].plane,
        torch.cat([part.matched for part in parts]),
        torch.cat([part.power for part in parts]),
        torch.cat([part.power_harmonics for part in parts], 1),
        None if parts[0].condition is None else torch.cat([p.condition for p in parts if p.condition is not None]),
    )


def _power_harmonics(
    ctf: CtfParameters, plane: HalfPlane, pixel_size_angstrom: float
) -> Float[Tensor, "power_orders particles hats 2"]:
    radii = power_radii(float(plane.radii.max()), plane.coords.device)
    theta = torch.arange(_ANGLES, device=radii.device) * (torch.pi / _ANGLES)
    places = torch.stack([radii[:, None] * theta.cos(), radii[:, None] * theta.sin()], -1).flatten(0, 1)
    _, power = matched_filter(ctf, places / (plane.box_size_px * pixel_size_angstrom))
    series = torch.fft.fft(power.view(len(power), len(radii), _ANGLES), norm="forward")[..., :POWER_ORDERS]
    return torch.view_as_real(series.permute(2, 0, 1).contiguous())


def _shell_sums(values: Float[Tensor, " points"], plane: HalfPlane) -> Float[Tensor, " shells"]:
    shells = plane.shells
    return values.new_zeros(int(shells.max()) + 1).index_add(0, shells, values * plane.weights)
