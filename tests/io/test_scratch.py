"""Images on a local disk: as they were, and gone with the process."""

import errno
from pathlib import Path

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.errors import OutputError
from cryoeq.io import scratch
from cryoeq.io.particles import read_particles
from cryoeq.io.scratch import keep_on_scratch


def test_images_come_back_and_leave_no_file(tmp_path: Path, generator: torch.Generator) -> None:
    images = torch.randn(10, 16, 16, generator=generator)
    kept = keep_on_scratch(tmp_path, (10, 16, 16), torch.split(images, 3))
    assert not list(tmp_path.iterdir())
    assert torch.equal(kept, images)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(kept[rows], images[rows])


def test_a_folder_that_cannot_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"none cannot take the images \(No such file.*They need .* GiB.*scratch-dir"):
        keep_on_scratch(tmp_path / "none", (1, 2, 2), [torch.zeros(1, 2, 2)])

    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="No space left"):
        keep_on_scratch(tmp_path, (1, 2, 2), [torch.zeros(1, 2, 2)])


def test_a_dataset_that_does_not_fit_into_memory(tmp_path: Path, tiny_particles: Path) -> None:
    stack = read_particles(tiny_particles / "particles.star")
    small, streamed, kept = (
        ParticleDataset.open(stack, **options)
        for options in ({}, {"cache_bytes": 0}, {"cache_bytes": 0, "scratch": tmp_path})
    )
    rows = torch.tensor([3, 40, 11])
    for dataset in (streamed, kept):
        torch.testing.assert_close(dataset.batch(rows).images, small.batch(rows).images)
    assert streamed.cache is None
    assert kept.cache is not None
    assert (small.is_large, streamed.is_large, kept.is_large) == (False, True, True)


def test_neighbours_stay_near_each_other(tiny_particles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoeq.data import dataset as module

    monkeypatch.setattr(module, "_RUN_LENGTH", 4)
    monkeypatch.setattr(module, "_MIXED_RUNS", 3)
    stack = read_particles(tiny_particles / "particles.star")
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ParticleDataset.open(stack).locality_order(order), order)
    large = ParticleDataset.open(stack, cache_bytes=0)
    near = large.locality_order(order)
    assert torch.equal(near.sort().values, torch.arange(48))
    for window in torch.split(near, 12):  # three runs of four neighbours each, mixed
        assert len(torch.unique(window // 4)) == 3
    assert not torch.equal(near, near.sort().values)
    assert len({tuple((window // 4).tolist()) for window in torch.split(near, 12)}) == 4


def test_batches_read_together_are_the_batches_read_one_by_one(
    tiny_particles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoeq.data import dataset as module
    from cryoeq.io.images import LazyImages

    monkeypatch.setattr(module, "_RUN_LENGTH", 4)
    monkeypatch.setattr(module, "_MIXED_RUNS", 5)
    dataset = ParticleDataset.open(read_particles(tiny_particles / "particles.star"), cache_bytes=0)
    parts = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:46].split(8)
    expected, read, requested = [dataset.batch(part) for part in parts], LazyImages.read, list[torch.Tensor]()
    monkeypatch.setattr(LazyImages, "read", lambda self, rows: requested.append(rows) or read(self, rows))
    for found, alone in zip(dataset.batches_of(iter(parts)), expected, strict=True):
        assert torch.equal(found.indices, alone.indices)
        assert torch.equal(found.images, alone.images)
        assert found.ctf is not None
        assert alone.ctf is not None
        assert torch.equal(found.ctf.defocus_u_angstrom, alone.ctf.defocus_u_angstrom)
    assert [len(rows) for rows in requested] == [24, 22], "20 images at least, of whole batches"
    assert all(torch.equal(rows, rows.sort().values) for rows in requested)
