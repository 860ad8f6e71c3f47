"""View encoder: particles to a posterior over views, and to the poses of the most probable ones.

First filters are slices of a map along coarse views, at low resolution. Their correlations with a particle over all
in-plane angles, both mirrors and a few offsets are pooled to one number for each view, which is invariant under O(2).
A head that was trained on them gives the logits of the views of a finer grid, each up to its sign. For the most
probable of these, harmonic products at more shells have in-plane angle, mirror and offset.

A search tries all poses at all offsets of a grid. This tries coarse views at a wide lattice of offsets, and of what is
finer only what the posterior leaves: it costs less, and reaches shells that a search over all offsets does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import DiskHarmonics, disk_harmonics, support_radius
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.pointgroup import in_asymmetric_unit
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.models.view_head import ViewHead, nearness
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.offset_scores import log_likelihoods_around, vertex
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.view_likelihood import (
    ViewLikelihood,
    ViewProducts,
    inplane_rotations,
    log_offset_prior,
)

BOX_PX = 32
"""Side of the box, at most, in whose pixels views are compared: it holds all shells that are."""
COARSE_SHELL, MIDDLE_SHELL, LAST_SHELL = 8, 12, 15
KEPT = 8
"""Views of each particle that are left after the middle shell."""
SAME_VIEW_RAD = math.radians(20.0)
"""Views nearer than this are one, where another is asked for."""
_POSED = 4  # of them are posed at the last shell
_HEALPIX_ORDER = 2  # of the coarse views: 96 up to sign
_MIN_VIEWS = 12  # of an asymmetric unit, on average
# Views, and offsets of the coarse lattice, that are tried at the middle shell: as many as have all but a little of the
# posterior; that of offsets at a higher temperature, for it is too sure.
_TRIED, _CELLS = (16, 32, 96), (2, 4, 8)
_LITTLE, _TEMPERATURE = 0.03, 5.0
_OFFSETS_PER_WAVELENGTH = 2.0
_MOST_NATS = 100.0  # of a margin, where no other view was tried
_AT_A_TIME = 64  # particles


@dataclass(frozen=True)
class ViewSettings:
    """What a view encoder assumes of particles and map.

    Args:
        shift_sigma: standard deviation of the offsets per axis, as a fraction of the box; 0 where centred.
        mask_radius: radius of the spherical mask, as a fraction of the box.
        symmetry: rotations of the map's point group.
        last_shell: last shell that is compared, in cycles per box; ``LAST_SHELL`` at most.
    """

    shift_sigma: float
    mask_radius: float
    symmetry: Float[Tensor, "order 3 3"]
    last_shell: int = LAST_SHELL


@runtime_checkable
class ViewLogits(Protocol):
    """What can take the place of the slices: logits of the fine views."""

    def logits(self, particles: ParticleTransforms) -> Float[Tensor, "particles views offsets"]:
        """Logits of the fine views at all offsets of the coarse lattice: components of one posterior.

        Args:
            particles: particles in the box of the comparison, up to the last shell.
        """
        ...


@dataclass(frozen=True)
class ViewPosterior(ParticleRows):
    """Posterior over views of each particle.

    Args:
        logits: of the fine views, each up to its sign.
        pooled: log-likelihoods of coarse views and offsets; of offsets alone where a network gives them.
    """

    logits: Float[Tensor, "particles fine"]
    pooled: Float[Tensor, "particles coarse offsets"]


@dataclass(frozen=True)
class PosedViews(ParticleRows):
    """The most likely views of each particle, the most likely first, and the poses of the first few.

    Args:
        directions: of the views, each up to its sign, by their likelihood up to the middle shell.
        poses: of the most likely of them, up to the last shell.
        log_likelihood: of these poses, with the prior of the offset.
        margin: log-likelihood of the best view over that of the best one that is not near it, up to the middle shell.
    """

    directions: Float[Tensor, "particles kept 3"]
    poses: PoseSet
    log_likelihood: Float[Tensor, "particles posed"]
    margin: Float[Tensor, " particles"]

    def best(self) -> PoseSet:
        """The most likely pose of each particle."""
        return self.poses.each(lambda values: values[:, 0])


@dataclass(frozen=True)
class _Candidates(ParticleRows):
    """Views of each particle by their likelihood up to the middle shell, the most likely first.

    Args:
        views: their indices.
        offsets_px: the offset of each.
        margin: as in ``PosedViews``.
    """

    views: Int[Tensor, "particles kept"]
    offsets_px: Float[Tensor, "particles kept 2"]
    margin: Float[Tensor, " particles"]


@dataclass(frozen=True)
class ViewEncoder:
    """A map's views, and the head that was trained on them.

    Args:
        coarse: log-likelihoods of the coarse views.
        head: from those to logits of the fine views.
        middle: products with the fine views up to the middle shell.
        fine: products with the fine views up to the last shell.
        reference: the map and the noise, in the box of the comparison.
        settings: what was assumed.
        network: gives the logits in place of the coarse views and the head; None where these do.
    """

    coarse: ViewLikelihood
    head: ViewHead
    middle: ViewProducts
    fine: ViewProducts
    reference: Reference
    settings: ViewSettings
    network: ViewLogits | None = None

    @classmethod
    def build(
        cls,
        volume: Float[Tensor, "n n n"],
        particles: ParticleTransforms,
        settings: ViewSettings,
        precision: Float[Tensor, " points"] | None = None,
    ) -> "ViewEncoder":
        """An untrained encoder, which interpolates between coarse views.

        Args:
            volume: the map, at the particles' box.
            particles: particles like those to be posed, from which the noise is estimated.
            settings: what to assume.
            precision: of the noise, by ``shared_precision``; None for that of the particles beside this map.
        """
        device = volume.device
        small, compared = _in_small_box(volume, particles, settings)
        box, last = len(small), compared.plane.last_shell
        reference = Reference.prepare(small, compared) if precision is None else Reference.build(small, precision)
        order = _coarse_order(len(settings.symmetry))
        coarse, fine = (_views(each, settings.symmetry.to(volume)) for each in (order, order + 1))

        def harmonics(shell: int) -> DiskHarmonics:
            return disk_harmonics(box, min(shell, last), support_radius(settings.mask_radius, box), device)

        coarse_shell = min(COARSE_SHELL, last)
        pooled = ViewLikelihood.build(
            reference,
            coarse,
            harmonics(coarse_shell),
            shift_sigma_px=settings.shift_sigma * box,
            offset_step_px=box / (_OFFSETS_PER_WAVELENGTH * coarse_shell),
        )
        products = [ViewProducts.build(reference, fine, harmonics(shell)) for shell in (MIDDLE_SHELL, last)]
        head = ViewHead(coarse[:, 2], fine[:, 2], settings.symmetry.to(volume))
        return cls(pooled, head, products[0], products[1], reference, settings)

    @property
    def box_size_px(self) -> int:
        """Side of the box of the comparison."""
        return self.fine.harmonics.plane.box_size_px

    @property
    def last_shell(self) -> int:
        """The last shell of the comparison."""
        return int(self.fine.harmonics.plane.last_radius)

    @property
    def directions(self) -> Float[Tensor, "fine 3"]:
        """Directions of the fine views in the frame of the map, each up to its sign."""
        return self.fine.views[:, 2]

    def with_head_of(self, state: Mapping[str, Any]) -> "ViewEncoder":
        """The same encoder with a head that was trained before."""
        self.head.load_state_dict(dict(state))
        return self

    def with_network(self, network: ViewLogits) -> "ViewEncoder":
        """The same encoder whose logits a network gives."""
        return replace(self, network=network)

    @torch.no_grad()
    def posterior(self, particles: ParticleTransforms) -> ViewPosterior:
        """Posterior over views, invariant under in-plane rotations and mirrors.

        Args:
            particles: transforms at any box as wide in Angstrom, up to the coarse shell or further.
        """
        subset = self._within(particles, self.coarse.likelihood.harmonics)
        if self.network is not None:
            joint = self.network.logits(self._within(particles, self.fine.harmonics))
            return ViewPosterior(joint.logsumexp(2), joint.logsumexp(1, keepdim=True))
        rows = torch.arange(len(particles), device=particles.device)
        parts = [self.coarse(subset.rows(some)) for some in rows.split(_AT_A_TIME)]
        pooled = torch.cat(parts)
        return ViewPosterior(self._logits(pooled.logsumexp(2)), pooled)

    @torch.no_grad()
    def pose(self, particles: ParticleTransforms) -> PosedViews:
        """The most probable views of each particle with their poses, in pixels of the particles' box.

        Args:
            particles: transforms at any box as wide in Angstrom, up to the last shell.
        """
        n, posterior = particles.plane.box_size_px, self.posterior(particles)
        middle = self._within(particles, self.middle.harmonics)
        fine = self._within(particles, self.fine.harmonics)
        views = _as_many(posterior.logits, _TRIED)
        cells = _as_many(posterior.pooled.logsumexp(1) / _TEMPERATURE, _CELLS)
        posed, order = [], []
        for count in torch.stack([views, cells], 1).unique(dim=0).tolist():
            for rows in ((views == count[0]) & (cells == count[1])).nonzero().squeeze(1).split(_AT_A_TIME):
                found = self._candidates(middle.rows(rows), posterior.rows(rows), *count)
                posed.append(self._posed(fine.rows(rows), found))
                order.append(rows)
        whole = PosedViews.cat(posed).rows(torch.cat(order).argsort())
        return replace(whole, poses=whole.poses.in_box(n))

    def _logits(self, pooled: Float[Tensor, "particles coarse"]) -> Float[Tensor, "particles fine"]:
        """The head's; a single particle is summed as among others."""
        return self.head(pooled if len(pooled) > 1 else pooled.expand(2, -1))[: len(pooled)]

    def _within(self, particles: ParticleTransforms, harmonics: DiskHarmonics) -> ParticleTransforms:
        return particles.within(harmonics.plane.last_radius, self.box_size_px)

    def _candidates(
        self, particles: ParticleTransforms, posterior: ViewPosterior, n_views: int, n_cells: int
    ) -> _Candidates:
        """The most likely of the most probable views, by the products up to the middle shell."""
        lattice = self.coarse.offsets_px
        views = posterior.logits.topk(n_views).indices
        cells = posterior.pooled.logsumexp(1).topk(n_cells).indices
        offsets = (lattice[cells][:, :, None] + _quarters(lattice) * self._step_px).flatten(1, 2)
        offsets = offsets if len(lattice) > 1 else lattice.expand(len(views), -1, -1)
        scores = self.middle.highest(particles, views, offsets) + self._log_prior(offsets)[:, None]
        by_view, offset = scores.max(2)
        best = by_view.topk(min(KEPT, by_view.shape[1]))
        found = views.gather(1, best.indices)
        at = offset.gather(1, best.indices)[..., None].expand(-1, -1, 2)
        near = nearness(self.directions, self.directions[found[:, 0]], self.settings.symmetry).T.gather(1, views)
        others = by_view.masked_fill(near > math.cos(SAME_VIEW_RAD) ** 2, -math.inf).amax(1)
        return _Candidates(found, offsets.gather(1, at), (best.values[:, 0] - others).clamp(max=_MOST_NATS))

    def _posed(self, particles: ParticleTransforms, found: _Candidates) -> PosedViews:
        """Poses of the first views, up to the last shell: at the offsets found before, then at others about these."""
        views, offsets = found.views[:, :_POSED], found.offsets_px[:, :_POSED]
        posed = views.shape[1]
        row = torch.arange(len(views), device=views.device)[:, None]
        scores = self.fine.of_one_view(
            particles.rows(row.repeat_interleave(posed)), views.flatten(), offsets.flatten(0, 1)
        )
        n_angles = scores.shape[2]
        highest = scores.flatten(1).argmax(1)
        mirror, angle, pair = highest // n_angles, highest % n_angles, torch.arange(len(highest), device=row.device)
        turn = vertex(*(scores[pair, mirror, (angle + side) % n_angles] for side in (-1, 0, 1)))
        inplane = self.fine.inplane_rad[angle] + turn * (2 * math.pi / n_angles)
        rotations = (inplane_rotations(inplane, mirror) @ self.fine.views[views.flatten()]).unflatten(0, (-1, posed))
        shifts, value = self._at_offsets(particles, rotations, offsets)
        order = value.argsort(dim=1, descending=True, stable=True)
        poses = PoseSet(rotations[row, order], shifts[row, order], self.box_size_px)
        return PosedViews(self.directions[found.views], poses, value[row, order], found.margin)

    def _at_offsets(
        self,
        particles: ParticleTransforms,
        rotations: Float[Tensor, "rows posed 3 3"],
        tried: Float[Tensor, "rows posed 2"],
    ) -> tuple[Float[Tensor, "rows posed 2"], Float[Tensor, "rows posed"]]:
        """The most likely offset of each pose about the one tried, and the highest log-likelihood near it."""
        step = self._step_px / 4
        scores = log_likelihoods_around(self.reference, particles, rotations, tried, step)
        if len(self.coarse.offsets_px) == 1:
            return tried, scores[..., 0]
        scores = scores + self._log_prior(tried[..., None, :] + _cross(tried) * step)
        middle, right, left, up, down = scores.unbind(2)
        moves = [vertex(before, middle, after) for before, after in ((left, right), (down, up))]
        return tried + torch.stack(moves, 2) * step, scores.amax(2)

    def _log_prior(self, offsets_px: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        return log_offset_prior(offsets_px, self.settings.shift_sigma * self.box_size_px)

    @property
    def _step_px(self) -> float:
        return self.box_size_px / (_OFFSETS_PER_WAVELENGTH * int(self.coarse.likelihood.harmonics.plane.last_radius))


def shared_precision(
    volumes: Sequence[Float[Tensor, "n n n"]], particles: ParticleTransforms, settings: ViewSettings
) -> Float[Tensor, " points"]:
    """Inverse noise variance beside several maps, so that log-likelihoods under them compare.

    Args:
        volumes: map of each class, at the particles' box.
        particles: particles of all classes.
        settings: of the encoders.
    """
    small = [_in_small_box(volume, particles, settings) for volume in volumes]
    return noise_precision([prepare_slices(volume) for volume, _ in small], small[0][1])


def _as_many(logits: Float[Tensor, "particles choices"], numbers: Sequence[int]) -> Int[Tensor, " particles"]:
    """How many choices of each particle have all but a little of its posterior, rounded up to one of some numbers."""
    most = min(numbers[-1], logits.shape[1])
    share = logits.softmax(1).topk(most).values.cumsum(1)
    needed = ((share < 1 - _LITTLE).sum(1) + 1).clamp(max=most)
    steps = needed.new_tensor(numbers)
    return steps[torch.searchsorted(steps, needed)].clamp(max=most)


def _in_small_box(
    volume: Float[Tensor, "n n n"], particles: ParticleTransforms, settings: ViewSettings
) -> tuple[Float[Tensor, "m m m"], ParticleTransforms]:
    """Map and particles up to the last shell, in the box of the comparison."""
    small = small_volume(volume)
    return small, particles.within(min(settings.last_shell, compared_shell(len(volume))), len(small))


def compared_shell(box_size_px: int) -> int:
    """Last shell that can be compared, for particles of a box."""
    return min(LAST_SHELL, min(box_size_px, BOX_PX) // 2 - 1)


def small_volume(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "m m m"]:
    """A map in the box of the comparison."""
    n = len(volume)
    box = min(n, BOX_PX)
    return volume if box == n else ifft_map(crop_centred(fft_map(volume), box, 3))


def _coarse_order(n_symmetry: int) -> int:
    """HEALPix order of the coarse views: few would cover an asymmetric unit unevenly."""
    order = _HEALPIX_ORDER
    while 6 * 4**order < _MIN_VIEWS * n_symmetry:
        order += 1
    return order


def _views(healpix_order: int, symmetry: Float[Tensor, "order 3 3"]) -> Float[Tensor, "views 3 3"]:
    """One view of each antipodal pair, in the asymmetric unit of a point group; in-plane angle 0."""
    views = so3_grid(healpix_order, 1, dtype=symmetry.dtype, device=symmetry.device)
    views = views[views[:, 2] @ views.new_tensor([1.0, 1e2, 1e4]) > 0]
    return views[in_asymmetric_unit(views[:, 2], symmetry)] if len(symmetry) > 1 else views


def _quarters(like: Tensor) -> Float[Tensor, "4 2"]:
    """Centres of the quarters of a cell of side 1."""
    sides = like.new_tensor([-0.25, 0.25])
    return torch.cartesian_prod(sides, sides)


def _cross(like: Tensor) -> Float[Tensor, "5 2"]:
    """The centre and its neighbours: right, left, up, down."""
    return like.new_tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
