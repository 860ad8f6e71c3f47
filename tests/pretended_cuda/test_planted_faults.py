"""What would go wrong on a GPU alone is found on the pretended one: mistakes planted into cryoeq."""

import gc
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from cryoeq.data import prefetch as prefetch_module
from cryoeq.domain.events import result_of
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import PoseSet
from cryoeq.physics import backprojection
from cryoeq.reconstruction import local_refinement
from cryoeq.reconstruction.known_poses import reconstruct_from_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime import random_streams
from known_particles import Known
from pretended_cuda.machine import MACHINE, PretendedCudaError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.watch, reason="PRETENDED_CUDA is not set"),
]
CUDA = torch.device("cuda:0")
Plant = Callable[..., None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Replaces a part of a function's source."""

    def replace(owner: ModuleType | type, name: str, old: str, new: str) -> None:
        function = inspect.unwrap(getattr(owner, name))
        source = textwrap.dedent(inspect.getsource(function))
        assert old in source
        scope: dict[str, Any] = dict(function.__globals__)
        exec("from __future__ import " + "annotations\n" + source.replace(old, new), scope)
        monkeypatch.setattr(owner, name, scope[name])

    return replace


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What was complained about, which does not fail the test."""
    MACHINE.complaints.clear()
    yield MACHINE.complaints
    MACHINE.complaints.clear()


def batches() -> Iterator[ParticleBatch]:
    for number in range(4):
        yield ParticleBatch(torch.tensor([number]), torch.full((1, 8, 8), float(number)), None)


def use_batches() -> None:
    means = [(batch.images * 2).mean() for batch in prefetch_module.prefetch(batches(), CUDA)]
    gc.collect()
    assert torch.stack(means).tolist() == [0, 2, 4, 6]


def test_a_copy_that_nobody_waits_for(plant: Plant, complaints: list[str]) -> None:
    use_batches()
    assert complaints == []
    plant(prefetch_module, "_take_over", "stream.wait_event(is_copied)", "pass")
    with pytest.raises(PretendedCudaError, match="no event orders them"):
        use_batches()


def test_memory_that_is_given_away_too_early(plant: Plant, complaints: list[str]) -> None:
    plant(prefetch_module, "_take_over", "values.record_stream(stream)", "pass")
    use_batches()
    assert "record_stream" in complaints[0]


def test_pinned_memory_that_is_used_again(plant: Plant, complaints: list[str]) -> None:
    values = torch.ones(4)
    random_streams.to_device_async(values, CUDA)
    values += 1  # a copy of its own was pinned
    torch.cuda.synchronize()
    assert complaints == []
    plant(random_streams, "to_device_async", "values.pin_memory()", "values")
    pinned = torch.ones(4).pin_memory()
    random_streams.to_device_async(pinned, CUDA)
    pinned += 1
    torch.cuda.synchronize()
    assert "pinned memory was changed" in complaints[0]


@pytest.fixture
def refine(make_known: Callable[..., Known]) -> Callable[[], torch.Tensor]:
    """Local refinement of a few particles on the device."""
    known = make_known(4, sigma=0.1)
    particles: ParticleTransforms = result_of(load_transforms(known.dataset, CUDA))
    reference = Reference.prepare(known.volume.values.to(CUDA), particles)
    poses = PoseSet(known.poses.rotations.to(CUDA), known.shifts_px.to(CUDA), known.dataset.box_size_px)

    def call() -> torch.Tensor:
        refined = local_refinement.refine_poses(particles, reference, poses, shift_sigma_px=1.0, steps=2)
        return refined.rotation_sigma_rad

    return call


REFINEMENT = {
    "a constant of the CPU": (
        local_refinement, "refine_in_torch", ", device=rotations.device", "", "same device",
    ),
    "the kernel for CPUs": (local_refinement, "refine_poses", 'particles.device.type == "cpu" and ', "", "numpy"),
    "rows of the CPU": (local_refinement, "refine_poses", ", device=particles.device) if", ") if", "same device"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFINEMENT)
def test_faults_of_a_refinement(plant: Plant, refine: Callable[[], torch.Tensor], fault: str) -> None:
    owner, name, old, new, message = REFINEMENT[fault]
    right = refine()
    assert bool(right.isfinite().all())
    plant(owner, name, old, new)
    with pytest.raises((RuntimeError, TypeError), match=message):
        refine()


def test_a_sum_that_begins_with_garbage(plant: Plant, make_known: Callable[..., Known]) -> None:
    known = make_known(6)

    def make() -> bool:
        maps = reconstruct_from_poses(known.dataset, known.poses, device=CUDA)
        return bool(maps.all.values.isfinite().all())

    assert make()
    plant(backprojection.WienerBackprojection, "empty", "torch.zeros(3", "torch.empty(3")
    assert not make()
