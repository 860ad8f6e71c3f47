"""What the host asks of a GPU: launches and waits are counted, and may not become more."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.config.loading import load_config, packaged_file
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.volume import Volume
from cryoeq.geometry.so3 import random_rotations
from cryoeq.maps.alignment import align_map, mirror_map, rotate_map
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_dataset, build_stack, working_box
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.pipelines.simulate.simulate import simulate
from cryoeq.reconstruction.initial_model import estimate_initial_model
from cryoeq.reconstruction.multi_start import at_low_resolution
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from pretended_cuda.machine import MACHINE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.watch, reason="PRETENDED_CUDA is not set"),
]

COUNTS = 40, 120  # particles of the smaller and the larger stack


def totals() -> Counter[str]:
    return Counter(launches=MACHINE.kernels.total(), waits=MACHINE.waits.total())


def simulated(output: Path, count: int, **settings: object) -> Counter[str]:
    """Launches and waits of the simulation of a stack of 32 px."""
    before = totals()
    explicit = {
        "model": packaged_file("data_samples/1wcm_ca.pdb.gz"), "output": output, "count": count, "seed": 100,
        "box_size_px": 32, "snr": 0.1, "shift_sigma_angstrom": 5.0, "device": "cuda",
    }  # fmt: skip
    list(simulate(load_config(SimulateConfig, explicit=explicit | settings)))
    return totals() - before


@pytest.mark.parametrize("noise", ["white", "coloured", "ice"])
def test_a_simulation(noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is of 2^27 pixels: 32,768 images of 64 px, 2,048 of 256 px."""
    monkeypatch.setattr("cryoeq.simulation.particles._PIXELS_AT_ONCE", 2 * 32**2)
    few, many = (simulated(tmp_path / str(batches), 64 * batches, noise=noise) for batches in (1, 3))
    of_a_batch = Counter({what: (many[what] - few[what]) / 2 for what in many})
    assert 0 < of_a_batch["launches"] <= (200 if noise == "ice" else 125)
    assert 0 < of_a_batch["waits"] <= 4
    assert few["launches"] <= 360
    assert few["waits"] <= 40


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Star files of 40 and of 120 particles of 32 px."""
    folder = tmp_path_factory.mktemp("stacks")
    for count in COUNTS:
        simulated(folder / str(count), count, snr=0.5)
    return [folder / str(count) / "particles.star" for count in COUNTS]


def replayed() -> int:
    """Graphs that were replayed."""
    return sum(count for (_, what), count in MACHINE.kernels.items() if what == "graph")


def opened(star: Path, device: str, **settings: object) -> tuple[ParticleTransforms, AbInitioSettings]:
    """Particles and settings of the first map of a search."""
    explicit = {"particles": star, "output": star.parent / "run", "device": device, "seed": 100} | settings
    config = load_config(ReconstructConfig, explicit=explicit)
    stack = build_stack(config, with_poses=False)
    dataset = build_dataset(config, stack, working_box(config, stack))
    particles = result_of(load_transforms(dataset, torch.device(device)))
    return at_low_resolution(particles, build_ab_initio_settings(config, dataset))


def test_an_iteration_of_the_initial_model(stacks: list[Path]) -> None:
    """Of a default start: at first launched kernel by kernel, then as a graph for each radius."""
    small, settings = opened(stacks[1], "cuda")
    before = totals()
    list(estimate_initial_model(small, settings.initial_model, seed=100, start=0))
    used = totals() - before
    assert settings.initial_model.iterations == 150
    assert used["launches"] / 150 <= 60
    assert used["waits"] <= 40


def test_the_initial_model_of_graphs_is_that_of_a_cpu(stacks: list[Path]) -> None:
    """As long as rounding decides nothing: of 24 iterations half are replayed."""
    models, replays = [], 0
    for device in ("cpu", "cuda"):
        small, settings = opened(stacks[0], device)
        few = replace(settings.initial_model, iterations=24, first_shell=4, last_shell=5)
        before = replayed()
        models.append(result_of(estimate_initial_model(small, few, seed=100, start=0)))
        replays = replayed() - before
    assert replays >= 12
    tolerance = 1e-2 * float(models[0].volume.std())
    torch.testing.assert_close(models[1].volume.cpu(), models[0].volume, rtol=1e-2, atol=tolerance)
    torch.testing.assert_close(models[1].shifts_px.cpu(), models[0].shifts_px, rtol=0.0, atol=1e-2)
    assert models[1].log_evidence == pytest.approx(models[0].log_evidence, rel=1e-3)


SHORT = {
    "multi_start.min": 1, "multi_start.max": 1, "initial_model.iterations": 20, "initial_model.last_shell": 6,
    "consensus.shells": [5, 6], "consensus.max_extra_iterations": 0, "half_sets.iterations": 1,
    "half_sets.max_exhaustive_shell": 7, "local_refinement.iterations": 1, "offset_samples": 3,
}  # fmt: skip


def searched(star: Path) -> Counter[str]:
    """Launches and waits of a short search."""
    before = totals()
    options = [f"search.{key}={value}" for key, value in SHORT.items()]
    explicit = {"particles": star, "output": star.parent / "searched", "device": "cuda", "seed": 100}
    for _ in reconstruct(load_config(ReconstructConfig, overrides=options, explicit=explicit)):
        pass
    return totals() - before


def test_a_search(stacks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 2^21 numbers; a GPU of 140 GB has some of 2^30, so that 512 times fewer are launched a particle."""
    monkeypatch.setattr("cryoeq.runtime.batching._MAX_NUMBERS", 2**21)
    monkeypatch.setattr("cryoeq.reconstruction.local_refinement._MOST", 2**21)
    few, many = map(searched, stacks)
    slope = {what: (many[what] - few[what]) / (COUNTS[1] - COUNTS[0]) for what in many}
    fixed = {what: few[what] - slope[what] * COUNTS[0] for what in many}
    assert 0 < slope["launches"] <= 10
    assert 0 < fixed["launches"] <= 36_000
    assert slope["waits"] <= 0.05
    assert 0 < fixed["waits"] <= 130


def test_an_alignment(phantom_map: Volume, generator: torch.Generator) -> None:
    """Eight peaks are refined at once, and lead to where they lead one by one."""
    turned = rotate_map(phantom_map.values, random_rotations(1, generator)[0], torch.tensor([0.7, -0.4, 0.2]))
    noise = 0.3 * phantom_map.values.std() * torch.randn(turned.shape, generator=generator)
    maps = [Volume(mirror_map(turned) + noise, 5.0), phantom_map]
    on_cpu = align_map(*maps, with_hand=True)
    before = totals()
    found = align_map(*(Volume(each.values.to("cuda"), 5.0) for each in maps), with_hand=True)
    used = totals() - before
    assert used["launches"] <= 21_000
    assert used["waits"] <= 280
    assert found.is_mirrored
    assert found.correlation == pytest.approx(on_cpu.correlation, abs=1e-4)
    torch.testing.assert_close(found.rotation.cpu(), on_cpu.rotation, rtol=0.0, atol=3e-3)
    torch.testing.assert_close(found.shift_angstrom.cpu(), on_cpu.shift_angstrom, rtol=0.0, atol=3e-2)
