"""A run without symmetry names the point group of its map, and says nothing where there is none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.atoms import Atoms
from cryoeq.domain.events import Note
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.symmetry_check import cropped, name_symmetry, symmetry_rows
from cryoeq.reconstruction.known_poses import ReconstructedMaps
from cryoeq.simulation.density import sample_atoms
from known_particles import ANGPIX, Known, N
from phantoms import chiral_phantom, symmetric_phantom

COUNT = 300


def atoms_of(symmetry: str, generator: torch.Generator) -> Atoms:
    if symmetry == "C1":
        return chiral_phantom(28.0)
    atoms = symmetric_phantom(symmetry, generator)
    return replace(atoms, positions_angstrom=atoms.positions_angstrom * 0.45)


def checked(known: Known, generator: torch.Generator, **settings: object) -> tuple[ReconstructionMetrics, list[str]]:
    """Metrics and notes of a check on maps with some noise."""
    values = known.volume.values
    noise = 0.3 * values.std()
    first, second = (
        replace(known.volume, values=values + noise * torch.randn(N, N, N, generator=generator)) for _ in range(2)
    )
    merged = replace(first, values=(first.values + second.values) / 2)
    posed = PosedParticles(known.poses, torch.arange(len(known.dataset)) % 2 + 1)
    explicit = {"particles": Path("p.star"), "output": Path("o")} | settings
    config = load_config(ReconstructConfig, explicit=explicit)
    events = name_symmetry(config, known.dataset, ReconstructedMaps(merged, HalfMaps(first, second), None), posed)
    notes = []
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value, notes
        notes += [event.text] if isinstance(event, Note) else []


@pytest.mark.parametrize("symmetry", ["C3", "C1", pytest.param("D2", marks=pytest.mark.slow)])
def test_the_group_of_map_and_particles_is_named_and_nothing_else(
    symmetry: str, make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = make_known(COUNT, sigma=1.0, shown=sample_atoms(atoms_of(symmetry, generator), N, ANGPIX))
    metrics, notes = checked(known, generator)
    if symmetry == "C1":
        assert metrics == ReconstructionMetrics()
        assert notes == []
        assert symmetry_rows(metrics) == {}
        return
    assert metrics.apparent_symmetry == symmetry
    assert metrics.symmetry_score == pytest.approx(1, abs=0.1)
    assert (metrics.symmetry_gain_nats or 0) > 0
    assert f"looks like {symmetry}" in notes[0]
    assert f"--sym {symmetry}" in symmetry_rows(metrics)["looks like"]


def test_particles_can_object(make_known: Callable[..., Known], generator: torch.Generator) -> None:
    """Maps alone show a symmetry, as those of a run that has mixed up pseudo-symmetric views do."""
    shown = sample_atoms(atoms_of("C3", generator), N, ANGPIX)
    of_another = make_known(COUNT, sigma=1.0, shown=sample_atoms(chiral_phantom(28.0), N, ANGPIX))
    metrics, notes = checked(replace(of_another, volume=shown), generator)
    assert metrics == ReconstructionMetrics()
    assert notes == []


@pytest.mark.parametrize("settings", [{"search.symmetry": "C3"}, {"pose_inference": "known"}])
def test_what_was_decided_is_not_questioned(
    settings: dict[str, object], make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = make_known(COUNT, sigma=1.0, shown=sample_atoms(atoms_of("C3", generator), N, ANGPIX))
    assert checked(known, generator, **settings) == (ReconstructionMetrics(), [])


def test_a_cropped_map_keeps_its_size_and_mean() -> None:
    volume = Volume(torch.rand(N, N, N, generator=torch.Generator().manual_seed(1)), ANGPIX)
    small = cropped(volume, 10)
    assert small.box_size_px * small.pixel_size_angstrom == pytest.approx(N * ANGPIX)
    assert cropped(volume, N) is volume
