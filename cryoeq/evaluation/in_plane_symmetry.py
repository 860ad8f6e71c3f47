"""Whether particles look alike in every direction of the detector, as equivariant encoders take for granted.

For every rotation g of the plane, the image g.I of a particle is as likely as I, its CTF turned along. An astigmatism
that the CTF does not know, coma, or a drift of one direction break that. A steerable filter with a learnt degree of
equivariance (Veefkind and Cesa 2024, arXiv 2406.03946) finds them: it maps projections at the inferred poses to the
particles. With its likelihood over the group uniform it can be isotropic only, and every other angular order has to be
let in by the likelihood, at a cost. That likelihood is compared with those of the same pairs turned at random.

The filter acts in Fourier space, where a kernel of angular order l is a multiplier exp(i l phi), times i where l is
odd, so that images stay real. It has several channels: the projection with its CTF in overlapping bands of frequency,
and the projection with the derivative of the CTF by defocus, of which an astigmatism is an order 2. Both sides of the
regression are sums over particles of products of images; turning a pair by theta only multiplies those by
exp(i l theta), so that turned sets cost nothing and need no interpolation.
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
from cryoeq.physics.ctf import evaluate_ctf, image_transfer
from cryoeq.physics.image_formation import apply_optics
from cryoeq.physics.noise import shell_means
from cryoeq.physics.projection import extract_slices, prepare_slices

HIGHEST_ORDER = 3
"""1: coma and misplaced centres; 2: astigmatism and drift; 3: trefoil."""
TURNED_SETS = 99
_BANDS = 2
_DEFOCUS_UNIT_ANGSTROM = 1000.0
_DEFOCUS_STEP_ANGSTROM = 20.0
_MOST_PARTICLES, _BATCH, _NOISE_SAMPLE = 20_000, 512, 1000
_BATCH_POINTS, _SAMPLE_POINTS = 2**20, 2**22  # coefficients at a time: large boxes get fewer particles
_ORDERS = torch.arange(-HIGHEST_ORDER, HIGHEST_ORDER + 1)
_ISOTROPIC_RIDGE = 1e-6
_WIDTH = 1.0  # of the normal prior of multipliers, and of defocus in units
_PRICE = 1.0  # of a nat of divergence, in nats of the particles
_ITERATIONS = 60
_FIRST_LOGIT = 0.1


@dataclass(frozen=True)
class InPlaneSymmetry:
    """What the learnt likelihood says of a set of particles, and of the same ones turned at random.

    Args:
        divergence: of the likelihood from the uniform one (Kullback and Leibler), in nats.
        turned_divergences: of sets whose particles and CTFs were turned at random.
        likelihood: at evenly spaced angles from 0 on; its mean is 1.
        turned_likelihoods: of those sets.
        strengths: of the orders from 1 on: the largest change of the transfer that the filter makes.
        astigmatism_angstrom: U - V that the CTFs are short of, by least squares; None without CTFs.
        astigmatism_sigma_angstrom: standard error per component, from the turned sets.
        astigmatism_angle_deg: direction of U.
        count: particles that were looked at.
    """

    divergence: float
    turned_divergences: Float[Tensor, " sets"]
    likelihood: Float[Tensor, " angles"]
    turned_likelihoods: Float[Tensor, "sets angles"]
    strengths: Float[Tensor, " orders"]
    astigmatism_angstrom: float | None
    astigmatism_sigma_angstrom: float | None
    astigmatism_angle_deg: float | None
    count: int

    @property
    def p_value(self) -> float:
        """Share of sets, itself among them, whose divergence is at least as large."""
        above = int((self.turned_divergences >= self.divergence).sum())
        return (1 + above) / (1 + len(self.turned_divergences))

    @property
    def is_broken(self) -> bool:
        """No turned set has as large a divergence."""
        return bool((self.turned_divergences < self.divergence).all())


@dataclass(frozen=True)
class _Products:
    """Sums over particles, one row for the set as it is and one for each that was turned.

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
        dataset: the particles.
        poses: of all of them.
        half_set: 1 or 2 per particle; others are left out.
        halves: of the box of the dataset, independent.
        resolution_angstrom: up to which.
        generator: of the turns, on the CPU.
        device: where to compute.
    """
    n, pixel = dataset.box_size_px, dataset.pixel_size_angstrom
    plane = HalfPlane.up_to(n, max(4.0, min(n / 2 - 1e-3, n * pixel / resolution_angstrom)), device)
    half_set = half_set.cpu()
    rows = ((half_set == 1) | (half_set == 2)).nonzero().squeeze(1)
    if len(rows) > _MOST_PARTICLES:
        rows = rows[torch.linspace(0, len(rows) - 1, _MOST_PARTICLES).round().long()]
    padded = [_prepared(volume, n, device) for volume in (halves.second, halves.first)]
    sampled = min(_NOISE_SAMPLE, len(rows), 1 + _SAMPLE_POINTS // len(plane))
    sample = rows[torch.linspace(0, len(rows) - 1, sampled).round().long()]
    pairs, precision = _Pairs(dataset, poses, half_set, padded, plane, torch.ones_like(plane.radii)).scaled(sample)
    total: _Products | None = None
    for part in rows.split(min(_BATCH, 1 + _BATCH_POINTS // len(plane))):
        turns = 2 * math.pi * torch.rand(TURNED_SETS + 1, len(part), generator=generator)
        turns[0] = 0.0
        found = _multiply(*pairs.read(part), plane, precision, turns.to(plane.coords.device))
        total = found if total is None else _Products(total.features + found.features, total.images + found.images)
    if total is None:
        raise ValueError("no particle is in a half set")
    return _judge(total, len(rows), has_ctf=dataset.table.ctf is not None)


@dataclass(frozen=True)
class _Pairs:
    """Particles, and what is predicted of them in each channel."""

    dataset: ParticleDataset
    poses: Poses
    half_set: Int[Tensor, " particles"]
    padded: list[Complex[Tensor, "m m m"]]
    plane: HalfPlane
    trust: Float[Tensor, " points"]

    def read(
        self, rows: Int[Tensor, " batch"]
    ) -> tuple[Complex[Tensor, "batch points"], Complex[Tensor, "channels batch points"]]:
        batch = self.dataset.batch(rows).to(self.plane.coords.device)
        transfer, slope = self._transfers(batch)
        seen = self._predict(rows)
        projected = seen if transfer is None else seen * transfer
        channels = [projected * band for band in _bands(self.plane)]
        if slope is not None:
            channels.append(seen * slope)
        return self.plane.transform(batch.images), torch.stack(channels)

    def scaled(self, rows: Int[Tensor, " sample"]) -> "tuple[_Pairs, Float[Tensor, ' points']]":
        """The same with projections as large as the particles bear out, shell by shell: half maps are noisy.

        And 1 / variance of what projections leave of a particle, per coefficient; 0 at the origin.
        """
        observed, channels = self.read(rows)
        projected, plane = channels[:_BANDS].sum(0), self.plane
        scale = shell_means((observed * projected.conj()).real, plane).sum(0)
        scale = (scale / shell_means(projected.abs().square(), plane).sum(0).clamp(min=1e-20)).clamp(min=0)
        left = shell_means((observed - scale[plane.shells] * projected).abs().square(), plane).mean(0)
        precision = torch.where(plane.radii > 0, plane.weights / left[plane.shells].clamp(min=1e-20), 0.0)
        return replace(self, trust=scale[plane.shells]), precision

    def _predict(self, rows: Int[Tensor, " batch"]) -> Complex[Tensor, "batch points"]:
        device, pixel, n = self.plane.coords.device, self.dataset.pixel_size_angstrom, self.plane.box_size_px
        poses = PoseSet.from_angstrom(self.poses[rows], pixel, n).each(lambda values: values.float().to(device))
        is_main_process = (self.half_set[rows] == 1).to(device)
        slices = [extract_slices(volume, poses.rotations, self.plane) for volume in self.padded]
        own = torch.where(is_main_process[:, None], slices[0], slices[1]) * self.trust
        return apply_optics(own, poses.shifts_px, None, self.plane)

    def _transfers(self, batch: ParticleBatch) -> tuple[Tensor | None, Tensor | None]:
        if batch.ctf is None:
            return None, None
        frequencies = self.plane.frequencies_per_angstrom(self.dataset.pixel_size_angstrom)
        return image_transfer(batch.ctf, frequencies), _defocus_slope(batch.ctf, frequencies)


def _defocus_slope(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """Change of the transfer if the microscope's defocus, not that of the star file, is larger by one unit."""
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
    is_premultiplied = ctf.is_premultiplied[:, None] > 0
    return torch.where(is_premultiplied, slope * evaluate_ctf(ctf, frequencies_per_angstrom), slope)


def _prepared(volume: Volume, n: int, device: torch.device | None) -> Complex[Tensor, "m m m"]:
    values = volume.values.float()
    return prepare_slices((values if len(values) == n else ifft_map(crop_centred(fft_map(values), n, 3))).to(device))


def _bands(plane: HalfPlane) -> Float[Tensor, "bands points"]:
    """Hats over the frequencies, which add up to 1."""
    place = plane.radii / plane.radii.max() * (_BANDS - 1)
    return (1 - (place - torch.arange(_BANDS, device=place.device)[:, None]).abs()).clamp(min=0)


def _multiply(
    observed: Complex[Tensor, "batch points"],
    channels: Complex[Tensor, "channels batch points"],
    plane: HalfPlane,
    precision: Float[Tensor, " points"],
    turns: Float[Tensor, "sets batch"],
) -> _Products:
    angle = torch.atan2(plane.coords[:, 1], plane.coords[:, 0]).to(turns)
    orders = _ORDERS.to(turns)
    differences = torch.arange(-2 * HIGHEST_ORDER, 2 * HIGHEST_ORDER + 1).to(turns)
    waves = precision[:, None] * torch.exp(1j * angle[:, None] * differences)
    crossed = channels.conj()[:, None] * channels  # channel of the row, channel of the column
    features = torch.einsum("abnk,kd->ndab", crossed, waves)
    waves = precision[:, None] * torch.exp(-1j * angle[:, None] * orders)
    images = torch.einsum("ank,kl->nla", channels.conj() * observed, waves)
    return _Products(
        torch.einsum("rnd,ndab->rdab", torch.exp(1j * turns[..., None] * differences), features),
        torch.einsum("rnl,nla->rla", torch.exp(-1j * turns[..., None] * orders), images),
    )


def _normal_equations(products: _Products) -> tuple[Float[Tensor, "sets p p"], Float[Tensor, "sets p"]]:
    """Of the real weights: isotropic ones of each channel, then by order, (cosine, sine) and channel."""
    channels = products.images.shape[-1]
    orders = _ORDERS.to(products.images.device)
    phase = torch.where(orders % 2 == 0, 1.0, 1j).to(products.images)
    place = orders[None, :] - orders[:, None] + 2 * HIGHEST_ORDER
    normal = products.features[:, place] * (phase.conj()[:, None] * phase)[..., None, None]
    normal = normal.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    right = (products.images * phase.conj()[:, None]).flatten(1)
    # The map from real weights to those of exp(i l phi): cosine and sine are sums of l and -l.
    to_waves = torch.zeros(len(orders), 2 * HIGHEST_ORDER + 1, dtype=normal.dtype)
    to_waves[HIGHEST_ORDER, 0] = 1
    place = torch.arange(1, HIGHEST_ORDER + 1)
    for sign in (1, -1):
        to_waves[HIGHEST_ORDER + sign * place, 2 * place - 1] = 0.5
        to_waves[HIGHEST_ORDER + sign * place, 2 * place] = torch.tensor(-0.5j * sign, dtype=normal.dtype)
    change = torch.kron(to_waves, torch.eye(channels, dtype=normal.dtype)).to(normal.device)
    return (change.mH @ normal @ change).real.double().cpu(), (right @ change.conj()).real.double().cpu()


def _judge(products: _Products, count: int, *, has_ctf: bool) -> InPlaneSymmetry:
    channels = products.images.shape[-1]
    normal, right = _normal_equations(products)
    # The isotropic weights are free: they are eliminated.
    first = slice(0, channels)
    own = normal[:, first, first] + _ISOTROPIC_RIDGE * torch.eye(channels, dtype=normal.dtype)
    solved = torch.linalg.solve(own, torch.cat([normal[:, first, channels:], right[:, first, None]], 2))
    cross = normal[:, channels:, first]
    reduced = normal[:, channels:, channels:] - cross @ solved[..., :-1]
    wanted = right[:, channels:] - (cross @ solved[..., -1:]).squeeze(2)
    divergences, likelihoods, filters = _learn_degrees(reduced, wanted, channels)
    strengths = filters[0].view(HIGHEST_ORDER, 2, channels).square().sum(1).sqrt().amax(1)
    size, sigma, angle = _astigmatism(reduced, wanted, channels) if has_ctf else (None, None, None)
    return InPlaneSymmetry(
        float(divergences[0]), divergences[1:], likelihoods[0], likelihoods[1:], strengths, size, sigma, angle, count
    )


def _learn_degrees(
    normal: Float[Tensor, "sets p p"], right: Float[Tensor, "sets p"], channels: int
) -> tuple[Float[Tensor, " sets"], Float[Tensor, "sets angles"], Float[Tensor, "sets p"]]:
    """Least squares in nats, plus a divergence of each likelihood from the uniform one and its lack of alignment.

    For a given likelihood the weights, with a normal prior, have a closed form.

    Returns:
        Divergences, likelihoods, and anisotropic multipliers.
    """
    sets, sizes = len(normal), (HIGHEST_ORDER, 2, channels)
    blocks, vectors = normal.view(sets, *sizes, *sizes), right.view(sets, *sizes)
    prior = torch.eye(normal.shape[1], dtype=normal.dtype) / _WIDTH**2
    degree = LearntDegree(plane_group("so2"), HIGHEST_ORDER, copies=sets).double()
    start = (_FIRST_LOGIT * degree.values[0]).expand(sets, -1)

    def solve() -> tuple[Tensor, Tensor]:
        let_in = torch.stack([degree.coefficient(Irrep(order)) for order in range(1, HIGHEST_ORDER + 1)], 1)
        matrix = torch.einsum("slia,slicmjd,smjb->slacmbd", let_in, blocks, let_in).reshape(normal.shape)
        known = torch.einsum("slia,slic->slac", let_in, vectors).flatten(1)
        weights = torch.linalg.solve(matrix + prior, known)
        multipliers = torch.einsum("slia,slac->slic", let_in, weights.view(sets, *sizes)).flatten(1)
        return -0.5 * (weights * known).sum(1), multipliers

    def cost(logits: np.ndarray) -> tuple[float, np.ndarray]:
        degree.logit = nn.Parameter(torch.from_numpy(logits).view(sets, -1))
        loss = (solve()[0] + _PRICE * (degree.divergence() + degree.misalignment())).sum()
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
    """By the order 2 of the derivative by defocus, everything else free: size, standard error, direction in degrees."""
    weights = torch.linalg.lstsq(normal, right[..., None]).solution.squeeze(2).view(-1, HIGHEST_ORDER, 2, channels)
    cosine, sine = (2 * _DEFOCUS_UNIT_ANGSTROM * weights[:, 1, part, -1] for part in (0, 1))
    sigma = float(torch.cat([cosine[1:], sine[1:]]).square().mean().sqrt())
    return float(torch.hypot(cosine[0], sine[0])), sigma, math.degrees(float(torch.atan2(sine[0], cosine[0]))) / 2
