"""The state of a refinement: its half sets, the map that each is compared with, and the box."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.fourier import fft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.reconstruction.state import ConsensusMap, HalfSetMaps, ParticlePoses, ReferenceMaps, RefinementState

N, HALF_SET = 16, (1, 2, 2, 1, 2)


def random_map(seed: int) -> Tensor:
    return low_pass(torch.randn(N, N, N, generator=torch.Generator().manual_seed(seed)), 6)


def state(reference: ReferenceMaps) -> RefinementState:
    generator, count = torch.Generator().manual_seed(5), len(HALF_SET)
    poses = replace(PoseSet.identity(count, N), shifts_px=torch.randn(count, 2, generator=generator))
    particles = replace(ParticlePoses.unknown(poses), confidence=torch.ones(count))
    return RefinementState(reference, torch.tensor(HALF_SET), particles, torch.ones(N // 2 + 1), radius=6, iteration=3)


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    return random_map(0), random_map(1)


def test_both_half_sets_are_compared_with_the_consensus_map(maps: tuple[Tensor, Tensor]) -> None:
    halves = list(state(ConsensusMap(maps[0])).halves())
    assert [(half, rows.tolist()) for half, rows, _ in halves] == [(1, [0, 3]), (2, [1, 2, 4])]
    assert all(volume is maps[0] for *_, volume in halves)


def test_each_half_set_is_compared_with_its_own_map(maps: tuple[Tensor, Tensor]) -> None:
    found = state(HalfSetMaps(*maps))
    assert [volume is own for (*_, volume), own in zip(found.halves(), maps, strict=True)] == [True, True]
    some = [rows.tolist() for _, rows, _ in found.halves(torch.tensor([4, 3, 1]))]
    assert some == [[3], [4, 1]]  # in the given order


def test_splitting_gives_both_half_sets_the_consensus_map_once(maps: tuple[Tensor, Tensor]) -> None:
    consensus = state(ConsensusMap(maps[0]))
    halves = consensus.split()
    assert isinstance(halves.reference, HalfSetMaps)
    assert all(volume is maps[0] for *_, volume in halves.halves())
    assert replace(halves, reference=consensus.reference) == consensus
    parted = state(HalfSetMaps(*maps))
    assert parted.split() is parted, "half sets that have parted keep their maps"


def test_merging_compares_all_particles_with_the_mean_of_the_half_maps(maps: tuple[Tensor, Tensor]) -> None:
    merged = state(HalfSetMaps(*maps)).merged()
    assert isinstance(merged.reference, ConsensusMap)
    torch.testing.assert_close(merged.reference.mean, (maps[0] + maps[1]) / 2)
    assert [rows.tolist() for _, rows, _ in merged.halves()] == [[0, 3], [1, 2, 4]], "the half sets stay what they are"
    torch.testing.assert_close(merged.split().merged().reference.mean, merged.reference.mean)


@pytest.mark.parametrize("is_split", [False, True])
def test_another_box_keeps_map_poses_and_shells(maps: tuple[Tensor, Tensor], is_split: bool) -> None:
    """Of a state in half the box: the same coefficients, shifts in the new pixels, no shell made up."""
    found = state(HalfSetMaps(*maps) if is_split else ConsensusMap(maps[0]))
    larger = found.to_box(2 * N)
    assert type(larger.reference) is type(found.reference)
    inner = slice(N // 2, 3 * N // 2)
    for half in (1, 2):
        ours, theirs = fft_map(larger.reference.of_half(half)), fft_map(found.reference.of_half(half))
        torch.testing.assert_close(ours[inner, inner, inner], theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(larger.poses.shifts_px, 2 * found.poses.shifts_px)
    assert larger.poses.box_size_px == 2 * N
    assert larger.fsc.shape == (N + 1,)
    assert not larger.fsc[N // 2 + 1 :].any()
    assert found.to_box(N) is found
    back = larger.to_box(N)
    for half in (1, 2):
        torch.testing.assert_close(back.reference.of_half(half), found.reference.of_half(half), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(back.poses.shifts_px, found.poses.shifts_px)
    assert torch.equal(back.fsc, found.fsc)


@pytest.mark.parametrize(
    ("fsc", "shell"),
    [([1.0, 0.9, 0.5, 0.2, 0.1, 0.3], 3), ([1.0, 0.9, 0.5, 0.2, 0.3, 0.3], 5), ([1.0, 0.0, 1.0, 1.0, 1.0, 1.0], 0)],
)
def test_the_resolution_is_the_last_shell_before_the_first_low_correlation(
    maps: tuple[Tensor, Tensor], fsc: list[float], shell: int
) -> None:
    assert replace(state(ConsensusMap(maps[0])), fsc=torch.tensor(fsc)).resolution_shell == shell
