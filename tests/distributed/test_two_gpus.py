"""Two processes on two GPUs find what one process finds on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
Start, Wait = Callable[..., Any], Callable[..., list[int]]


def test_known_poses(tmp_path: Path, tiny_particles: Path, start_job: Start, codes_of: Wait) -> None:
    words = ["reconstruct", str(tiny_particles / "truth.star"), "--pose-inference", "known", "-o"]
    codes = codes_of(start_job(2, [*words, str(tmp_path / "two"), "--gpu", "0,1"]), 800)
    assert codes == [0, 0], [path.read_text() for path in tmp_path.glob("said_*")]
    assert run([*words, str(tmp_path / "one"), "--device", "cpu"]) == 0
    one, two = (read_map(tmp_path / name / "run_class001.mrc").values.numpy() for name in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=1e-4 * float(np.abs(one).max()))


def test_a_search(
    tmp_path: Path, searched_run: Path, searched_particles: Path, search_options: tuple[str, ...], start_job: Start,
    codes_of: Wait,
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
