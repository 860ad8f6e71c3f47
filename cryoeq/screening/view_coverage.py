"""Which part of the view sphere a set of particles covers, and whether their hand can be told.

On the triangles between landmark views stands the local homology sheaf of degree 2 (``models/view_sheaf.py``). Where
views surround a landmark its stalk is a line; at the rim of a hole it vanishes. A covered sphere has one global
section. Where a view and its mirror image count as one, the views lie on the projective plane, which has none: no
choice of hand goes around it without a break. Why not a graph of nearest neighbours: its cliques overlap, and nearly
all of its vertices have no stalk although there is no hole.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.screening.local_homology_sheaf import LocalHomologySheaf
from cryoeq.screening.view_triangulation import ViewTriangulation, chance_radius_rad, triangulate_views

LEAST_HOLE_DEG = 15.0
_LANDMARKS_PER_HOLE = 4


@dataclass(frozen=True)
class ViewHole:
    """A region of the sphere from which no particle is seen.

    Args:
        axis: direction furthest from all views in it.
        radius_rad: angle from there to the nearest view.
        share: area of the triangles that were left out, of the sphere.
    """

    axis: Float[Tensor, " 3"]
    radius_rad: float
    share: float


@dataclass(frozen=True)
class ViewCoverage:
    """What a set of views covers.

    Args:
        n_views: particles times symmetry copies.
        widest_rad: radius from which on a gap counts as a hole.
        chance_rad: radius of a gap that even views have by chance in one set of a hundred at most.
        are_opposites_one: whether mirrored views counted as one.
        triangulation: of the landmarks.
        stalk_dims: of the sheaf, per landmark: 1 inside, 0 at a rim.
        n_sections: global sections: 1 where the sphere is covered.
        n_regions: connected regions of landmarks that have a stalk.
        n_orientable: of these, the regions on which one choice of hand holds throughout.
        holes: the widest first.
    """

    n_views: int
    widest_rad: float
    chance_rad: float
    are_opposites_one: bool
    triangulation: ViewTriangulation
    stalk_dims: Int[Tensor, " landmarks"]
    n_sections: int
    n_regions: int
    n_orientable: int
    holes: tuple[ViewHole, ...]

    @property
    def is_covered(self) -> bool:
        """Whether no gap is as wide as a hole."""
        return not self.holes

    @property
    def is_orientable(self) -> bool:
        """Whether one choice of hand holds throughout every region."""
        return self.n_orientable == self.n_regions


def measure_coverage(
    rotations: Float[Tensor, "particles 3 3"],
    *,
    symmetry: str = "C1",
    widest_deg: float | None = None,
    are_opposites_one: bool = False,
) -> ViewCoverage:
    """Triangulate the views of a set of particles and find its holes.

    Args:
        rotations: RELION's matrices A.
        symmetry: point group of the particle, whose copies of a view count like it.
        widest_deg: radius from which on a gap is a hole; None for 15 degrees, or more where there are so few views that
            chance leaves such gaps.
        are_opposites_one: take a view and its mirror image for one, as class averages that were mirrored do.

    Raises:
        ParticleFileError: fewer than four different views.
        ConfigError: no such group.
    """
    group = symmetry_rotations(symmetry).to(rotations)
    views = torch.nn.functional.normalize((rotations[:, 2] @ group).flatten(0, 1).double(), dim=1)
    chance_rad = chance_radius_rad(len(views))
    share_of_landmarks = 1 - 1 / _LANDMARKS_PER_HOLE
    found_rad = max(math.radians(LEAST_HOLE_DEG), min(chance_rad / share_of_landmarks, math.pi / 2))
    widest_rad = found_rad if widest_deg is None else math.radians(widest_deg)
    try:
        triangulation = triangulate_views(
            views, widest_rad=widest_rad, spacing_rad=widest_rad / _LANDMARKS_PER_HOLE,
            are_opposites_one=are_opposites_one,
        )  # fmt: skip
    except ValueError as error:
        raise ParticleFileError(
            f"{len(rotations)} particles: {error}", "Expected four or more different views", "Check the star file"
        ) from error
    sheaf = LocalHomologySheaf.of(triangulation.complex_, 2)
    inner, dims = sheaf.interior, sheaf.vertices.dims
    n_regions = _count_regions(inner.edges, dims)
    return ViewCoverage(
        n_views=len(views),
        widest_rad=widest_rad,
        chance_rad=chance_rad,
        are_opposites_one=are_opposites_one,
        triangulation=triangulation,
        stalk_dims=dims,
        n_sections=sheaf.sheaf.n_sections(),
        n_regions=n_regions,
        n_orientable=inner.n_sections(),
        holes=_find_holes(triangulation, views),
    )


def _find_holes(triangulation: ViewTriangulation, views: Float[Tensor, "views 3"]) -> tuple[ViewHole, ...]:
    """Wide triangles that share an edge are one hole."""
    wide = triangulation.is_wide.nonzero().squeeze(1)
    if not len(wide):
        return ()
    place = torch.full((len(triangulation.triangles),), -1).index_put((wide,), torch.arange(len(wide)))
    across = place[triangulation.neighbours[wide]]
    labels = _components(
        torch.arange(len(wide))[:, None].expand_as(across)[across >= 0], across[across >= 0], len(wide)
    )
    areas = triangulation.solid_angles[wide] / (4 * math.pi)
    holes = []
    for label in labels.unique().tolist():
        own = wide[labels == label]
        axis = triangulation.centres[own[triangulation.radii_rad[own].argmax()]]
        cosines = views @ axis.to(views)
        nearest = (cosines.abs() if triangulation.are_opposites_one else cosines).max().clamp(-1, 1)
        own_areas = areas[labels == label]
        share = float(own_areas.sum()) + float((own_areas < 0).any())  # the side of the sphere that holds no view
        holes.append(ViewHole(axis, float(nearest.acos()), share))
    holes.sort(key=lambda hole: -hole.radius_rad)
    return tuple(_one_of_each_pair(holes) if triangulation.are_opposites_one else holes)


def _one_of_each_pair(holes: list[ViewHole]) -> list[ViewHole]:
    """Of two opposite holes the one above; a hole that is its own opposite stays."""
    return [
        hole
        for number, hole in enumerate(holes)
        if not any(float(hole.axis @ other.axis) < -1 + 1e-6 for other in holes[:number])
    ]


def _count_regions(edges: Int[Tensor, "edges 2"], dims: Int[Tensor, " landmarks"]) -> int:
    inside = (dims > 0).nonzero().squeeze(1)
    labels = _components(edges[:, 0], edges[:, 1], len(dims))
    return len(labels[inside].unique())


def _components(first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"], count: int) -> Int[Tensor, " items"]:
    """The number of the connected component of each item."""
    graph = coo_array((torch.ones(len(first)).numpy(), (first.numpy(), second.numpy())), shape=(count, count))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()
