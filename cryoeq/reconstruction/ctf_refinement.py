"""Refinement of the CTF against the half maps: defocus of each particle, astigmatism of each micrograph.

With its pose and projection P known, the log-likelihood of an error d of a particle's defocus follows for all d at
once from sums over the circles of its transform y: the phase of the CTF moves by a(k) d, a = pi lambda k^2, so with
C = C(0) and K its quadrature (the CTF with a phase shift of pi / 2 more)::

    C(d) = C cos(a d) + K sin(a d)
    log p(y | d) = sum_k p [Re(y conj P) C(d) - 1/2 |P|^2 C(d)^2]

with p the inverse variance of the noise. Errors of particles and micrographs are then told apart by
``defocus_posterior``. An error of a micrograph's astigmatism, A cos 2 theta + B sin 2 theta beside the defocus, is one
Gauss-Newton step of the same likelihood, summed over its particles, shrunk towards 0 as far as such errors do not
differ beyond their own.

Each particle is compared with the map of the half set it does not belong to: its noise is part of the other, at the CTF
that it was given before, and would keep it there. The shells are those where the half maps agree (FSC > 0.143), so that
their FSC beyond them stays independent, from 30 Angstrom on: with all, errors of scale and background decide (1WCM,
128 px, SNR 0.05, errors of 513 Angstrom: 1,331 after one round in place of 235, where the curvature allows 240).

Zivanov et al. 2018, eLife 7, e42166 (CTF refinement in RELION).
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Progress
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.physics.backprojection import wiener_filter
from cryoeq.physics.ctf import electron_wavelength_angstrom, evaluate_ctf, phase_flips, with_defocus_moved
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction.defocus_posterior import defocus_posterior
from cryoeq.reconstruction.known_poses import noise_precision_of_groups
from cryoeq.reconstruction.state import FSC_THRESHOLD

STAGE = "CTF refinement"
RANGE_ANGSTROM, _STEP_ANGSTROM = 2000.0, 20.0
_TYPICAL_ERROR_ANGSTROM = 500.0  # of a defocus from the power spectrum of a micrograph, and of heights in the ice
# Phase by which such an error is to change the CTF at the finest shell. At less the likelihoods are flat over it, and
# what is left of errors of map and scale decides: right values of 1WCM moved by 229 Angstrom rms at 12 Angstrom.
_LEAST_PHASE_RAD = 0.22
_END = 0.8  # of the range: means beyond are of posteriors that its end cuts off
_COARSEST_ANGSTROM = 30.0
_MAX_PHASE = 0.1  # of the CTF's change across a ring, at the ends of the range
_BATCH_PX = 2**22


@dataclass(frozen=True)
class CtfErrors:
    """Errors of a stated CTF, to be added to it.

    Args:
        group: micrograph of each particle, from 0; its optics group where no micrograph is named.
        defocus_angstrom: of the mean defocus of each particle.
        defocus_sigma_angstrom: posterior standard deviation of that.
        astigmatism_angstrom: of each micrograph, (A, B): half the difference of both defocus values times the cosine
            and the sine of twice its angle.
        micrograph_sigma_angstrom: standard deviation of the micrographs' defocus errors.
        particle_sigma_angstrom: standard deviation of the particles' defocus errors within a micrograph.
        is_at_end: whether each particle's error is at an end of the range that was searched, or beyond it; None before
            any was.
    """

    group: Int[Tensor, " particles"]
    defocus_angstrom: Float[Tensor, " particles"]
    defocus_sigma_angstrom: Float[Tensor, " particles"]
    astigmatism_angstrom: Float[Tensor, "micrographs 2"]
    micrograph_sigma_angstrom: float = 0.0
    particle_sigma_angstrom: float = 0.0
    is_at_end: Bool[Tensor, " particles"] | None = None

    @property
    def share_at_end(self) -> float:
        """Share of the particles whose errors are at an end of the range, or beyond it."""
        return 0.0 if self.is_at_end is None else float(self.is_at_end.float().mean())

    @classmethod
    def none(cls, dataset: ParticleDataset) -> "CtfErrors":
        """No errors.

        Args:
            dataset: the particles.
        """
        table, zeros = dataset.table, torch.zeros(len(dataset))
        named = table.optics_index if table.micrograph_index is None else table.micrograph_index
        group = named.unique(return_inverse=True)[1]
        return cls(group, zeros, zeros, torch.zeros(int(group.max()) + 1, 2))

    def corrected(self, ctf: CtfParameters) -> CtfParameters:
        """The stated CTF with its errors mended; images whose phases were flipped stay flipped by the stated one.

        Args:
            ctf: as stated, of all particles.
        """
        moved = with_defocus_moved(self._with_astigmatism(ctf, slice(None)), self.defocus_angstrom)
        if not bool(ctf.is_phase_flipped.any()):
            return moved
        return replace(moved, flipped_by=ctf if ctf.flipped_by is None else ctf.flipped_by)

    def _with_astigmatism(self, ctf: CtfParameters, rows: slice | Int[Tensor, " rows"]) -> CtfParameters:
        change = self.astigmatism_angstrom[self.group[rows]]
        mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
        half = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 2
        x = half * (2 * ctf.defocus_angle_rad).cos() + change[:, 0]
        y = half * (2 * ctf.defocus_angle_rad).sin() + change[:, 1]
        size = torch.hypot(x, y)
        return replace(
            ctf,
            defocus_u_angstrom=mean + size,
            defocus_v_angstrom=mean - size,
            defocus_angle_rad=torch.atan2(y, x) / 2,
        )


def needed_resolution_angstrom(ctf: CtfParameters) -> float:
    """The resolution that maps must reach before the defocus can be told from them.

    An error d of the defocus changes the phase of the CTF by pi lambda d / r^2 at the resolution r: by ``0.22`` rad
    at least for an error of 500 Angstrom, 11.9 Angstrom at 300 kV.

    Args:
        ctf: of the particles.
    """
    wavelength = float(electron_wavelength_angstrom(ctf.voltage_kv).max())
    return math.sqrt(math.pi * wavelength * _TYPICAL_ERROR_ANGSTROM / _LEAST_PHASE_RAD)


def reached_shell(halves: HalfMaps) -> int:
    """First shell where the half maps no longer agree (FSC 0.143), up to which CTFs are compared.

    Args:
        halves: unfiltered half maps.
    """
    fsc = fourier_shell_correlation(halves.first.values, halves.second.values)
    below = (fsc < FSC_THRESHOLD).nonzero()
    return min(int(below[0]) if len(below) else len(fsc), halves.first.box_size_px // 2)


def refine_ctf(
    dataset: ParticleDataset,
    poses: Poses,
    half_set: Int[Tensor, " particles"],
    halves: HalfMaps,
    before: CtfErrors | None = None,
    *,
    range_angstrom: float = RANGE_ANGSTROM,
) -> Generator[Event, None, CtfErrors]:
    """Errors of the stated CTF of all particles.

    Args:
        dataset: particles with the CTF that was stated, by which they were not multiplied, at the box of the maps.
        poses: pose of each particle.
        half_set: 1 or 2 for each particle.
        halves: unfiltered half maps, whose device computes; all else is on the CPU.
        before: errors of an earlier round, which the maps were made with; None in the first, which leaves astigmatism
            as stated: its step needs the defocus.
        range_angstrom: largest error of the defocus that is looked for.

    Raises:
        ValueError: the particles have no CTF, or were multiplied by it.
    """
    stated = dataset.table.ctf
    if stated is None or bool(stated.is_premultiplied.any()):
        raise ValueError("the CTF is refined of images that have one and were not multiplied by it")
    n, pixel, device = dataset.box_size_px, dataset.pixel_size_angstrom, halves.first.values.device
    errors = CtfErrors.none(dataset) if before is None else before
    plane = HalfPlane.up_to(n, reached_shell(halves) - 0.5, device)
    snr = signal_to_noise(fourier_shell_correlation(halves.first.values, halves.second.values))
    slices = [prepare_slices(wiener_filter(each.values, snr)) for each in (halves.first, halves.second)]
    precision = noise_precision_of_groups(dataset, plane).to(device)
    frequencies = plane.frequencies_per_angstrom(pixel)
    weight = torch.where(frequencies.norm(dim=1) >= 1 / _COARSEST_ANGSTROM, plane.weights, 0.0)
    grid = torch.arange(-range_angstrom, range_angstrom + 1, _STEP_ANGSTROM, device=device)
    curves, steps, done = [], _AstigmatismSums.empty(len(errors.astigmatism_angstrom), device), 0
    for batch in dataset.batches(max(1, _BATCH_PX // n**2)):
        rows = batch.indices
        local = PoseSet.from_angstrom(poses[rows].to(device), pixel, n).each(torch.Tensor.float)
        predicted = torch.zeros(len(batch), len(plane), dtype=torch.complex64, device=device)
        for half in (1, 2):
            members = (half_set[rows] == half).nonzero().squeeze(1).to(device)
            predicted[members] = extract_slices(slices[2 - half], local.rotations[members], plane)
        centred = undo_optics(plane.transform(batch.images.to(device)), local.shifts_px, None, plane)
        if bool(stated.is_phase_flipped.any()):  # they are flipped back
            centred = centred * phase_flips(stated[rows].to(device), frequencies)
        weights = weight * precision[dataset.table.optics_index[rows].to(device)]
        ctf = errors._with_astigmatism(stated[rows], rows).to(device)
        compared = _Compared.of(ctf, centred, predicted, weights, frequencies)
        curves.append(compared.log_likelihoods(grid))
        if before is not None:
            there = replace(compared, ctf=with_defocus_moved(ctf, errors.defocus_angstrom[rows].to(device)))
            steps = steps.adding(there, errors.group[rows].to(device))
        done += len(batch)
        yield Progress(STAGE, done, len(dataset))
    found = defocus_posterior(torch.cat(curves), grid, errors.group.to(device))
    return CtfErrors(
        errors.group,
        found.mean_angstrom.cpu(),
        found.sigma_angstrom.cpu(),
        errors.astigmatism_angstrom + steps.step().cpu(),
        found.micrograph_sigma_angstrom,
        found.particle_sigma_angstrom,
        (found.mean_angstrom.abs() > _END * range_angstrom).cpu(),
    )


@dataclass(frozen=True)
class _Compared:
    """Particles beside their projections.

    Args:
        ctf: of the particles.
        cross: real part of each image times the conjugate projection, over the noise variance.
        power: power of the projection over the noise variance.
        frequencies: of the coefficients, in 1 / Angstrom.
    """

    ctf: CtfParameters
    cross: Float[Tensor, "batch points"]
    power: Float[Tensor, "batch points"]
    frequencies: Float[Tensor, "points 2"]

    @classmethod
    def of(
        cls,
        ctf: CtfParameters,
        centred: Complex[Tensor, "batch points"],
        predicted: Complex[Tensor, "batch points"],
        weights: Float[Tensor, "batch points"],
        frequencies: Float[Tensor, "points 2"],
    ) -> "_Compared":
        cross = weights * (centred * predicted.conj()).real
        return cls(ctf, cross, weights * predicted.abs().square(), frequencies)

    def ctf_and_quadrature(self) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points"]]:
        """CTF of each particle, and that with a phase shift of a quarter period more."""
        quarter = replace(self.ctf, phase_shift_rad=self.ctf.phase_shift_rad + math.pi / 2)
        return evaluate_ctf(self.ctf, self.frequencies), evaluate_ctf(quarter, self.frequencies)

    def log_likelihoods(self, grid: Float[Tensor, " grid"]) -> Float[Tensor, "batch grid"]:
        """Log-likelihood of each particle at each error of its defocus, up to a constant of the particle."""
        value, quadrature = self.ctf_and_quadrature()
        squared, wavelength = self.frequencies.square().sum(1), electron_wavelength_angstrom(self.ctf.voltage_kv)
        width = _MAX_PHASE / (math.pi * float(wavelength.max()) * float(grid[-1]))
        number = (squared / width).long()

        def ring_sums(values: Float[Tensor, "batch points"]) -> Float[Tensor, "batch rings"]:
            return values.new_zeros(len(values), int(number.max()) + 1).index_add(1, number, values)

        ring = torch.bincount(number, squared) / torch.bincount(number).clamp(min=1)  # 1 / Angstrom^2
        power = self.power / 2
        terms = [
            ring_sums(self.cross * value),
            ring_sums(self.cross * quadrature),
            ring_sums(power * (quadrature.square() - value.square()) / 2),
            -ring_sums(power * value * quadrature),
        ]
        constant = -(power * (value.square() + quadrature.square()) / 2).sum(1, keepdim=True)
        result = constant.repeat(1, len(grid))
        for each in wavelength.unique():
            rows = (wavelength == each).nonzero().squeeze(1)
            phase = math.pi * each * ring[:, None] * grid
            waves = (phase.cos(), phase.sin(), (2 * phase).cos(), (2 * phase).sin())
            result[rows] += sum(term[rows] @ wave for term, wave in zip(terms, waves, strict=True))
        return result


@dataclass(frozen=True)
class _AstigmatismSums:
    """Gradient and curvature of the log-likelihood over the astigmatism (A, B) of each micrograph."""

    gradient: Float[Tensor, "micrographs 2"]
    curvature: Float[Tensor, "micrographs 2"]

    @classmethod
    def empty(cls, count: int, device: torch.device) -> "_AstigmatismSums":
        return cls(torch.zeros(count, 2, device=device), torch.zeros(count, 2, device=device))

    def adding(self, compared: _Compared, group: Int[Tensor, " batch"]) -> "_AstigmatismSums":
        """The sums with some particles more."""
        value, quadrature = compared.ctf_and_quadrature()
        x, y = compared.frequencies.unbind(1)
        wavelength = electron_wavelength_angstrom(compared.ctf.voltage_kv)
        # d C / d A and d C / d B: k^2 cos 2 theta = x^2 - y^2, k^2 sin 2 theta = 2 x y.
        along = math.pi * wavelength[:, None] * quadrature
        derivatives = [along * (x.square() - y.square()), along * (2 * x * y)]
        residual = compared.cross - compared.power * value
        gradient = torch.stack([(residual * each).sum(1) for each in derivatives], 1)
        curvature = torch.stack([(compared.power * each.square()).sum(1) for each in derivatives], 1)
        return _AstigmatismSums(
            self.gradient.index_add(0, group, gradient), self.curvature.index_add(0, group, curvature)
        )

    def step(self) -> Float[Tensor, "micrographs 2"]:
        """Most probable change of the astigmatism of each micrograph."""
        variance = self.curvature.clamp(min=1e-12).reciprocal()
        change = self.gradient * variance
        # Variance of the errors themselves: that of the changes beyond their own, each weighted by what it tells.
        weight = self.curvature.square()
        excess = float((weight * (change.square() - variance)).sum() / weight.sum().clamp(min=1e-12))
        return change * (max(0.0, excess) / (max(0.0, excess) + variance))
