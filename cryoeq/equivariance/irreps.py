"""Groups of the plane: their elements, real irreducible representations, and the maps that commute with them.

Every group is a subgroup of O(2), and its irreps are those of O(2) on fewer elements. A rotation by theta acts on the
irrep of frequency k as a rotation by k theta, a mirror as diag(1, -1); where k is 0, or half the number of rotations,
the two components come apart into an even and an odd irrep of one dimension.

Sums over the elements find every map between two representations (Schur's lemma), Clebsch-Gordan coefficients among
them. Of so2 and o2 as many rotations are summed over as make those sums exact. Nothing is solved for numerically and
nothing is drawn at random: the same coefficients on every machine.

Serre 1977, Linear representations of finite groups, sections 2.6 and 2.7.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "rows columns"]

FLIP = np.diag([1.0, -1.0])
"""The y axis of irreps points up, that of array rows down."""
_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Element:
    """An element of O(2): a mirror x -> -x, or none, then a rotation from the x axis towards the y axis, y upwards.

    Args:
        is_mirrored: whether the element holds the mirror.
        angle_rad: angle of the rotation.
    """

    is_mirrored: bool
    angle_rad: float

    @property
    def matrix(self) -> Float[np.ndarray, "2 2"]:
        """The matrix by which the element acts on (x, y), y downwards as array rows are."""
        mirror = -FLIP if self.is_mirrored else np.eye(2)
        return FLIP @ rotation(self.angle_rad) @ mirror @ FLIP


@dataclass(frozen=True)
class Irrep:
    """One irreducible representation.

    Args:
        frequency: angular frequency of the irrep.
        is_odd: whether a mirror changes its sign, where there are two irreps of a frequency: at 0, and at half the
            number of rotations.
    """

    frequency: int
    is_odd: bool = False


def rotation(angle_rad: float) -> Float[np.ndarray, "2 2"]:
    """The matrix that rotates by an angle."""
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, -s], [s, c]])


def rotation_order(name: str) -> int:
    """Number of rotations of a group; 0 for all of them."""
    return 0 if name in ("so2", "o2") else int(name[1:])


def has_mirrors(name: str) -> bool:
    """Whether a group holds reflections."""
    return name[0] in "do"


def elements(name: str, rotations: int = 52) -> list[Element]:
    """All elements of a finite group, those without a mirror first; of so2 and o2 a uniform grid.

    Args:
        name: name of the group.
        rotations: number of rotations of the grid.
    """
    order = rotation_order(name) or rotations
    mirrors = (False, True) if has_mirrors(name) else (False,)
    return [Element(is_mirrored, 2 * math.pi * step / order) for is_mirrored in mirrors for step in range(order)]


def element_of(name: str, g: Float[np.ndarray, "2 2"]) -> Element:
    """The element that acts on the plane as the matrix g does on (x, y), y downwards.

    Raises:
        ValueError: the matrix is no element of the group.
    """
    is_mirrored = bool(np.linalg.det(g) < 0)
    if is_mirrored and not has_mirrors(name):
        raise ValueError(f"{name} has no mirrors")
    turned = FLIP @ g @ FLIP @ (-FLIP if is_mirrored else np.eye(2))
    angle_rad = math.atan2(turned[1, 0], turned[0, 0])
    order = rotation_order(name)
    if order:
        angle_rad = 2 * math.pi / order * (round(angle_rad * order / (2 * math.pi)) % order)
    element = Element(is_mirrored, angle_rad)
    if not np.allclose(element.matrix, g, atol=1e-6):
        raise ValueError(f"{g.tolist()} is no element of {name}")
    return element


def require_subgroup(name: str, subgroup: str) -> None:
    """Refuse what is no subgroup.

    Raises:
        ValueError: it is no subgroup.
    """
    order, smaller = rotation_order(name), rotation_order(subgroup)
    divides = order == 0 or (smaller > 0 and order % smaller == 0)
    if not divides or (has_mirrors(subgroup) and not has_mirrors(name)):
        raise ValueError(f"{subgroup} is no subgroup of {name}")


def is_paired(name: str, frequency: int) -> bool:
    """Whether the components of a frequency come apart: irreps of one dimension."""
    return frequency == 0 or 2 * frequency == rotation_order(name)


def irrep_size(name: str, irrep: Irrep) -> int:
    """Dimension of an irrep."""
    return 1 if is_paired(name, irrep.frequency) else 2


def irrep_name(name: str, irrep: Irrep) -> str:
    """Frequencies by which an irrep is told in reports; of a group with mirrors theirs, 0 or 1, comes first."""
    if not has_mirrors(name):
        return str(irrep.frequency)
    return f"{int(irrep.is_odd or irrep_size(name, irrep) == 2)},{irrep.frequency}"


def irreps_up_to(name: str, frequency: int) -> list[Irrep]:
    """All irreps up to a frequency, of which a finite group has a highest; the trivial one first."""
    order = rotation_order(name)
    highest = min(frequency, order // 2) if order else frequency
    if not has_mirrors(name):
        return [Irrep(k) for k in range(highest + 1)]
    irreps = [Irrep(0), Irrep(0, is_odd=True)]
    for k in range(1, highest + 1):
        irreps += [Irrep(k, is_odd=True), Irrep(k)] if is_paired(name, k) else [Irrep(k)]
    return irreps


def irrep_of(name: str, irrep: Irrep) -> Irrep:
    """The irrep under the one name by which a group knows it; where nothing rotates every frequency is 0.

    Raises:
        ValueError: the group has no irrep of that frequency.
    """
    order = rotation_order(name)
    frequency = 0 if order == 1 else irrep.frequency
    if frequency < 0 or 2 * frequency > order > 0:
        raise ValueError(f"{name} has no irrep of frequency {frequency}")
    return Irrep(frequency, irrep.is_odd and has_mirrors(name) and is_paired(name, frequency))


def irrep_matrix(name: str, irrep: Irrep, g: Element) -> Matrix:
    """The matrix of an irrep at an element."""
    angle_rad = irrep.frequency * g.angle_rad
    if is_paired(name, irrep.frequency):
        return np.array([[math.cos(angle_rad) * (-1.0 if g.is_mirrored and irrep.is_odd else 1.0)]])
    return rotation(angle_rad) @ (FLIP if g.is_mirrored else np.eye(2))


def endomorphisms(name: str, irrep: Irrep) -> list[Matrix]:
    """Basis of the matrices that commute with an irrep: 1, and a quarter turn where there is no mirror to forbid it."""
    size = irrep_size(name, irrep)
    return [np.eye(size), _TURN] if size == 2 and not has_mirrors(name) else [np.eye(size)]


def copies(name: str, acts: Callable[[Element], Matrix], frequency: int, irrep: Irrep) -> list[Matrix]:
    """Isometries from an irrep into a representation, one for each copy of it, with orthogonal images.

    Args:
        name: name of the group.
        acts: the representation, orthogonal.
        frequency: the highest frequency of the representation, for so2 and o2.
        irrep: the irrep.

    Returns:
        Matrices V of (representation, irrep) with acts(g) V = V irrep(g).
    """
    group = elements(name, frequency + irrep.frequency + 1)
    values = np.stack([acts(g) for g in group])
    wanted = np.stack([irrep_matrix(name, irrep, g) for g in group])
    size = wanted.shape[1]
    found: list[Matrix] = []
    spanned = np.zeros((0, values.shape[1] * size))
    # The mean of acts(g) E irrep(g)^-1 commutes with the group for any matrix E: here each with one 1 in column 0.
    for candidate in np.einsum("gap,gb->pab", values, wanted[:, :, 0]) / len(group):
        rest = candidate.flatten() - spanned.T @ (spanned @ candidate.flatten())
        if np.linalg.norm(rest) < _NEGLIGIBLE:
            continue
        isometry = rest.reshape(-1, size) * (math.sqrt(size) / np.linalg.norm(rest))
        found.append(isometry)
        alike = [(isometry @ e).flatten() / math.sqrt(size) for e in endomorphisms(name, irrep)]
        spanned = np.concatenate([spanned, np.stack(alike)])
    return found


def clebsch_gordan(name: str, first: Irrep, second: Irrep, irrep: Irrep) -> list[Matrix]:
    """Isometries from an irrep into the product of two others, one for each copy of it there.

    Returns:
        Matrices of (component of the first, component of the second; component of the irrep), the second's components
        running faster in the rows.
    """
    sizes = irrep_size(name, second), irrep_size(name, first), irrep_size(name, irrep)

    def product(g: Element) -> Matrix:
        return np.kron(irrep_matrix(name, second, g), irrep_matrix(name, first, g))

    found = copies(name, product, first.frequency + second.frequency, irrep)
    return [isometry.reshape(sizes).swapaxes(0, 1).reshape(-1, sizes[2]) for isometry in found]
