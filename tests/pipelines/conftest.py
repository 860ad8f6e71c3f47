"""A search that takes seconds: 300 particles of 20 px, and what it left."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cryoeq.simulation.phantom import chiral_phantom

BOX_PX, ANGPIX = 20, 5.0


@pytest.fixture(scope="session")
def search_options() -> tuple[str, ...]:
    """Options of ``cryoeq reconstruct`` for a short search: fewer iterations than by default, and smaller radii."""
    settings = {
        "starts": 1, "start_iterations": 40, "batch_size": 80, "start_shell": 6, "settled_shells": [5, 6, 7],
        "iterations": 2, "searched_shell": 7, "polishing_iterations": 2, "trial_shifts": 3,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"search.{key}={value}")]
    return (*chosen, "--seed", "0", "--device", "cpu")


@pytest.fixture(scope="session")
def simulate_atoms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Particles of a molecule at SNR 1, shifted, with astigmatic CTFs: a folder as ``cryoeq simulate`` leaves it."""
    from cryoeq.cli.main import run
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms

    def simulate(atoms: object, count: int = 300) -> Path:
        folder = tmp_path_factory.mktemp("searched")
        write_map(folder / "molecule.mrc", sample_atoms(atoms, BOX_PX, ANGPIX))
        options = ["-n", str(count), "--snr", "1", "--shift-sigma", "4", "--astigmatism", "300", "--device", "cpu"]
        assert run(["simulate", str(folder / "molecule.mrc"), "-o", str(folder / "particles"), *options]) == 0
        return folder / "particles"

    return simulate


@pytest.fixture(scope="session")
def searched_particles(simulate_atoms: Callable[..., Path]) -> Path:
    """Particles of the chiral phantom."""
    return simulate_atoms(chiral_phantom(0.36 * BOX_PX * ANGPIX))


@pytest.fixture(scope="session")
def searched_run(
    tmp_path_factory: pytest.TempPathFactory, searched_particles: Path, search_options: tuple[str, ...]
) -> Path:
    """The run folder of a search for their poses, which is what happens by default, on one thread."""
    from cryoeq.cli.main import run

    folder, threads = tmp_path_factory.mktemp("searched") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would differ in their last bits
    try:
        assert run(["reconstruct", str(searched_particles / "particles.star"), "-o", str(folder), *search_options]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder
