"""Test of in-plane symmetry: do images depend on the direction on the detector, which equivariant encoders exclude?

For every rotation g of the plane, the image g.I of a particle is as likely as I, its CTF rotated along. Residual
astigmatism, coma, or drift in one direction break this symmetry. They are detected by a steerable filter with a learnt
degree of equivariance (Veefkind and Cesa 2024, arXiv 2406.03946), which maps projections at the inferred poses to the
particles. With a uniform likelihood over the group the filter is isotropic; every other angular order requires a
non-uniform likelihood, at a cost. The learnt likelihood is compared with those of sets in which every pair of particle
and projection was rotated by a random angle.

The filter acts in Fourier space, where a kernel of angular order l is the multiplier exp(i l phi), times i for odd l,
so that images stay real. Its channels are the projection with its CTF in overlapping frequency bands, and the
projection with the derivative of the CTF by defocus, of which an astigmatism is an order 2. Both sides of the
regression are sums over particles of products of images. Rotating a pair by theta multiplies these by exp(i l theta),
so rotated sets cost nothing and need no interpolation.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.equivariance import Irrep, LearntDegree, plane_group
from cryoeq.geometry.fourier import HalfPlane, crop_centred, fft_map, ifft_map
from cryoeq.physics.ctf import evaluate_ctf, image_transfer, phase_flips
from cryoeq.physics.image_formation import apply_optics
from cryoeq.physics.noise import shell_means
from cryoeq.physics.projection import extract_slices, prepare_slices

HIGHEST_ORDER = 3
"""Highest angular order. 1: coma and errors of the centre; 2: astigmatism and drift; 3: trefoil."""
ROTATED_SETS = 99
_BANDS = 2
_DEFOCUS_UNIT_ANGSTROM = 1000.0
_DEFOCUS_STEP_ANGSTROM = 20.0
_MAX_PARTICLES, _BATCH, _NOISE_SAMPLE = 20_000, 512, 1000
_BATCH_POINTS, _SAMPLE_POINTS = 2**20, 2**22  # Fourier coefficients at most: large boxes have fewer particles a batch
_ORDERS = torch.arange(-HIGHEST_ORDER, HIGHEST_ORDER + 1)
_ISOTROPIC_RIDGE = 1e-6
_PRIOR_SIGMA = 1.0  # standard deviation of the multipliers, and of the defocus in its unit
_DIVERGENCE_WEIGHT = 1.0  # nats of log-likelihood for each nat of divergence
_ITERATIONS = 60
_INITIAL_LOGIT = 0.1


@dataclass(frozen=True)
class InPlaneSymmetry:
    """Learnt likelihood over the in-plane rotations, for a set of particles and for sets rotated at random.

    Args:
        divergence: Kullback-Leibler divergence of the likelihood from the uniform one, in nats.
        rotated_divergences: divergence for each set whose particles and CTFs were rotated at random.
        likelihood: likelihood at evenly spaced angles from 0 on, with mean 1.
        rotated_likelihoods: likelihood for each rotated set.
        strengths: largest change of the transfer function by the filter, for angular orders from 1 on.
        astigmatism_angstrom: residual astigmatism U - V, by least squares; None without CTFs.
        astigmatism_sigma_angstrom: standard error of a component of the astigmatism, from the rotated sets.
        astigmatism_angle_deg: direction of the defocus U.
        count: number of particles.
    """

    divergence: float
    rotated_divergences: Float[Tensor, " sets"]
    likelihood: Float[Tensor, " angles"]
    rotated_likelihoods: Float[Tensor, "sets angles"]
    strengths: Float[Tensor, " orders"]
    astigmatism_angstrom: float | None
    astigmatism_sigma_angstrom: float | None
    astigmatism_angle_deg: float | None
    count: int

    @property
    def p_value(self) -> float:
        """Fraction of sets, this one included, whose divergence is at least as large."""
        above = int((self.rotated_divergences >= self.divergence).sum())
        return (1 + above) / (1 + len(self.rotated_divergences))

    @property
    def is_broken(self) -> bool:
        """Whether no rotated set has a divergence as large as this one."""
        return bool((self.rotated_divergences < self.divergence).all())


@dataclass(frozen=True)
class _Products:
    """Sums over particles; the first row is the unrotated set, the others are the rotated ones.

    Args:
        features: products of channels with each other, by difference of their angular orders.
        images: products of channels with the particles, by angular order.
    """

    features: Complex[Tensor, "sets differences channels channels"]
    images: Complex[Tensor, "sets orders channels"]


def measure_in_plane_symmetry(
    dataset: ParticleDataset,
    poses: Poses,
    half_set: Int[Tensor, " particles"],
    halves: HalfMaps,
    *,
    resolution_angstrom: float,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> InPlaneSymmetry:
    """Compare particles with projections of the half map that they are not in.

    Args:
        dataset: images of the particles.
        poses: poses of all particles.
        half_set: 1 or 2 for each particle; particles with another number are left out.
        halves: independent half maps, at the box of the dataset or a larger one.
        resolution_angstrom: highest resolution of the comparison.
        generator: random number generator of the rotations, on the CPU.
        device: device of the computation; None for the CPU.
    """
    n, pixel = dataset.box_size_px, dataset.pixel_size_angstrom
    plane = HalfPlane.up_to(n, max(4.0, min(n / 2 - 1e-3, n * pixel / resolution_angstrom)), device)
    half_set = half_set.cpu()
    rows = ((half_set == 1) | (half_set == 2)).nonzero().squeeze(1)
    if len(rows) > _MAX_PARTICLES:
        rows = rows[torch.linspace(0, len(rows) - 1, _MAX_PARTICLES).round().long()]
    padded = [_prepared(volume, n, device) for volume in (halves.second, halves.first)]
    sampled = min(_NOISE_SAMPLE, len(rows), 1 + _SAMPLE_POINTS // len(plane))
    sample = rows[torch.linspace(0, len(rows) - 1, sampled).round().long()]
    pairs, precision = _Pairs(dataset, poses, half_set, padded, plane, torch.ones_like(plane.radii)).scaled(sample)
    total: _Products | None = None
    for batch in rows.split(min(_BATCH, 1 + _BATCH_POINTS // len(plane))):
        angles = 2 * math.pi * torch.rand(ROTATED_SETS + 1, len(batch), generator=generator)
        angles[0] = 0.0
        sums = _multiply(*pairs.read(batch), plane, precision, angles.to(plane.coords.device))
        total = sums if total is None else _Products(total.features + sums.features, total.images + sums.images)
    if total is None:
        raise ValueError("no particle is in a half set")
    return _fit_filters(total, len(rows), has_ctf=dataset.table.ctf is not None)


@dataclass(frozen=True)
class _Pairs:
    """Particles and their predicted projections in each channel.

    Args:
        dataset: images of the particles.
        poses: poses of all particles.
        half_set: 1 or 2 for each particle.
        padded: padded transforms of the maps for half sets 1 and 2.
        plane: Fourier coefficients of the comparison.
        amplitude: amplitude of the particles relative to the projections, for each coefficient.
    """

    dataset: ParticleDataset
    poses: Poses
    half_set: Int[Tensor, " particles"]
    padded: list[Complex[Tensor, "m m m"]]
    plane: HalfPlane
    amplitude: Float[Tensor, " points"]

    def read(
        self, rows: Int[Tensor, " batch"]
    ) -> tuple[Complex[Tensor, "batch points"], Complex[Tensor, "channels batch points"]]:
        batch = self.dataset.batch(rows).to(self.plane.coords.device)
        transfer, slope = self._transfers(batch)
        projections = self._predict(rows)
        projected = projections if transfer is None else projections * transfer
        channels = [projected * band for band in _bands(self.plane)]
        if slope is not None:
            channels.append(projections * slope)
        return self.plane.transform(batch.images), torch.stack(channels)

    def scaled(self, rows: Int[Tensor, " sample"]) -> "tuple[_Pairs, Float[Tensor, ' points']]":
        """The pairs with projections scaled to the particles shell by shell, because half maps are noisy.

        Also the inverse variance of the residual for each coefficient, 0 at the origin.
        """
        observed, channels = self.read(rows)
        projected, plane = channels[:_BANDS].sum(0), self.plane
        scale = shell_means((observed * projected.conj()).real, plane).sum(0)
        scale = (scale / shell_means(projected.abs().square(), plane).sum(0).clamp(min=1e-20)).clamp(min=0)
        residual = shell_means((observed - scale[plane.shells] * projected).abs().square(), plane).mean(0)
        precision = torch.where(plane.radii > 0, plane.weights / residual[plane.shells].clamp(min=1e-20), 0.0)
        return replace(self, amplitude=scale[plane.shells]), precision

    def _predict(self, rows: Int[Tensor, " batch"]) -> Complex[Tensor, "batch points"]:
        device, pixel, n = self.plane.coords.device, self.dataset.pixel_size_angstrom, self.plane.box_size_px
        poses = PoseSet.from_angstrom(self.poses[rows], pixel, n).each(lambda values: values.float().to(device))
        is_first_half = (self.half_set[rows] == 1).to(device)
        slices = [extract_slices(volume, poses.rotations, self.plane) for volume in self.padded]
        own = torch.where(is_first_half[:, None], slices[0], slices[1]) * self.amplitude
        return apply_optics(own, poses.shifts_px, None, self.plane)

    def _transfers(self, batch: ParticleBatch) -> tuple[Tensor | None, Tensor | None]:
        if batch.ctf is None:
            return None, None
        frequencies = self.plane.frequencies_per_angstrom(self.dataset.pixel_size_angstrom)
        return image_transfer(batch.ctf, frequencies), _defocus_slope(batch.ctf, frequencies)


def _defocus_slope(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """Change of the transfer function if the microscope's defocus, not that of the star file, is larger by one unit."""
    step = _DEFOCUS_STEP_ANGSTROM
    more, less = (
        evaluate_ctf(
            replace(
                ctf,
                defocus_u_angstrom=ctf.defocus_u_angstrom + change,
                defocus_v_angstrom=ctf.defocus_v_angstrom + change,
            ),
            frequencies_per_angstrom,
        )
        for change in (step, -step)
    )
    slope = (more - less) * (_DEFOCUS_UNIT_ANGSTROM / (2 * step))
    values = evaluate_ctf(ctf, frequencies_per_angstrom)
    flips = phase_flips(ctf, frequencies_per_angstrom)
    return slope * torch.where(ctf.is_premultiplied[:, None] > 0, values, flips)


def _prepared(volume: Volume, n: int, device: torch.device | None) -> Complex[Tensor, "m m m"]:
    values = volume.values.float()
    return prepare_slices((values if len(values) == n else ifft_map(crop_centred(fft_map(values), n, 3))).to(device))


def _bands(plane: HalfPlane) -> Float[Tensor, "bands points"]:
    """Hat functions of the frequency with sum 1."""
    position = plane.radii / plane.radii.max() * (_BANDS - 1)
    return (1 - (position - torch.arange(_BANDS, device=position.device)[:, None]).abs()).clamp(min=0)


def _multiply(
    observed: Complex[Tensor, "batch points"],
    channels: Complex[Tensor, "channels batch points"],
    plane: HalfPlane,
    precision: Float[Tensor, " points"],
    angles_rad: Float[Tensor, "sets batch"],
) -> _Products:
    angle = torch.atan2(plane.coords[:, 1], plane.coords[:, 0]).to(angles_rad)
    orders = _ORDERS.to(angles_rad)
    differences = torch.arange(-2 * HIGHEST_ORDER, 2 * HIGHEST_ORDER + 1).to(angles_rad)
    waves = precision[:, None] * torch.exp(1j * angle[:, None] * differences)
    crossed = channels.conj()[:, None] * channels  # channel of the row, channel of the column
    features = torch.einsum("abnk,kd->ndab", crossed, waves)
    waves = precision[:, None] * torch.exp(-1j * angle[:, None] * orders)
    images = torch.einsum("ank,kl->nla", channels.conj() * observed, waves)
    return _Products(
        torch.einsum("rnd,ndab->rdab", torch.exp(1j * angles_rad[..., None] * differences), features),
        torch.einsum("rnl,nla->rla", torch.exp(-1j * angles_rad[..., None] * orders), images),
    )


def _normal_equations(products: _Products) -> tuple[Float[Tensor, "sets p p"], Float[Tensor, "sets p"]]:
    """Normal equations of the real weights: isotropic ones, then by order, (cosine, sine) and channel."""
    channels = products.images.shape[-1]
    orders = _ORDERS.to(products.images.device)
    phase = torch.where(orders % 2 == 0, 1.0, 1j).to(products.images)
    difference = orders[None, :] - orders[:, None] + 2 * HIGHEST_ORDER
    normal = products.features[:, difference] * (phase.conj()[:, None] * phase)[..., None, None]
    normal = normal.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    right = (products.images * phase.conj()[:, None]).flatten(1)
    # The map from real weights to those of exp(i l phi): cosine and sine are sums of l and -l.
    to_waves = torch.zeros(len(orders), 2 * HIGHEST_ORDER + 1, dtype=normal.dtype)
    to_waves[HIGHEST_ORDER, 0] = 1
    order = torch.arange(1, HIGHEST_ORDER + 1)
    for sign in (1, -1):
        to_waves[HIGHEST_ORDER + sign * order, 2 * order - 1] = 0.5
        to_waves[HIGHEST_ORDER + sign * order, 2 * order] = torch.tensor(-0.5j * sign, dtype=normal.dtype)
    change = torch.kron(to_waves, torch.eye(channels, dtype=normal.dtype)).to(normal.device)
    return (change.mH @ normal @ change).real.double().cpu(), (right @ change.conj()).real.double().cpu()


def _fit_filters(products: _Products, count: int, *, has_ctf: bool) -> InPlaneSymmetry:
    channels = products.images.shape[-1]
    normal, right = _normal_equations(products)
    # The isotropic weights are free: they are eliminated.
    isotropic = slice(0, channels)
    block = normal[:, isotropic, isotropic] + _ISOTROPIC_RIDGE * torch.eye(channels, dtype=normal.dtype)
    solved = torch.linalg.solve(block, torch.cat([normal[:, isotropic, channels:], right[:, isotropic, None]], 2))
    cross = normal[:, channels:, isotropic]
    reduced = normal[:, channels:, channels:] - cross @ solved[..., :-1]
    reduced_right = right[:, channels:] - (cross @ solved[..., -1:]).squeeze(2)
    divergences, likelihoods, filters = _learn_degrees(reduced, reduced_right, channels)
    strengths = filters[0].view(HIGHEST_ORDER, 2, channels).square().sum(1).sqrt().amax(1)
    size, sigma, angle = _astigmatism(reduced, reduced_right, channels) if has_ctf else (None, None, None)
    return InPlaneSymmetry(
        float(divergences[0]), divergences[1:], likelihoods[0], likelihoods[1:], strengths, size, sigma, angle, count
    )


def _learn_degrees(
    normal: Float[Tensor, "sets p p"], right: Float[Tensor, "sets p"], channels: int
) -> tuple[Float[Tensor, " sets"], Float[Tensor, "sets angles"], Float[Tensor, "sets p"]]:
    """Minimise least squares in nats plus the divergence of each likelihood from the uniform one and its misalignment.

    For a given likelihood the weights, with a normal prior, have a closed form.

    Returns:
        Divergences, likelihoods, and anisotropic multipliers.
    """
    sets, sizes = len(normal), (HIGHEST_ORDER, 2, channels)
    blocks, vectors = normal.view(sets, *sizes, *sizes), right.view(sets, *sizes)
    prior = torch.eye(normal.shape[1], dtype=normal.dtype) / _PRIOR_SIGMA**2
    degree = LearntDegree(plane_group("so2"), HIGHEST_ORDER, multiplicity=sets).double()
    start = (_INITIAL_LOGIT * degree.values[0]).expand(sets, -1)

    def solve() -> tuple[Tensor, Tensor]:
        admitted = torch.stack([degree.coefficient(Irrep(order)) for order in range(1, HIGHEST_ORDER + 1)], 1)
        matrix = torch.einsum("slia,slicmjd,smjb->slacmbd", admitted, blocks, admitted).reshape(normal.shape)
        target = torch.einsum("slia,slic->slac", admitted, vectors).flatten(1)
        weights = torch.linalg.solve(matrix + prior, target)
        multipliers = torch.einsum("slia,slac->slic", admitted, weights.view(sets, *sizes)).flatten(1)
        return -0.5 * (weights * target).sum(1), multipliers

    def cost(logits: np.ndarray) -> tuple[float, np.ndarray]:
        degree.logit = nn.Parameter(torch.from_numpy(logits).view(sets, -1))
        loss = (solve()[0] + _DIVERGENCE_WEIGHT * (degree.divergence() + degree.misalignment())).sum()
        (gradient,) = torch.autograd.grad(loss, degree.logit)
        return float(loss.detach()), gradient.flatten().numpy()

    scipy.optimize.minimize(
        cost, start.flatten().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    with torch.no_grad():
        return degree.divergence(), degree.likelihood(), solve()[1]


def _astigmatism(
    normal: Float[Tensor, "sets p p"], right: Float[Tensor, "sets p"], channels: int
) -> tuple[float, float, float]:
    """Fit order 2 of the derivative by defocus, all else free: size, standard error, direction in degrees."""
    weights = torch.linalg.lstsq(normal, right[..., None]).solution.squeeze(2).view(-1, HIGHEST_ORDER, 2, channels)
    cosine, sine = (2 * _DEFOCUS_UNIT_ANGSTROM * weights[:, 1, component, -1] for component in (0, 1))
    sigma = float(torch.cat([cosine[1:], sine[1:]]).square().mean().sqrt())
    return float(torch.hypot(cosine[0], sine[0])), sigma, math.degrees(float(torch.atan2(sine[0], cosine[0]))) / 2
