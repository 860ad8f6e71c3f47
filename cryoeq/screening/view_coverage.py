"""Angular coverage of a set of particles: gaps between viewing directions, and whether one hand fits all of them.

On the triangles between landmark views stands the local homology sheaf of degree 2 (``local_homology_sheaf``). Where
views surround a landmark its stalk is a line; at the boundary of a gap it vanishes. A covered sphere has one global
section. Where a view and its mirror image count as one, the views lie on the projective plane, which has none: no
choice of hand goes around it without a break. A graph of nearest neighbours would not do: its cliques overlap, and
nearly all of its vertices have no stalk although there is no gap.
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

MIN_GAP_DEG = 15.0
_LANDMARKS_PER_GAP = 4


@dataclass(frozen=True)
class AngularGap:
    """A region of the view sphere without particles.

    Args:
        axis: viewing direction farthest from all views of particles, a unit vector.
        radius_rad: angle from the axis to the nearest view.
        fraction: fraction of the sphere that the region covers.
    """

    axis: Float[Tensor, " 3"]
    radius_rad: float
    fraction: float


@dataclass(frozen=True)
class ViewCoverage:
    """Angular coverage of a set of views.

    Args:
        n_views: number of particles times the order of the point group.
        threshold_rad: radius above which a circle without views is a gap.
        chance_rad: radius of a gap that at most one in a hundred sets of uniformly random views has.
        are_opposites_one: whether mirrored views counted as one.
        triangulation: Delaunay triangulation of the landmarks.
        stalk_dims: dimension of the sheaf's stalk at each landmark: 1 inside, 0 at the boundary of a gap.
        n_sections: number of independent global sections: 1 where the sphere is covered.
        n_regions: number of connected regions of landmarks that have a stalk.
        n_orientable: number of these regions on which one choice of hand holds throughout.
        gaps: gaps in angular coverage, the widest first.
    """

    n_views: int
    threshold_rad: float
    chance_rad: float
    are_opposites_one: bool
    triangulation: ViewTriangulation
    stalk_dims: Int[Tensor, " landmarks"]
    n_sections: int
    n_regions: int
    n_orientable: int
    gaps: tuple[AngularGap, ...]

    @property
    def is_covered(self) -> bool:
        """Whether there are no gaps."""
        return not self.gaps

    @property
    def is_orientable(self) -> bool:
        """Whether one choice of hand holds throughout every region."""
        return self.n_orientable == self.n_regions


def measure_coverage(
    rotations: Float[Tensor, "particles 3 3"],
    *,
    symmetry: str = "C1",
    threshold_deg: float | None = None,
    are_opposites_one: bool = False,
) -> ViewCoverage:
    """Triangulate the views of a set of particles and find the gaps.

    Args:
        rotations: RELION's matrices A.
        symmetry: point group of the particle, which multiplies the views.
        threshold_deg: radius above which a circle without views is a gap; None for 15 degrees, or for the radius that
            chance leaves where there are so few views that it is larger.
        are_opposites_one: whether a view and its mirror image count as one, as in class averages that were mirrored.

    Raises:
        ParticleFileError: fewer than four different views.
        ConfigError: no such group.
    """
    group = symmetry_rotations(symmetry).to(rotations)
    views = torch.nn.functional.normalize((rotations[:, 2] @ group).flatten(0, 1).double(), dim=1)
    chance_rad = chance_radius_rad(len(views))
    default_rad = max(math.radians(MIN_GAP_DEG), min(chance_rad, math.pi / 2))
    threshold_rad = default_rad if threshold_deg is None else math.radians(threshold_deg)
    try:
        triangulation = triangulate_views(
            views, gap_rad=threshold_rad, spacing_rad=threshold_rad / _LANDMARKS_PER_GAP,
            are_opposites_one=are_opposites_one,
        )  # fmt: skip
    except ValueError as error:
        raise ParticleFileError(
            f"{len(rotations)} particles: {error}",
            "Expected four or more different views",
            "Check the file of the poses",
        ) from error
    sheaf = LocalHomologySheaf.from_complex(triangulation.complex_, 2)
    inner, dims = sheaf.interior, sheaf.vertices.dims
    n_regions = _count_regions(inner.edges, dims)
    return ViewCoverage(
        n_views=len(views),
        threshold_rad=threshold_rad,
        chance_rad=chance_rad,
        are_opposites_one=are_opposites_one,
        triangulation=triangulation,
        stalk_dims=dims,
        n_sections=sheaf.sheaf.n_sections(),
        n_regions=n_regions,
        n_orientable=inner.n_sections(),
        gaps=_find_gaps(triangulation),
    )


def _find_gaps(triangulation: ViewTriangulation) -> tuple[AngularGap, ...]:
    """Connected sets of wide triangles, the widest first."""
    wide = triangulation.is_gap.nonzero().squeeze(1)
    if not len(wide):
        return ()
    number_of = torch.full((len(triangulation.triangles),), -1).index_put((wide,), torch.arange(len(wide)))
    across = number_of[triangulation.neighbours[wide]]
    labels = _components(
        torch.arange(len(wide))[:, None].expand_as(across)[across >= 0], across[across >= 0], len(wide)
    )
    fractions = triangulation.solid_angles / (4 * math.pi)
    gaps = []
    for label in labels.unique().tolist():
        triangles = wide[labels == label]
        widest = triangles[triangulation.radii_rad[triangles].argmax()]
        # A triangle seen from outside closes the side of the sphere that holds no view.
        fraction = float(fractions[triangles].sum()) + float((fractions[triangles] < 0).any())
        gaps.append(AngularGap(triangulation.centres[widest], float(triangulation.radii_rad[widest]), fraction))
    gaps.sort(key=lambda gap: -gap.radius_rad)
    return tuple(_one_of_each_pair(gaps) if triangulation.are_opposites_one else gaps)


def _one_of_each_pair(gaps: list[AngularGap]) -> list[AngularGap]:
    """The first of two opposite gaps; a gap that is its own opposite stays."""
    return [
        gap
        for number, gap in enumerate(gaps)
        if not any(float(gap.axis @ other.axis) < -1 + 1e-6 for other in gaps[:number])
    ]


def _count_regions(edges: Int[Tensor, "edges 2"], dims: Int[Tensor, " landmarks"]) -> int:
    inside = (dims > 0).nonzero().squeeze(1)
    labels = _components(edges[:, 0], edges[:, 1], len(dims))
    return len(labels[inside].unique())


def _components(first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"], count: int) -> Int[Tensor, " items"]:
    """Number of the connected component of each item."""
    graph = coo_array((torch.ones(len(first)).numpy(), (first.numpy(), second.numpy())), shape=(count, count))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()
