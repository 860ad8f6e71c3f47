"""Fixtures shared by all packages."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The pretended device has to be there before cryoeq is imported.
_device = ["pretended_cuda.plugin"] if os.environ.get("PRETENDED_CUDA") else []
pytest_plugins = [*_device, "known_particles", "class_runs"]

# A process of a job, without torchrun and without pictures.
PROGRAM = """
import os, sys, torch
os.environ.update({environment!r})
torch.set_num_threads(1)
sys.stderr = sys.stdout = open({said!r}, "a", buffering=1)
sys.argv[1:] = {arguments!r}
from cryoeq.pipelines.reconstruct import amortized, class_files, reconstruct
amortized.plot_training = class_files.plot_map = class_files.plot_fsc = reconstruct.write_report = lambda *_, **__: None
from cryoeq.cli.main import main
main()
"""
_LIMIT_S = 240.0
_PLANE_GROUPS = ("c2", "c4", "c8", "c16", "d1", "d2", "d4", "d8", "d16", "so2", "o2")
_REFERENCE = Path(os.environ.get("CRYOEQ_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure() -> None:
    """Examples have no time limit on a busy machine. Workers of pytest-xdist share the cores, as do their children."""
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if workers:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers of pytest-xdist make no run and solve for no group's kernels twice (``--dist loadgroup``)."""
    for item in items:
        if (shared := _shared_by(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(shared))


def _shared_by(item: pytest.Item) -> str | None:
    """What of the expensive things that are made once a process a test uses."""
    every = item.callspec.params if hasattr(item, "callspec") else {}
    parameters = {key: value for key, value in every.items() if isinstance(value, str)}
    fixtures = {*getattr(item, "fixturenames", ()), parameters.get("case")}
    if fixtures & {"searched_run", "searched_particles", "search"}:
        return "searched run"
    if fixtures & {"class_run", "mixture"}:
        return "class run"
    if fixtures & {"tiny_run", "training"}:
        return "tiny run"
    if made := fixtures & {"whole_run", "finished", "answers", "two_molecules", "cages", "after_torch"}:
        return f"{item.path.stem}: {min(made)}"
    groups = [value for key, value in parameters.items() if key in {"group", "name"} and value in _PLANE_GROUPS]
    return f"plane group {groups[0]}" if groups else None


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
    from cryoeq.pipelines.reconstruct import amortized, class_files, reconstruct

    monkeypatch.setattr(amortized, "plot_training", lambda *_: None)
    monkeypatch.setattr(reconstruct, "write_report", lambda *_, **__: None)
    for name in ("plot_map", "plot_fsc"):
        monkeypatch.setattr(class_files, name, lambda *_, **__: None)


@pytest.fixture(scope="session")
def tiny_particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``cryoeq simulate`` leaves it: 48 particles of 16 px of a chiral phantom, at SNR 2."""
    from cryoeq.cli.main import run
    from cryoeq.io.mrc import write_map
    from cryoeq.simulation.density import sample_atoms
    from phantoms import chiral_phantom

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
        "encoder.group": "d4", "encoder.heads": 2, "training.epochs": 3, "training.batch_size": 16,
        "training.synthetic_batch_size": 16, "training.checkpoint_seconds": 0,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return (*chosen, "--pose-inference", "amortized", "--seed", "4", "--device", "cpu")


def reconstruct_on_one_thread(particles: Path, folder: Path, options: tuple[str, ...]) -> Path:
    """The run folder; sums in another order would differ in their last bits."""
    from cryoeq.cli.main import run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(["reconstruct", str(particles / "particles.star"), "-o", str(folder), *options]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_particles: Path, tiny_training: tuple[str, ...]) -> Path:
    """The run folder of that training, from beginning to end without interruption, on one thread."""
    return reconstruct_on_one_thread(tiny_particles, tmp_path_factory.mktemp("tiny") / "run", tiny_training)


@pytest.fixture(scope="session")
def search_options() -> tuple[str, ...]:
    """Options of ``cryoeq reconstruct`` for a short search: fewer iterations than by default, and smaller radii."""
    settings = {
        "multi_start.min": 1, "initial_model.iterations": 40, "initial_model.batch_size": 80,
        "initial_model.last_shell": 6, "consensus.shells": [5, 6, 7], "half_sets.iterations": 2,
        "half_sets.max_exhaustive_shell": 7, "local_refinement.iterations": 2, "offset_samples": 3,
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
        write_map(folder / "molecule.mrc", sample_atoms(atoms, 20, 5.0))
        options = ["-n", str(count), "--snr", "1", "--shift-sigma", "4", "--astigmatism", "300", "--device", "cpu"]
        assert run(["simulate", str(folder / "molecule.mrc"), "-o", str(folder / "particles"), *options]) == 0
        return folder / "particles"

    return simulate


@pytest.fixture(scope="session")
def searched_particles(simulate_atoms: Callable[..., Path]) -> Path:
    """300 particles of 20 px of the chiral phantom."""
    from phantoms import chiral_phantom

    return simulate_atoms(chiral_phantom(0.36 * 20 * 5.0))


@pytest.fixture(scope="session")
def searched_run(
    tmp_path_factory: pytest.TempPathFactory, searched_particles: Path, search_options: tuple[str, ...]
) -> Path:
    """The run folder of a search for their poses, which is what happens by default, on one thread."""
    return reconstruct_on_one_thread(searched_particles, tmp_path_factory.mktemp("searched") / "run", search_options)


@pytest.fixture(scope="session")
def environments() -> Callable[[int], list[dict[str, str]]]:
    """What torchrun tells each process of a job."""

    def tell(count: int) -> list[dict[str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = {
            "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": 0, "GROUP_WORLD_SIZE": 1,
        }  # fmt: skip
        return [
            {key: str(value) for key, value in (names | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            for rank in range(count)
        ]

    return tell


@pytest.fixture(scope="session")
def start_code() -> Callable[[str], ForkServerProcess]:
    """Starts a process that runs some code, forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cryoeq.pipelines.reconstruct.amortized", "cryoeq.pipelines.reconstruct.reconstruct"]
    )

    def run(code: str) -> ForkServerProcess:
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    return run


@pytest.fixture(scope="session")
def codes_of() -> Callable[..., list[int]]:
    """Exit codes of processes; those that do not end are killed, which fails."""

    def wait(processes: list[ForkServerProcess], limit_s: float = _LIMIT_S) -> list[int]:
        for process in processes:
            process.join(limit_s)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        return [code if code is not None else pytest.fail(f"still running after {limit_s:g} s") for code in codes]

    return wait


@pytest.fixture
def start_job(
    start_code: Callable[[str], ForkServerProcess], environments: Callable[[int], list[dict[str, str]]], tmp_path: Path
) -> Callable[..., list[ForkServerProcess]]:
    """Starts a command of cryoeq in several processes; what each says goes to ``said_0``, ``said_1``, ..."""

    def run(count: int, arguments: list[str], more: str = "") -> list[ForkServerProcess]:
        code = PROGRAM.replace("main()", f"{more}\nmain()")
        return [
            start_code(code.format(environment=environment, said=str(tmp_path / f"said_{rank}"), arguments=arguments))
            for rank, environment in enumerate(environments(count))
        ]

    return run
