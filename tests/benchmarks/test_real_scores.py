"""Scores of maps of experimental particles: a molecule is known again in every hand and frame, noise is not."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.mrc import write_map
from cryoeq.maps.alignment import mirror_map, rotate_map
from cryoeq.simulation.density import replicate_atoms, sample_atoms
from phantoms import random_phantom

FOLDER = Path(__file__).parent
N, PIXEL_ANGSTROM = 32, 6.0
MOVE_PX = torch.tensor([0.7, -0.4, 0.5])


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts of this folder as modules."""
    monkeypatch.syspath_prepend(FOLDER)
    import real_particles
    import real_scores

    yield real_particles, real_scores
    for name in (
        "real_particles",
        "real_scores",
        "real_pictures",
        "real_report",
        "recorded_runs",
        "ab_initio",
        "scoring",
    ):
        sys.modules.pop(name, None)


def molecule(symmetry: str, generator: torch.Generator) -> Volume:
    unit = random_phantom(12, 20.0, generator)
    aside = replace(unit, positions_angstrom=unit.positions_angstrom + torch.tensor([20.0, 12.0, 8.0]))
    return sample_atoms(replicate_atoms(aside, symmetry_rotations(symmetry)), N, PIXEL_ANGSTROM)


def in_other_frame(volume: Volume, generator: torch.Generator) -> Volume:
    turned = rotate_map(mirror_map(volume.values), random_rotations(1, generator)[0], MOVE_PX)
    return replace(volume, values=turned)


def test_the_other_hand_of_a_map_in_another_frame_is_the_same_map(benchmarks: Any, generator: torch.Generator) -> None:
    _, scores = benchmarks
    first, other = molecule("C1", generator), molecule("C1", generator)
    found = scores.same_map(first, in_other_frame(first, generator), 14.0)
    assert found["is_mirrored"]
    assert found["correlation"] > 0.98
    assert scores.same_map(first, other, 14.0)["correlation"] < 0.9


@pytest.mark.parametrize("symmetry", ["O", pytest.param("D2", marks=pytest.mark.slow)])
def test_a_molecule_is_known_again_and_noise_is_not(
    benchmarks: Any, symmetry: str, generator: torch.Generator, tmp_path: Path
) -> None:
    _, scores = benchmarks
    truth = molecule(symmetry, generator)
    write_map(tmp_path / "reference.mrc", in_other_frame(truth, generator))
    known = scores.read_known(tmp_path / "reference.mrc", symmetry, N, PIXEL_ANGSTROM)
    found, _ = scores.score_against(truth, known, symmetry, at_angstrom=16.0)
    assert found["corrected"]["shell_angstrom"] < 14.0
    assert found["fsc_at_16"] > 0.9
    noise = replace(truth, values=torch.randn(truth.values.shape, generator=generator))
    chance, _ = scores.score_against(noise, known, symmetry, at_angstrom=16.0)
    assert chance["fsc_at_16"] < 0.3
    assert (chance["corrected"]["shell_angstrom"] or 99.0) > 30.0


def test_a_reference_without_the_symmetry_is_refused(
    benchmarks: Any, generator: torch.Generator, tmp_path: Path
) -> None:
    _, scores = benchmarks
    write_map(tmp_path / "reference.mrc", molecule("C1", generator))
    with pytest.raises(ValueError, match="no D2 symmetry"):
        scores.read_known(tmp_path / "reference.mrc", "D2", N, PIXEL_ANGSTROM)


@pytest.mark.parametrize(("symmetry", "count"), [("D2", 6), ("O", 1), ("C1", 0)])
def test_a_group_fits_onto_itself_in_ways_that_are_not_its_own(benchmarks: Any, symmetry: str, count: int) -> None:
    _, scores = benchmarks
    ways, group = scores.ways_onto_itself(symmetry), symmetry_rotations(symmetry).float()
    assert len(ways) == count
    for number, way in enumerate(ways):
        copies = way @ group @ way.T
        assert (copies[:, None] - group).abs().amax((-2, -1)).amin(1).max() < 1e-6
        for other in ways[:number]:
            assert (other @ group - way).abs().amax((-2, -1)).min() > 0.1


def test_a_curve_is_read_between_shells(benchmarks: Any) -> None:
    _, scores = benchmarks
    fsc = torch.tensor([1.0, 1.0, 0.8, 0.4, 0.6], dtype=torch.float64)
    assert scores.fsc_at(fsc.tolist(), 100.0, 100 / 2.5) == pytest.approx(0.6)
    assert scores.curve_figures(fsc, 0.5, 100.0) == {"shell_angstrom": 50.0, "crossing_angstrom": 36.36}
    assert scores.curve_figures(0 * fsc, 0.5, 100.0) == {"shell_angstrom": None, "crossing_angstrom": None}


def test_the_table_counts_the_runs_that_reached_their_goal(benchmarks: Any) -> None:
    import real_report

    corrected = [14.0, 15.0, 15.1, None]
    runs = [
        {
            "set": "ribosome", "mode": "search", "seed": seed, "options": [], "exit_code": 0, "cpu_s": 60.0 + seed,
            "peak_rss_mib": 900.0, "commit": "a" * 40, "half_maps": {"corrected": value},
        }
        for seed, value in enumerate(corrected)
    ]  # fmt: skip
    (row,) = real_report.rows(runs)
    assert row[0] == "ribosome"
    assert row[1].startswith("≤ 15 Å within the mask: 2 of 4 (")
    assert "≥ 0.9 to 30 Å: 0 of 4" in row[1]
    assert "15 (14–15.1)" in row
    assert "61.5 (60–63)" in row


@pytest.mark.parametrize("commit", [None, "", "f" * 40, "5f36b027c8d646902bbf4c95ab9108072c202f57, with changes"])
def test_a_run_of_unknown_code_is_done_again(benchmarks: Any, commit: str | None) -> None:
    particles, _ = benchmarks
    assert not particles.is_same_code({"commit": commit})
