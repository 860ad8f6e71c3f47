"""Particles in batches."""

from pathlib import Path

import pytest
import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.half_sets import split_half_sets
from cryoeq.data.preprocessing import background_mask
from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import ParticleStack, read_particles

N, BOX = 40, 32


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    """Dark particles on light ground."""
    values = 10 + torch.randn(N, BOX, BOX, generator=generator)
    values[:, 10:22, 10:22] -= 1
    return values


@pytest.fixture
def stack(tmp_path: Path, images: torch.Tensor) -> ParticleStack:
    with StackWriter(tmp_path / "stack.mrcs", N, BOX, 2.0) as writer:
        writer.append(images)
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
    labels = "data_particles\nloop_\n_rlnImageName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnPixelSize\n"
    rows = "".join(f"{i + 1}@stack.mrcs {10000 + i} {10000 + i} 0 2.0\n" for i in range(N))
    (tmp_path / "p.star").write_text(f"{optics}1 300 2.7 0.1\n\n{labels}{rows}")
    return read_particles(tmp_path / "p.star")


def test_batches_hold_the_preprocessed_images_and_their_ctf(stack: ParticleStack, images: torch.Tensor) -> None:
    dataset = ParticleDataset.open(stack)
    assert (len(dataset), dataset.box_size_px, dataset.pixel_size_angstrom) == (N, BOX, 2.0)
    assert dataset.preprocessing.sign == -1
    assert any("dark" in note for note in dataset.notes)
    rows = torch.tensor([7, 3, 39])
    batch = dataset.batch(rows)
    torch.testing.assert_close(batch.images, dataset.preprocessing.apply(images[rows]))
    outside = batch.images[:, background_mask(BOX)]
    torch.testing.assert_close(outside.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    assert outside.std() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(batch.indices, rows)
    assert batch.ctf is not None
    assert batch.ctf.defocus_u_angstrom.tolist() == [10007, 10003, 10039]


@pytest.mark.parametrize("working_box_px", [None, 24])
def test_streaming_gives_what_the_cache_gives(stack: ParticleStack, working_box_px: int | None) -> None:
    cached = ParticleDataset.open(stack, working_box_px=working_box_px)
    streamed = ParticleDataset.open(stack, working_box_px=working_box_px, cache_bytes=0)
    assert cached.cache is not None
    assert streamed.cache is None
    assert cached.notes == streamed.notes
    rows = torch.arange(N)
    assert streamed.preprocessing == cached.preprocessing
    torch.testing.assert_close(cached.batch(rows).images, streamed.batch(rows).images)
    for kept, read in zip(cached.batches(16), streamed.batches(16), strict=True):
        assert torch.equal(read.indices, kept.indices), "the order of the file"
        torch.testing.assert_close(read.images, kept.images)
        if working_box_px is None:
            assert torch.equal(read.images, kept.images)


def test_the_cache_keeps_its_limit(stack: ParticleStack) -> None:
    needed = N * BOX * BOX * 4
    assert ParticleDataset.open(stack, cache_bytes=needed).cache is not None
    assert ParticleDataset.open(stack, cache_bytes=needed - 1).cache is None


def test_working_box(stack: ParticleStack) -> None:
    dataset = ParticleDataset.open(stack, working_box_px=16)
    assert dataset.pixel_size_angstrom == 4.0
    assert dataset.batch(torch.tensor([0])).images.shape == (1, 16, 16)
    assert (dataset.table.box_size_px, dataset.table.pixel_size_angstrom) == (BOX, 2.0)
    for box in (17, 14, 34):
        with pytest.raises(ConfigError, match=f"working box of {box} px"):
            ParticleDataset.open(stack, working_box_px=box)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_can_be_told(stack: ParticleStack, sign: int) -> None:
    dataset = ParticleDataset.open(stack, sign=sign)
    assert dataset.preprocessing.sign == sign
    assert any("as given" in note for note in dataset.notes)


def test_every_particle_comes_once(stack: ParticleStack, generator: torch.Generator) -> None:
    dataset = ParticleDataset.open(stack)
    batches = list(dataset.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(N))
    order = torch.randperm(N, generator=generator)
    shuffled = list(dataset.batches(16, order))
    assert torch.equal(torch.cat([batch.indices for batch in shuffled]), order)
    assert torch.equal(shuffled[1].images, dataset.batch(order[16:32]).images)


def test_batches_cannot_change_the_cache(stack: ParticleStack) -> None:
    dataset = ParticleDataset.open(stack)
    dataset.batch(torch.tensor([0])).images.zero_()
    assert dataset.batch(torch.tensor([0])).images.abs().max() > 0


def test_a_large_stack_is_sampled_not_read(stack: ParticleStack, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = type(stack.images).read

    def count(self: object, rows: torch.Tensor) -> torch.Tensor:
        read.extend(rows.tolist())
        return original(stack.images, rows)

    monkeypatch.setattr(type(stack.images), "read", count)
    monkeypatch.setattr("cryoeq.data.dataset._SAMPLE_SIZE", 10)
    ParticleDataset.open(stack, cache_bytes=0)
    assert len(read) == 10
    assert (min(read), max(read)) == (0, N - 1)


def test_nan_pixels_stop_the_opening(tmp_path: Path, images: torch.Tensor) -> None:
    images[3, 0, 0] = torch.nan
    with StackWriter(tmp_path / "nan.mrcs", N, BOX, 2.0) as writer:
        writer.append(images)
    with pytest.raises(ParticleFileError, match=r"1 pixels are NaN.*the first is image 4"):
        ParticleDataset.open(read_particles(tmp_path / "nan.mrcs"))


def test_a_stack_without_ctf(tmp_path: Path, images: torch.Tensor) -> None:
    with StackWriter(tmp_path / "bare.mrcs", N, BOX, 2.0) as writer:
        writer.append(images)
    dataset = ParticleDataset.open(read_particles(tmp_path / "bare.mrcs"))
    assert dataset.batch(torch.arange(3)).ctf is None


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_half_sets_are_halves(count: int) -> None:
    half_set = split_half_sets(count, torch.Generator().manual_seed(1))
    assert set(half_set.tolist()) <= {1, 2}
    assert 0 <= int((half_set == 1).sum() - (half_set == 2).sum()) <= 1
    assert torch.equal(half_set, split_half_sets(count, torch.Generator().manual_seed(1)))


def test_half_sets_are_random(generator: torch.Generator) -> None:
    first, second = split_half_sets(1000, generator), split_half_sets(1000, generator)
    assert 400 < int((first == second).sum()) < 600
    assert 200 < int((first[:500] == 1).sum()) < 300


@pytest.mark.realdata
def test_real_tilts_keep_one_scale(reference_data: Path) -> None:
    """CTF-premultiplied images differ in their backgrounds by nature."""
    dataset = ParticleDataset.open(read_particles(reference_data / "real_70s_tilts" / "particles.star"))
    assert dataset.preprocessing.scale == pytest.approx(0.5, rel=0.05)
    assert dataset.preprocessing.sign == 1
    assert dataset.table.ctf is not None
    assert dataset.table.ctf.is_premultiplied.min() == 1
    assert any("multiplied by their CTF" in note for note in dataset.notes)


@pytest.mark.realdata
def test_seven_dark_particles_become_bright(reference_data: Path) -> None:
    stack = read_particles(reference_data / "empiar_10076_seven" / "empiar_10076_7.star")
    dataset = ParticleDataset.open(stack, working_box_px=64)
    images = dataset.batch(torch.arange(7)).images
    assert images[:, 24:40, 24:40].mean() > images[:, background_mask(64)].mean() + 0.1
