"""Processes share the reading: each reads its part of the stack, and all have the transforms and findings of all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.pixels import PixelCensus
from cryoeq.domain.events import result_of
from cryoeq.io.particles import read_particles
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.runtime.distributed import process_rank

HOT = 5  # pixels, of the last image


def read(star: str, count: int | None) -> dict[str, Any]:
    """Transforms of the first particles as this process has them, the images that it read, and its warnings."""
    stack = read_particles(Path(star), with_poses=False)
    opened = ParticleDataset.open(stack, cache_bytes=0)
    dataset = replace(opened, census=PixelCensus(stack.table))
    rows = torch.arange(len(dataset) if count is None else count)
    stored: list[Tensor] = []
    read_stored = type(dataset.images).read

    def reading(images: Any, some: Tensor) -> Tensor:
        stored.append(some)
        return read_stored(images, some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset.images), "read", reading)
        found = result_of(load_transforms(dataset, torch.device("cpu"), rows))
    return {
        "rank": process_rank(), "read": torch.cat(stored), "warnings": list(dataset.new_warnings()),
        "images": found.ctf_multiplied, "squares": found.ctf_squared, "harmonics": found.ctf_squared_harmonics,
        "features": found.ctf_features, "background": found.background_variance,
    }  # fmt: skip


@pytest.fixture
def with_hot_pixels(tiny_particles: Path, tmp_path: Path) -> Path:
    """The tiny particles, whose last image has hot pixels."""
    folder = tmp_path / "stack"
    folder.mkdir()
    for path in tiny_particles.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (stack,) = folder.glob("*.mrcs")
    with mrcfile.open(stack, "r+") as file:
        file.data[-1].ravel()[:: file.data[-1].size // HOT][:HOT] = 1e4 * np.abs(file.data).max()
    return folder / "particles.star"


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_reads_a_part_and_has_all(
    together: Callable[..., list[Any]], with_hot_pixels: Path, count: int
) -> None:
    (alone,) = together(1, __file__, "read", str(with_hot_pixels), None)
    shared = together(count, __file__, "read", str(with_hot_pixels), None)
    assert torch.cat([one["read"] for one in shared]).tolist() == alone["read"].tolist()
    assert max(len(one["read"]) for one in shared) <= len(alone["read"]) // count + 1
    assert f"{HOT} hot or dead pixels in 1 of" in alone["warnings"][0]
    for one in shared:
        for name in ("images", "squares", "harmonics", "features"):
            assert torch.equal(one[name], alone[name]), name
        assert torch.allclose(one["background"], alone["background"], rtol=1e-6)
        assert torch.equal(one["background"], shared[0]["background"])
        assert one["warnings"] == alone["warnings"]


def test_fewer_particles_than_processes(together: Callable[..., list[Any]], tiny_particles: Path) -> None:
    star = str(tiny_particles / "particles.star")
    (alone,) = together(1, __file__, "read", star, 2)
    for one in together(3, __file__, "read", star, 2):
        assert torch.equal(one["images"], alone["images"])
        assert one["read"].tolist() == [0, 1]
