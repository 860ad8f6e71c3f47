"""Laws of choosing particles: counts, nesting, idempotence, and no view above its share."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cryoeq.evaluation.selection import asymmetric_directions, balance_views, best_share, nearest_directions
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector

each_group = pytest.mark.parametrize("symmetry", ["C1", "C7", "D2", "D7", "T", "O", "I"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def preferred(count: int, generator: torch.Generator, spread_rad: float = 0.2) -> Tensor:
    """Half of the views about z, half anywhere."""
    rotations = random_rotations(count, generator).double()
    tilts = torch.randn(count // 2, 3, generator=generator, dtype=torch.float64)
    tilts[:, 2] = 0
    rotations[: count // 2] = rotation_from_vector(spread_rad * tilts)
    return rotations


def balance(rotations: Tensor, symmetry: str = "C1", percentile: float = 80.0, seed: int = 0, order: int = 2) -> object:
    return balance_views(
        rotations, symmetry=symmetry, healpix_order=order, percentile=percentile, generator=seeded(seed)
    )


@pytest.mark.parametrize("is_highest_best", [True, False])
def test_the_best_share_is_better_than_the_rest_and_nested(is_highest_best: bool, generator: torch.Generator) -> None:
    values = torch.randint(40, (501,), generator=generator).double()  # many are equal
    masks = [
        best_share(values, share, is_highest_best=is_highest_best, generator=seeded(3))
        for share in (0.001, 0.25, 0.5, 0.9, 1.0)
    ]
    assert [int(mask.sum()) for mask in masks] == [1, 125, 250, 451, 501]
    assert all((small <= large).all() for small, large in pairwise(masks))
    sign = 1 if is_highest_best else -1
    for mask in masks[:-1]:
        assert (sign * values[mask]).min() >= (sign * values[~mask]).max()


def test_the_lowest_are_the_highest_of_the_negative(generator: torch.Generator) -> None:
    values = torch.randn(100, generator=generator)
    lowest = best_share(values, 0.3, is_highest_best=False, generator=seeded(0))
    assert torch.equal(lowest, best_share(-values, 0.3, is_highest_best=True, generator=seeded(0)))


def test_equal_values_are_drawn_by_seed() -> None:
    first, again, other = (
        best_share(torch.ones(200), 0.5, is_highest_best=True, generator=seeded(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 25 < int(first[:100].sum()) < 75, "not the first rows"


@each_group
def test_directions_and_their_copies_cover_the_sphere_once(symmetry: str, generator: torch.Generator) -> None:
    group = symmetry_rotations(symmetry)
    directions = asymmetric_directions(group, 3)
    assert len(directions) == pytest.approx(768 / len(group), rel=0.35)
    assert nearest_directions(directions, directions, group).tolist() == list(range(len(directions)))
    views = random_rotations(3000, generator).double()[:, 2]
    copies = views @ group[-1]
    ours, theirs = (nearest_directions(each, directions, group) for each in (views, copies))
    assert (ours == theirs).double().mean() > 0.999, "all but views between two directions"
    nearest = (views[:, None] @ torch.einsum("pi,sij->psj", directions, group).flatten(0, 1).T).amax(-1)
    assert math.degrees(float(nearest.clamp(max=1).acos().max())) < 10, "no view is far from all of them"


@each_group
def test_no_direction_stays_above_its_limit(symmetry: str, generator: torch.Generator) -> None:
    result = balance(preferred(3000, generator), symmetry, order=3)
    after = torch.bincount(result.bins[result.is_kept], minlength=len(result.counts))
    assert torch.equal(after, torch.minimum(result.counts, result.limits))
    assert (result.counts > result.limits).any()
    assert after.sum() < 3000


@each_group
def test_what_is_balanced_stays(symmetry: str, generator: torch.Generator) -> None:
    rotations = preferred(2000, generator)
    kept = balance(rotations, symmetry).is_kept
    assert balance(rotations[kept], symmetry, seed=5).is_kept.all()


def test_seeds_differ_in_the_particles_not_in_their_number(generator: torch.Generator) -> None:
    rotations = preferred(2000, generator)
    first, again, other = (balance(rotations, seed=seed).is_kept for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.sum() == other.sum()


@each_group
def test_symmetric_copies_of_poses_make_no_difference(symmetry: str, generator: torch.Generator) -> None:
    rotations, group = preferred(1000, generator), symmetry_rotations(symmetry)
    copies = rotations @ group[torch.randint(len(group), (1000,), generator=generator)]
    ours, theirs = balance(rotations, symmetry), balance(copies, symmetry)
    assert (ours.bins == theirs.bins).double().mean() > 0.999
    assert torch.equal(ours.limits, theirs.limits)
    assert (ours.is_kept == theirs.is_kept).double().mean() > 0.99


def test_lower_percentiles_keep_less(generator: torch.Generator) -> None:
    rotations = preferred(2000, generator)
    kept = [int(balance(rotations, percentile=percentile).is_kept.sum()) for percentile in (0, 30, 60, 90, 100)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == 2000


@pytest.mark.parametrize("symmetry", ["C1", "C7", "D7"])
def test_views_on_an_axis_are_counted_by_area(symmetry: str, generator: torch.Generator) -> None:
    """Half of the views on the axis: what is left there is no denser than elsewhere, though its bin is smaller."""
    rotations = preferred(8000, generator, spread_rad=0.03)
    kept = balance(rotations, symmetry, percentile=60).is_kept
    heights = rotations[kept][:, 2, 2].abs()
    cap = 1 - math.cos(0.4)  # height of a cap about either pole, as a share of the heights
    share = float((heights > 1 - cap).double().mean())
    assert 0.5 * cap < share < 1.7 * cap
    assert float((rotations[:, 2, 2].abs() > 1 - cap).double().mean()) > 0.5


def test_even_views_are_nearly_left_alone(generator: torch.Generator) -> None:
    rotations = random_rotations(20_000, generator).double()
    assert float(balance(rotations, "C2").is_kept.double().mean()) > 0.95


def test_a_few_particles_of_one_view_are_not_all_lost() -> None:
    kept = balance(torch.eye(3, dtype=torch.float64).repeat(5, 1, 1), percentile=0).is_kept
    assert kept.all()
    views = torch.cat(
        [torch.eye(3), rotation_from_vector(torch.tensor([1.5, 0, 0]))[None].repeat(9, 1, 1).flatten(0, 1)]
    )
    assert int(balance(views.view(10, 3, 3).double(), percentile=0).is_kept.sum()) == 2


def test_groups_of_a_very_high_order_have_directions() -> None:
    for symmetry in ("C101", "D60"):
        rotations = random_rotations(500, seeded(0)).double()
        assert balance(rotations, symmetry, order=1).is_kept.any()
