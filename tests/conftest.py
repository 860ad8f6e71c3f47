"""Fixtures shared by all rooms."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_REFERENCE = Path(os.environ.get("CRYOEQ_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real and reference data; tests that use it are marked ``realdata``."""
    if not _REFERENCE.is_dir():
        pytest.skip(f"no reference data at {_REFERENCE}; set CRYOEQ_REFERENCE_DATA")
    return _REFERENCE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order differ in their last bits: runs that are compared bit by bit use one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time of a tiny reconstruction is spent on its pictures; ``tiny_run`` has them."""
    from cryoeq.pipelines import amortized, reconstruct

    monkeypatch.setattr(amortized, "plot_training", lambda *_: None)
    for name in ("plot_map", "plot_fsc", "write_report"):
        monkeypatch.setattr(reconstruct, name, lambda *_: None)


@pytest.fixture(scope="session")
def tiny_particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``cryoeq simulate`` leaves it: 48 particles of 16 px of a chiral phantom, at SNR 2."""
    from cryoeq.cli.main import run
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms
    from cryoeq.simulation.phantom import chiral_phantom

    folder = tmp_path_factory.mktemp("tiny")
    write_map(folder / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    simulated = folder / "particles"
    options = ["-n", "48", "--snr", "2", "--shift-sigma", "4", "--astigmatism", "300", "--device", "cpu"]
    assert run(["simulate", str(folder / "phantom.mrc"), "-o", str(simulated), *options]) == 0
    return simulated


@pytest.fixture(scope="session")
def tiny_training() -> tuple[str, ...]:
    """Options of ``cryoeq reconstruct`` for a training of a second: 9 steps, each with its checkpoint."""
    settings = {
        "encoder.group": "d4", "training.rendered_batch_size": 16,
        "training.checkpoint_seconds": 0,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return (
        *chosen,
        "--pose-inference",
        "amortized",
        "--heads",
        "2",
        "--epochs",
        "3",
        "--batch-size",
        "16",
        "--seed",
        "4",
        "--device",
        "cpu",
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_particles: Path, tiny_training: tuple[str, ...]) -> Path:
    """The run folder of that training, from beginning to end without interruption, on one thread."""
    from cryoeq.cli.main import run

    folder, threads = tmp_path_factory.mktemp("tiny") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would differ in their last bits
    try:
        assert run(["reconstruct", str(tiny_particles / "particles.star"), "-o", str(folder), *tiny_training]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder
