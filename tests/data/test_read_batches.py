"""Batches read for a device are those of the dataset: the same images, in the same order, with the same warnings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.prefetch import read_batches
from cryoeq.domain.particles import ParticleBatch
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import ParticleStack, read_particles

N, BOX = 23, 24


@pytest.fixture
def stack(tmp_path: Path) -> ParticleStack:
    """Noise, one image of it a hundred times as loud, and one with a hot pixel."""
    images = torch.randn(N, BOX, BOX, generator=torch.Generator().manual_seed(3))
    images[5] *= 100
    images[7, 4, 9] = 500.0
    with StackWriter(tmp_path / "noise.mrcs", N, BOX, 2.0) as writer:
        writer.append(images)
    return read_particles(tmp_path / "noise.mrcs")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("working_box_px", [BOX, 16])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_batches_of_a_device_are_those_of_the_dataset(
    stack: ParticleStack, device: str, working_box_px: int, cache_bytes: int
) -> None:
    there, here = (
        ParticleDataset.open(stack, working_box_px=working_box_px, cache_bytes=cache_bytes) for _ in range(2)
    )
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    read = list(read_batches(there, 4, torch.device(device), rows))
    expected: list[ParticleBatch] = list(here.batches(4, rows))
    assert [batch.indices.tolist() for batch in read] == [batch.indices.tolist() for batch in expected]
    for one, other in zip(read, expected, strict=True):
        assert one.images.device == torch.device(device)
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=1e-5, atol=1e-5)
    assert there.new_warnings() == here.new_warnings()
    assert there.census is not None
    assert here.census is not None
    assert torch.equal(there.census.loud, here.census.loud)
    assert there.census.loud.nonzero().tolist() == [[5]]
    assert there.census.replaced.nonzero().tolist() == [[7]]


def test_a_part_of_a_dataset_is_read_without_its_census(stack: ParticleStack) -> None:
    dataset = ParticleDataset.open(stack, cache_bytes=0)
    part = replace(dataset, census=None)
    (batch,) = read_batches(part, N, torch.device("cpu"))
    torch.testing.assert_close(batch.images, dataset.preprocessed(dataset.stored(torch.arange(N))).images)
