"""Hand of a map: odd under mirrors, told of ideal helices, not told of what has none."""

import math

import numpy as np
import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.chirality import LocalChirality, local_chirality
from cryoeq.evaluation.hand import MIN_T, Hand, hand_remarks, measure_hand, score
from cryoeq.evaluation.verdict import RunFacts, judge_run
from cryoeq.maps.alignment import mirror_map
from cryoeq.simulation.density import sample_atoms
from phantoms import alpha_helices, gaussian_blobs

N, PIXEL = 64, 1.5


def _helices(generator: torch.Generator) -> Volume:
    return sample_atoms(alpha_helices(generator), N, PIXEL)


def _with_noise(volume: Volume, share: float, generator: torch.Generator) -> Volume:
    noise = torch.randn(volume.values.shape, generator=generator, dtype=torch.float64)
    return Volume(volume.values.double() + share * volume.values.double().std() * noise, volume.pixel_size_angstrom)


@pytest.mark.parametrize("n", [63, 64])
def test_a_mirror_negates_the_invariants_and_t_along_any_axis(n: int, generator: torch.Generator) -> None:
    volume = _with_noise(_helices(generator), 0.2, generator)
    volume = Volume(volume.values[:n, :n, :n], PIXEL)
    found, told = local_chirality(volume, 4.5), measure_hand(volume, 4.5)
    assert told is not None
    assert len(found.invariants) > 30
    for axis in range(3):
        values = volume.values.transpose(0, axis)
        mirrored = Volume(mirror_map(values).transpose(0, axis), PIXEL)
        sums = local_chirality(mirrored, 4.5).invariants.sum(0)
        np.testing.assert_allclose(sums, -found.invariants.sum(0), atol=1e-9)
        other = measure_hand(mirrored, 4.5)
        assert other is not None
        assert other.t == pytest.approx(-told.t, abs=1e-9)
        assert other.probability_right == pytest.approx(1 - told.probability_right, abs=1e-9)


def test_a_rotation_leaves_the_hand(generator: torch.Generator) -> None:
    volume = _helices(generator)
    turned = Volume(volume.values.rot90(1, (0, 2)).roll(1, 0), PIXEL)  # z -> x about voxel n // 2
    told, same = measure_hand(volume, 5.0), measure_hand(turned, 5.0)
    assert told is not None
    assert same is not None
    assert same.t == pytest.approx(told.t, rel=0.1)


@pytest.mark.parametrize("resolution", [4.0, 4.5])
def test_ideal_helices_turn_right_and_their_mirror_image_left(resolution: float, generator: torch.Generator) -> None:
    for _ in range(2):
        volume = _with_noise(_helices(generator), 0.3, generator)
        told = measure_hand(volume, resolution)
        other = measure_hand(Volume(mirror_map(volume.values), PIXEL), resolution)
        assert told is not None
        assert other is not None
        assert (told.found, other.found) == ("right", "left"), (told, other)


def test_blobs_at_random_places_have_no_hand(generator: torch.Generator) -> None:
    told = []
    for _ in range(8):
        positions = 25 * torch.randn(400, 3, generator=generator).clamp(-1.5, 1.5)
        volume = sample_atoms(gaussian_blobs(positions, torch.ones(400), 1.0), N, PIXEL)
        found = measure_hand(_with_noise(volume, 0.3, generator), 5.0)
        assert found is not None
        told.append(found.found)
    assert told.count("unknown") >= 6, told


def test_t_of_what_has_no_hand_is_of_unit_variance(generator: torch.Generator) -> None:
    weights = np.random.default_rng(0).standard_normal(5)
    positions = 100 * torch.rand(4000, 3, generator=generator, dtype=torch.float64).numpy()
    invariants = torch.randn(300, 4000, 5, generator=generator, dtype=torch.float64).numpy()
    drawn = np.array([score(LocalChirality(positions, some), weights) for some in invariants])
    assert abs(drawn.mean()) < 0.2
    assert 0.85 < drawn.std() < 1.15
    assert (abs(drawn) > MIN_T).mean() < 0.1


@pytest.mark.parametrize("order", [2, 4, 12])
def test_copies_by_symmetry_do_not_make_it_surer(order: int, generator: torch.Generator) -> None:
    """About an axis that is not the middle of the box, with positions that are off by a fraction of a voxel."""
    weights = np.random.default_rng(0).standard_normal(5)
    angles = 2 * math.pi * np.arange(order) / order
    turns = np.stack([[[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]] for a in angles])
    drawn = []
    for _ in range(300):
        one = (80 * torch.rand(1200 // order, 3, generator=generator, dtype=torch.float64) - 40).numpy()
        given = torch.randn(len(one), 5, generator=generator, dtype=torch.float64).numpy()
        noise = 0.3 * torch.randn(len(one) * order, 3, generator=generator, dtype=torch.float64).numpy()
        positions = np.concatenate([one @ turn.T for turn in turns]) + noise + 60
        drawn.append(score(LocalChirality(positions, np.tile(given, (order, 1))), weights))
    assert np.std(drawn) < 1.4  # of independent ones 1, of copies that count as such the root of their number


def test_it_is_not_computed_where_it_cannot_be_seen(generator: torch.Generator) -> None:
    volume = _helices(generator)
    assert measure_hand(volume, 8.1) is None
    assert measure_hand(volume, math.inf) is None
    assert measure_hand(Volume(volume.values, 4.1), 5.0) is None  # Nyquist is 8.2 Angstrom
    flat = measure_hand(Volume(torch.zeros(N, N, N), PIXEL), 6.0)
    assert flat is not None
    assert flat.found == "unknown"
    assert flat.t == 0


def test_what_is_said() -> None:
    right, left, unknown = Hand(7.2, 0.999), Hand(-3.1, 0.02), Hand(0.4, 0.6)
    assert Hand(1.9, 0.96).found == "unknown"  # by chance
    assert [hand.found for hand in (right, left, unknown)] == ["right", "left", "unknown"]
    assert "left-handed helices, probability 0.98" in left.text
    assert right.text == "right-handed helices, probability above 0.99 (t = 7.2)"
    assert len(list(hand_remarks(None, is_given=True))) == 0
    for hand, count in ((right, 1), (left, 1), (unknown, 2), (None, 1)):
        assert len(list(hand_remarks(hand, is_given=False))) == count
    facts = RunFacts("done", None, "search", 2, 100.0, 5.0, None, [0.9], (), hand=left)
    verdict = judge_run(facts)
    assert verdict.level == "found"
    assert any("mirror image" in reason.text and "--both-hands" in reason.advice for reason in verdict.reasons)
