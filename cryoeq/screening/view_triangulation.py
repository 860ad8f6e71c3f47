"""Triangles between views on the sphere: the spherical Delaunay triangulation, which is the convex hull of the views.

The circle around a Delaunay triangle encloses no view. A triangle whose circle is wider than a stated angle is
therefore a gap between views, and is left out.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import brentq
from scipy.spatial import ConvexHull
from torch import Tensor

from cryoeq.screening.simplicial import SimplicialComplex

_JITTER = 1e-6  # puts no four landmarks on one circle, so that there is one triangulation
_UNLIKELY = 0.01


@dataclass(frozen=True)
class ViewTriangulation:
    """Triangles between landmark views, narrow and wide ones apart.

    Args:
        landmarks: unit vectors.
        triangles: of all circles, three landmarks each; where mirrored views count as one, each pair of opposite
            triangles twice.
        neighbours: the three triangles across the edges of each.
        centres: of the circle around each triangle, on the side that holds no landmark.
        radii_rad: angle from the centre to the landmarks, up to pi.
        is_wide: whether the circle is wider than was asked for.
        are_opposites_one: whether landmark i + n stands for landmark i seen from the other side.
    """

    landmarks: Float[Tensor, "landmarks 3"]
    triangles: Int[Tensor, "triangles 3"]
    neighbours: Int[Tensor, "triangles 3"]
    centres: Float[Tensor, "triangles 3"]
    radii_rad: Float[Tensor, " triangles"]
    is_wide: Bool[Tensor, " triangles"]
    are_opposites_one: bool

    @property
    def complex_(self) -> SimplicialComplex:
        """The narrow triangles; on the projective plane where opposite views are one."""
        narrow = self.triangles[~self.is_wide]
        if not self.are_opposites_one:
            return SimplicialComplex.of(len(self.landmarks), narrow)
        half = len(self.landmarks) // 2
        return SimplicialComplex.of(half, narrow % half)

    @property
    def solid_angles(self) -> Float[Tensor, " triangles"]:
        """Solid angle of each triangle as seen from the origin, negative where its outside is seen.

        All together 4 pi; 0 where the landmarks lie in less than half of the sphere, so that the origin is outside.
        Van Oosterom and Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125-126.
        """
        a, b, c = self.landmarks[self.triangles].unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum(1)
        volume = volume * torch.sign((self.centres * torch.linalg.cross(b - a, c - a)).sum(1))
        spread = 1 + (a * b).sum(1) + (b * c).sum(1) + (c * a).sum(1)
        return 2 * torch.atan2(volume, spread)


def triangulate_views(
    views: Float[Tensor, "views 3"], *, widest_rad: float, spacing_rad: float, are_opposites_one: bool = False
) -> ViewTriangulation:
    """Delaunay triangles between landmarks that are chosen from the views.

    Args:
        views: unit vectors, four or more that differ.
        widest_rad: triangles with a larger circle are wide.
        spacing_rad: landmarks are at least this far apart, and no view is further from one.
        are_opposites_one: take a view and its opposite, which see mirrored images, for one.

    Raises:
        ValueError: fewer than four landmarks.
    """
    chosen = choose_landmarks(views, spacing_rad, are_opposites_one=are_opposites_one)
    jitter = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    landmarks = torch.nn.functional.normalize(chosen.double().cpu() + _JITTER * jitter, dim=1)
    if are_opposites_one:
        landmarks = torch.cat([landmarks, -landmarks])
    if len(landmarks) < 4:
        raise ValueError(f"{len(landmarks)} landmark views: a triangulation of the sphere needs four")
    hull = ConvexHull(landmarks.numpy())
    radii = torch.from_numpy(np.arccos(np.clip(-hull.equations[:, 3], -1, 1)))
    return ViewTriangulation(
        landmarks,
        torch.from_numpy(hull.simplices).long(),
        torch.from_numpy(hull.neighbors).long(),
        torch.from_numpy(hull.equations[:, :3].copy()),
        radii,
        radii > widest_rad,
        are_opposites_one,
    )


def choose_landmarks(
    views: Float[Tensor, "views 3"], spacing_rad: float, *, are_opposites_one: bool = False
) -> Float[Tensor, "landmarks 3"]:
    """Each time the view furthest from all landmarks, until none is further than the spacing.

    Args:
        views: unit vectors.
        spacing_rad: see there.
        are_opposites_one: measure angles between lines.
    """
    chosen = [int((views @ views.mean(0)).argmax())]
    closest = torch.full_like(views[:, 0], -1)
    while True:
        cosines = views @ views[chosen[-1]]
        closest = torch.maximum(closest, cosines.abs() if are_opposites_one else cosines)
        furthest = int(closest.argmin())
        if closest[furthest] > math.cos(spacing_rad) or furthest in chosen:
            return views[chosen]
        chosen.append(furthest)


def chance_radius_rad(n_views: int) -> float:
    """Radius of an empty cap that at most one in a hundred sets of even random views has.

    The circle around a Delaunay triangle of random points encloses an area x, in units of that which holds one of them
    on average, with probability (1 + x) exp(-x) of being larger, and there are about 2 n triangles.
    Wide ones come together, so that fewer sets have any than triangles are expected.

    Args:
        n_views: n.
    """
    area = brentq(lambda x: 2 * n_views * (1 + x) * math.exp(-x) - _UNLIKELY, 1.0, 700.0) if n_views > 1 else math.inf
    return math.acos(max(-1.0, 1 - 2 * area / n_views))
