"""Symmetry imposed from the start: the map is found on its axes, and a round map without symmetry leads there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.atoms import Atoms
from cryoeq.domain.events import result_of
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.shells import fourier_shell_correlation, remove_round_part
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import rotate_map
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_dataset, build_stack
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.half_set_refinement import begin_refinement
from cryoeq.reconstruction.initial_model import InitialModel, estimate_initial_model
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementState, Step
from cryoeq.simulation.density import replicate_atoms, sample_atoms
from phantoms import chiral_phantom
from pipeline_events import events_and_result

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def cage() -> Atoms:
    """24 copies of a chiral unit."""
    unit = chiral_phantom(10.0)
    aside = replace(unit, positions_angstrom=unit.positions_angstrom + torch.tensor([24.0, 12.0, 6.0]))
    return replicate_atoms(aside, symmetry_rotations("O"))


def read(particles: Path, symmetry: str) -> tuple[ParticleTransforms, AbInitioSettings]:
    given = {"particles": particles / "particles.star", "output": Path("none"), "search.symmetry": symmetry}
    config = load_config(ReconstructConfig, explicit=given)
    dataset = build_dataset(config, build_stack(config, with_poses=False), None)
    return result_of(load_transforms(dataset, torch.device("cpu"))), build_ab_initio_settings(config, dataset)


@pytest.fixture(scope="module")
def cages(simulate_atoms: Callable[..., Path]) -> Path:
    return simulate_atoms(cage())


def test_an_octahedral_map_is_found_on_its_axes(cages: Path) -> None:
    particles, settings = read(cages, "O")
    settings = settings.with_symmetric_start(9)
    initial = replace(settings.initial_model, iterations=40, batch_size=60)
    found = result_of(estimate_initial_model(particles, initial, seed=0, start=0)).volume
    for element in symmetry_rotations("O").float()[1:4]:
        turned = fourier_shell_correlation(rotate_map(found, element, torch.zeros(3)), found)
        assert float(turned[1 : initial.last_shell].min()) > 0.99
    truth = read_map(cages / "truth_volume.mrc").values
    small = ifft_map(crop_centred(fft_map(truth), len(found), 3))
    hands = [small, ifft_map(fft_map(small).conj())]
    agreements = [fourier_shell_correlation(*map(remove_round_part, (found, hand)))[2:6].mean() for hand in hands]
    assert max(agreements) > 0.6
    assert min(agreements) < 0.5


@pytest.mark.parametrize(("symmetry", "ends"), [("C1", "round"), ("D4", "round"), ("D4", "nowhere"), ("O", "round")])
def test_symmetry_is_imposed_where_without_it_no_more_than_a_round_map_is_found(
    monkeypatch: pytest.MonkeyPatch, cages: Path, symmetry: str, ends: str
) -> None:
    """Of C1 the round map is the result, without a restart for mixed hands."""
    particles, settings = read(cages, symmetry)
    n = particles.plane.box_size_px
    shell = soft_sphere(n, 7.0, 2.0) - soft_sphere(n, 4.0, 2.0)
    turned: list[Tensor] = [rotate_map(shell, element, torch.zeros(3)) for element in settings.refinement.symmetry]
    starts: list[bool] = []

    def start(*given: object, **_: object) -> Step:
        found = given[2]
        assert isinstance(found, AbInitioSettings)
        starts.append(found.starts_symmetric)
        yield from ()
        if ends == "nowhere" and not found.starts_symmetric:
            raise DivergedError("nothing", "Expected something", "Look again")
        noise = torch.randn(n, n, n, generator=torch.Generator().manual_seed(1))
        model = InitialModel((torch.stack(turned).mean(0) + 0.05 * noise)[None], torch.zeros(len(particles), 2), 0.0)
        half_set = torch.arange(len(particles)) % 2 + 1
        return begin_refinement(model, particles, half_set, found.refinement, 9)

    def stay(state: RefinementState, *_: object, **__: object) -> Step:
        yield from ()
        return state

    for name, stand_in in (("run_multi_start", start), ("refine_consensus", stay), ("with_realigned_worst", stay)):
        monkeypatch.setattr(f"cryoeq.reconstruction.ab_initio.{name}", stand_in)
    half_set = torch.arange(len(particles)) % 2 + 1
    events, state = events_and_result(reconstruct_ab_initio(particles, half_set, settings))
    assert starts == {"C1": [False], "D4": [False, True], "O": [True]}[symmetry]
    assert state.radius <= settings.refinement.shared_shell
    assert any("imposed from the start" in str(event) for event in events) == (symmetry == "D4")


def test_an_octahedral_phantom_is_mostly_not_round() -> None:
    """Else the first test would show nothing."""
    values = sample_atoms(cage(), 20, 5.0).values
    assert float(remove_round_part(values).norm()) > 0.3 * float(values.norm())
