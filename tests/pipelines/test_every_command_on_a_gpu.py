"""Every command that computes runs on a GPU, and finds there what it finds on the CPU."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.evaluation.poses import compare_poses
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_thread", "without_pictures"), pytest.mark.timeout(900)]
Compare = Callable[..., tuple[Path, Path]]
QUICK = ("--set", "search.half_sets.iterations=1", "--set", "full_box.iterations=1", "--seed", "4")
# What a key of these JSON files holds is as good on one device as on the other, not the same.
FREE = {"seconds", "device", "rotation"}


@pytest.fixture(autouse=True)
def the_gpu_works() -> Iterator[None]:
    """Something was computed on the device: its memory was used, more than by what other tests left."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    yield
    assert torch.cuda.max_memory_allocated() > before


@pytest.fixture
def on_both(tmp_path: Path) -> Compare:
    """Runs a command on CPU and GPU; the folders for its output."""

    def compare(*words: object, output: str = "-o") -> tuple[Path, Path]:
        for device, name in (("cpu", "cpu"), ("cuda:0", "gpu")):
            place = tmp_path / name
            assert run([*map(str, words), output, str(place), "--device", device]) == 0
        return tmp_path / "cpu", tmp_path / "gpu"

    return compare


def assert_alike(one: Any, other: Any, tolerance: float) -> None:
    """The same numbers in two JSON files, to a part of their size or of 1."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - FREE:
            assert_alike(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair, tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    elif not isinstance(one, str):
        assert one == other


def assert_same_map(*paths: Path, tolerance: float = 1e-3) -> None:
    one, other = (read_map(path).values.numpy() for path in paths)
    np.testing.assert_allclose(one, other, atol=tolerance * float(np.abs(one).max()))


def median_difference_deg(*stars: Path, datadir: Path) -> float:
    one, other = (read_particles(star, datadir=datadir, with_poses=True).table.poses for star in stars)
    assert one is not None
    assert other is not None
    cosine = ((one.rotations * other.rotations).sum((1, 2)) - 1) / 2
    return float(cosine.clamp(-1, 1).arccos().rad2deg().median())


def test_known_poses(on_both: Compare, tiny_particles: Path) -> None:
    folders = on_both("reconstruct", tiny_particles / "truth.star", "--pose-inference", "known")
    assert_same_map(*(folder / "run_class001.mrc" for folder in folders))


def test_a_search(
    tmp_path: Path, searched_run: Path, searched_particles: Path, search_options: tuple[str, ...]
) -> None:
    star = searched_particles / "particles.star"
    assert run(["reconstruct", str(star), "-o", str(tmp_path), *search_options, "--device", "cuda:0"]) == 0
    stars = tmp_path / "run_data.star", searched_run / "run_data.star"
    assert median_difference_deg(*stars, datadir=searched_particles) < 0.1


def test_an_amortized_search(tmp_path: Path, searched_particles: Path, search_options: tuple[str, ...]) -> None:
    """Rounding is amplified by the network's training: the structure is the same, not its last digits."""
    words = ["reconstruct", str(searched_particles / "particles.star"), "-o", str(tmp_path), *search_options]
    proposals = ["--set", "search.e_step=amortized", "--set", "search.amortized.channels=64"]
    assert run([*words, *proposals, "--device", "cuda:0"]) == 0
    stars = tmp_path / "run_data.star", searched_particles / "truth.star"
    found, truth = (read_particles(star, datadir=searched_particles, with_poses=True).table.poses for star in stars)
    assert found is not None
    assert truth is not None
    assert math.degrees(float(compare_poses(found, truth).rotation_rad.median())) < 15


def test_refinement_of_poses_and_ctf(on_both: Compare, tiny_particles: Path) -> None:
    words = ("--local", "--keep-half-sets", "--ctf-refinement", "--non-uniform")
    folders = on_both("refine", tiny_particles / "truth.star", *words, *QUICK)
    stars = [folder / "run_data.star" for folder in folders]
    assert median_difference_deg(*stars, datadir=tiny_particles) < 0.1
    moved = [read_particles(star, datadir=tiny_particles).table.ctf for star in stars]
    assert moved[0] is not None
    assert moved[1] is not None
    # Hundreds of Angstrom, known to as many.
    torch.testing.assert_close(moved[0].defocus_u_angstrom, moved[1].defocus_u_angstrom, atol=2.0, rtol=0)


def test_refinement_from_a_map(tmp_path: Path, tiny_particles: Path) -> None:
    words = ["refine", str(tiny_particles / "particles.star"), "--ref", str(tiny_particles / "truth_volume.mrc")]
    assert run([*words, "-o", str(tmp_path), *QUICK, "--device", "cuda:0"]) == 0
    assert read_json(tmp_path / "job.json")["status"] == "done"


def test_classes(tmp_path: Path, mixture: Path) -> None:
    settings = {
        "multi_start.min": 2, "multi_start.max": 2, "initial_model.iterations": 5, "initial_model.last_shell": 5,
        "consensus.shells": [5], "half_sets.iterations": 1, "half_sets.max_exhaustive_shell": 5,
        "local_refinement.iterations": 1, "offset_samples": 2,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"search.{key}={value}")]
    words = ["reconstruct", str(mixture / "particles.star"), "-o", str(tmp_path), "--classes", "2", *chosen]
    assert run([*words, "--device", "cuda:0"]) in {0, 4}  # 4: not found in so few iterations


def test_hybrid_inference_and_its_bound(tmp_path: Path) -> None:
    write_map(tmp_path / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    options = ["-n", "200", "--snr", "2", "--shift-sigma", "0", "--device", "cuda:0"]
    assert run(["simulate", str(tmp_path / "phantom.mrc"), "-o", str(tmp_path / "s"), *options]) == 0
    settings = {
        "search.initial_model.iterations": 20, "search.consensus.shells": "[6,7]", "search.multi_start.min": 1,
        "search.initial_model.batch_size": 60, "hybrid.training_steps": 20,
        "hybrid.posterior": "network",
        "hybrid.batch_size": 64, "hybrid.held_out": 0.2, "encoder.channels": "[64]",
        "search.half_sets.iterations": 1,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    particles, folder = str(tmp_path / "s" / "particles.star"), str(tmp_path / "run")
    mode = ("--pose-inference", "hybrid", "--shift-sigma", "0", "--device", "cuda:0")
    assert run(["reconstruct", particles, "-o", folder, *mode, *chosen]) == 0
    assert run(["infer", folder, particles, "-o", str(tmp_path / "poses.star"), "--device", "cuda:0"]) == 0
    assert run(["evaluate", "--bound", folder, "-o", str(tmp_path / "bound"), "--device", "cuda:0"]) == 0


def test_view_encoders(tmp_path: Path) -> None:
    """Trained, calibrated and used on the GPU; again by what a search alone has left."""
    write_map(tmp_path / "phantom.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    options = ["-n", "200", "--snr", "2", "--shift-sigma", "4", "--device", "cuda:0"]
    assert run(["simulate", str(tmp_path / "phantom.mrc"), "-o", str(tmp_path / "s"), *options]) == 0
    settings = {
        "search.initial_model.iterations": 20, "search.consensus.shells": "[6,7]", "search.multi_start.min": 1,
        "search.initial_model.batch_size": 60, "hybrid.projections": 100, "hybrid.held_out": 0.2,
        "search.half_sets.iterations": 1,
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    particles, folder = str(tmp_path / "s" / "particles.star"), tmp_path / "run"
    mode = ("--pose-inference", "hybrid", "--shift-sigma", "4", "--device", "cuda:0")
    assert run(["reconstruct", particles, "-o", str(folder), *mode, *chosen]) == 0
    infer = ["infer", str(folder), particles, "-o", str(tmp_path / "poses.star"), "--device", "cuda:0"]
    assert run(infer) == 0
    (folder / "encoder.pt").unlink()
    assert run(infer) == 0


def test_amortized(tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]) -> None:
    words = ["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path), *tiny_training]
    assert run([*words, "--device", "cuda:0"]) == 0
    assert bool(read_map(tmp_path / "run_class001.mrc").values.isfinite().all())


def test_screening(on_both: Compare, class_run: Path) -> None:
    folders = on_both("screen", class_run, "--class", 1)
    assert_alike(*(read_json(folder / "screening.json") for folder in folders), tolerance=0.02)


def test_point_groups(on_both: Compare, class_run: Path) -> None:
    words = (class_run / "run_class001.mrc", "--run", class_run, "--sym", "C2", "--json", class_run.parent / "sym.json")
    folders = on_both("symmetry", *words)
    one, other = (read_json(folder / "symmetry.json") for folder in folders)
    assert one["point_group"] == other["point_group"]
    assert one["groups"][0]["score"] == pytest.approx(other["groups"][0]["score"], abs=0.05)


def test_orientations(on_both: Compare, tiny_particles: Path) -> None:
    folders = on_both("orientations", tiny_particles / "truth.star")
    assert_alike(*(read_json(folder / "orientations.json") for folder in folders), tolerance=1e-4)


def test_resolution(on_both: Compare, class_run: Path) -> None:
    halves = [class_run / f"run_half{half}_class001_unfil.mrc" for half in (1, 2)]
    folders = on_both("fsc", *halves, "--local-resolution", "--directional", "--postprocess")
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]
    for name in ("postprocess.mrc", "local_resolution.mrc"):
        assert_same_map(*(folder / name for folder in folders), tolerance=0.02)


def test_a_lattice(on_both: Compare, tmp_path: Path) -> None:
    write_map(tmp_path / "phantom.mrc", sample_atoms(chiral_phantom(36.0), 24, 4.0))
    crystal = "--crystal 110 90 100 --disorder 3 --micrograph 256 --snr 0.3 --device cuda:0".split()  # noqa: SIM905
    assert run(["simulate", str(tmp_path / "phantom.mrc"), *crystal, "-o", str(tmp_path / "crystal")]) == 0
    folders = on_both("lattice", "find", tmp_path / "crystal" / "micrograph_001.mrc", "--subtract")
    assert_alike(*(read_json(folder / "lattice.json") for folder in folders), tolerance=1e-3)
