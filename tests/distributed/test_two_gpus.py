"""Two processes on two GPUs find what one process finds on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.io.particles import read_particles


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_search(
    tmp_path: Path, searched_run: Path, searched_particles: Path, search_options: tuple[str, ...],
    start_job: Callable[..., Any], codes_of: Callable[..., list[int]],
) -> None:  # fmt: skip
    """NCCL, or what stands in for it: sums and poses of two processes."""
    words = ["reconstruct", str(searched_particles / "particles.star"), "-o", str(tmp_path / "run"), *search_options]
    codes = codes_of(start_job(2, [*words[: words.index("--device")], "--gpu", "0,1"]), 800)
    assert codes == [0, 0], [path.read_text() for path in tmp_path.glob("said_*")]
    stars = tmp_path / "run" / "run_data.star", searched_run / "run_data.star"
    one, other = (read_particles(star, datadir=searched_particles, with_poses=True).table.poses for star in stars)
    assert one is not None
    assert other is not None
    cosine = ((one.rotations * other.rotations).sum((1, 2)) - 1) / 2
    assert float(cosine.clamp(-1, 1).arccos().rad2deg().median()) < 0.1
