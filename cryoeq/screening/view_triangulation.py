"""Spherical Delaunay triangulation of viewing directions (the convex hull of unit vectors), and the gaps in it.

The circumcircle of a Delaunay triangle encloses no vertex. A triangle whose circle is wider than a threshold is a gap
in angular coverage. Vertices are landmarks, views chosen far apart, so that the cost does not grow with the number of
particles. A wide circle may still enclose a view that is no landmark; such views become landmarks until every wide
circle is empty. The wide triangles are then those of the Delaunay triangulation of all views.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import brentq
from scipy.spatial import ConvexHull, cKDTree
from torch import Tensor

from cryoeq.screening.simplicial import SimplicialComplex

_JITTER = 1e-6  # moves any four landmarks off a common circle, so that the triangulation is unique
_TOLERANCE_RAD = 1e-4  # far above the jitter: a view this little inside of a circle does not count as enclosed
_CHANCE = 0.01


@dataclass(frozen=True)
class ViewTriangulation:
    """Delaunay triangles between landmark views.

    Args:
        landmarks: unit vectors.
        triangles: indices of three landmarks for each triangle; where a view and its opposite count as one, every
            triangle has an opposite one.
        neighbours: indices of the triangles across the three edges of each.
        centres: centre of the circumcircle of each triangle, on the side without landmarks.
        radii_rad: angular radius of the circumcircle, up to pi.
        is_gap: True where the circle is wider than the threshold.
        are_opposites_one: whether landmark i + n / 2 of n is the opposite of landmark i.
    """

    landmarks: Float[Tensor, "landmarks 3"]
    triangles: Int[Tensor, "triangles 3"]
    neighbours: Int[Tensor, "triangles 3"]
    centres: Float[Tensor, "triangles 3"]
    radii_rad: Float[Tensor, " triangles"]
    is_gap: Bool[Tensor, " triangles"]
    are_opposites_one: bool

    @property
    def complex_(self) -> SimplicialComplex:
        """The triangles that are no gaps; on the projective plane where a view and its opposite are one."""
        covered = self.triangles[~self.is_gap]
        if not self.are_opposites_one:
            return SimplicialComplex.from_simplices(len(self.landmarks), covered)
        half = len(self.landmarks) // 2
        return SimplicialComplex.from_simplices(half, covered % half)

    @property
    def solid_angles(self) -> Float[Tensor, " triangles"]:
        """Solid angle of each triangle as seen from the origin, negative where its outside is seen.

        All together 4 pi; 0 where the landmarks lie in less than half of the sphere, so that the origin is outside.
        Van Oosterom and Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125-126.
        """
        a, b, c = self.landmarks[self.triangles].unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum(1)
        volume = volume * torch.sign((self.centres * torch.linalg.cross(b - a, c - a)).sum(1))
        denominator = 1 + (a * b).sum(1) + (b * c).sum(1) + (c * a).sum(1)
        return 2 * torch.atan2(volume, denominator)


def triangulate_views(
    views: Float[Tensor, "views 3"], *, gap_rad: float, spacing_rad: float, are_opposites_one: bool = False
) -> ViewTriangulation:
    """Delaunay triangles between landmarks that are chosen from the views.

    Args:
        views: unit vectors, at least four of them different.
        gap_rad: angular radius of a circle without views from which on it is a gap.
        spacing_rad: least distance between landmarks, except at gaps, and largest distance of a view from a landmark.
        are_opposites_one: whether a view and its opposite, which see mirrored images, count as one.

    Raises:
        ValueError: fewer than four landmarks.
    """
    chosen = choose_landmarks(views, spacing_rad, are_opposites_one=are_opposites_one).double().cpu()
    all_views = views.double().cpu().numpy()
    if are_opposites_one:
        all_views = np.concatenate([all_views, -all_views])
    tree = cKDTree(all_views)
    while True:
        found = _triangulate(chosen, gap_rad, are_opposites_one=are_opposites_one)
        centres = found.centres[found.is_gap].numpy()
        if not len(centres):
            return found
        chords, nearest = (np.asarray(values) for values in tree.query(centres))
        angles = 2 * np.arcsin(np.minimum(chords / 2, 1.0))
        is_enclosed = angles < found.radii_rad[found.is_gap].numpy() - _TOLERANCE_RAD
        if not is_enclosed.any():
            return found
        enclosed = np.unique(nearest[is_enclosed] % len(views))
        chosen = torch.cat([chosen, torch.from_numpy(all_views[enclosed])])


def _triangulate(
    landmarks: Float[Tensor, "landmarks 3"], gap_rad: float, *, are_opposites_one: bool
) -> ViewTriangulation:
    jitter = torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    landmarks = torch.nn.functional.normalize(landmarks + _JITTER * jitter, dim=1)
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
        radii > gap_rad,
        are_opposites_one,
    )


def choose_landmarks(
    views: Float[Tensor, "views 3"], spacing_rad: float, *, are_opposites_one: bool = False
) -> Float[Tensor, "landmarks 3"]:
    """Farthest-point sampling: the view farthest from all landmarks is added until none is farther than the spacing.

    Args:
        views: unit vectors.
        spacing_rad: largest distance of a view from the nearest landmark.
        are_opposites_one: whether distances are angles between lines.
    """
    chosen = [int((views @ views.mean(0)).argmax())]
    closest = torch.full_like(views[:, 0], -1)
    while True:
        cosines = views @ views[chosen[-1]]
        closest = torch.maximum(closest, cosines.abs() if are_opposites_one else cosines)
        farthest = int(closest.argmin())
        if closest[farthest] > math.cos(spacing_rad) or farthest in chosen:
            return views[chosen]
        chosen.append(farthest)


def chance_radius_rad(n_views: int) -> float:
    """Angular radius of a gap that at most one in a hundred sets of uniformly random views has.

    A circle around a Delaunay triangle of random points encloses an area larger than x, in units of the area per
    point, with probability (1 + x) exp(-x), and there are about 2 n triangles. Wide circles overlap, so fewer sets have
    a gap than the expected number of wide triangles suggests.

    Args:
        n_views: number of views n.
    """
    area = brentq(lambda x: 2 * n_views * (1 + x) * math.exp(-x) - _CHANCE, 1.0, 700.0) if n_views > 1 else math.inf
    return math.acos(max(-1.0, 1 - 2 * area / n_views))
