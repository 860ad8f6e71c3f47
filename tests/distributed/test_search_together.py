"""Searches and trainings whose work is shared out: the map of one process, files of the first process alone.

In float64 several processes find what one finds, to rounding. In float32 a search amplifies rounding: a second look
decides between two refinements of one pose, and a refinement ends after a few steps, wherever it then is. What comes of
it moves poses within the maximum of their likelihood, or to another one of its height, and maps by less than an image.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.physics.projection import extract_slices
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.search import search_poses
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import Step

Start = Callable[..., list[ForkServerProcess]]
Wait = Callable[..., list[int]]

HALVES = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
# A maximum is found to the root of the rounding of its value.
ROUNDING = torch.finfo(torch.float64).eps ** 0.5


def correlation(first: Path, second: Path) -> float:
    return float(np.corrcoef(mrcfile.read(first).ravel(), mrcfile.read(second).ravel())[0, 1])


def angles_between(first: Tensor, second: Tensor) -> Tensor:
    """Of two sets of rotations, in radians; from the length of the chord, exact where it is short."""
    chord = torch.linalg.matrix_norm(first - second) / math.sqrt(8)
    return 2 * torch.asin(chord.clamp(max=1))


def relative_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def opened(particles: Path, settings: dict[str, object]) -> tuple[ReconstructConfig, ParticleDataset]:
    config = load_config(ReconstructConfig, explicit={"particles": particles, "output": Path("none"), **settings})
    return config, build_dataset(config, build_stack(config, with_poses=False), None)


def in_double(dataset: ParticleDataset) -> ParticleDataset:
    ctf = dataset.table.ctf
    assert ctf is not None
    assert dataset.cache is not None
    doubled = ctf.each(lambda values: values.double() if values.is_floating_point() else values)
    return replace(dataset, cache=dataset.cache.double(), table=replace(dataset.table, ctf=doubled))


def search(particles: str, settings: dict[str, object]) -> dict[str, dict[str, Tensor]]:
    """States after each step of a search in float64, and what it found; run by each process."""
    config, dataset = opened(Path(particles), settings)
    torch.set_default_dtype(torch.float64)
    found: dict[str, dict[str, Tensor]] = {}

    def keep(name: str, step: Step) -> Step:
        state = yield from step
        found[name] = {
            "rotations": state.poses.rotations, "shifts": state.poses.shifts_px,
            "confidence": state.particles.confidence, "log evidence": state.particles.log_evidence, "fsc": state.fsc,
            "half set": state.half_set, "first map": state.reference.of_half(1),
            "second map": state.reference.of_half(2),
        }  # fmt: skip
        return state

    result = result_of(search_poses(config, in_double(dataset), torch.device("cpu"), keep))
    assert result.half_poses is not None
    found["result"] = {
        "rotations": result.poses.rotations, "shifts": result.poses.shifts_angstrom, "confidence": result.confidence,
        "half rotations": result.half_poses.rotations, "half shifts": result.half_poses.shifts_angstrom,
        "sigma": result.rotation_sigma_rad, "half set": result.half_set,
    }  # fmt: skip
    return found


@pytest.mark.parametrize("count", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_find_what_one_finds(
    together: Callable[..., list[Any]], tiny_particles: Path, count: int
) -> None:
    short = {
        "multi_start.min": 1, "initial_model.iterations": 12, "initial_model.batch_size": 32,
        "initial_model.last_shell": 5, "consensus.shells": [4, 5], "consensus.max_extra_iterations": 1,
        "half_sets.iterations": 2, "half_sets.max_exhaustive_shell": 6, "local_refinement.iterations": 1,
        "offset_samples": 3,
    }  # fmt: skip
    settings = {f"search.{key}": value for key, value in short.items()}
    arguments = (__file__, "search", str(tiny_particles / "particles.star"), settings)
    (alone,) = together(1, *arguments)
    assert {"initial_model_0", "consensus_0", "half_sets", "realigned", "local", "final", "result"} == alone.keys()
    for shared in together(count, *arguments):
        for step, before in alone.items():
            for name, expected in before.items():
                ours = shared[step][name]
                if "rotations" in name:
                    assert float(angles_between(ours, expected).max()) < ROUNDING, (step, name)
                else:
                    scale = float(expected.abs().max())
                    torch.testing.assert_close(ours, expected, rtol=0, atol=ROUNDING * scale, msg=f"{step}, {name}")
    # The halves share no map once they have parted, and their poses none with those of all particles.
    assert relative_difference(alone["half_sets"]["first map"], alone["half_sets"]["second map"]) > 0.1


def maxima(particles: ParticleTransforms, volume: Tensor, poses: Poses, pixel: float) -> tuple[RefinedPoses, Tensor]:
    """Of the likelihood of each image, nearest to its pose; how far rounding may change their heights."""
    plane, reference = particles.plane, Reference.prepare(volume, particles)
    start = PoseSet(poses.rotations.float(), (poses.shifts_angstrom / pixel).float(), plane.box_size_px)
    refined = refine_poses(particles, reference, start, shift_sigma_px=1.0, steps=20)
    slices = extract_slices(reference.padded, refined.poses.rotations, plane)
    centred = particles.centred(refined.poses.shifts_px)
    products = (centred * slices.conj()).real.abs() + 0.5 * particles.ctf_squared * slices.abs() ** 2
    # A sum of n numbers is off by no more than n eps times the sum of their sizes (Higham 2002, equation 4.4).
    rounding = torch.finfo(torch.float32).eps * len(plane) * (products @ reference.weights(plane))
    return refined, rounding


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_search(
    start_job: Start, codes_of: Wait, tmp_path: Path, searched_particles: Path, searched_run: Path,
    search_options: tuple[str, ...], count: int,
) -> None:  # fmt: skip
    star, folder = searched_particles / "particles.star", tmp_path / "run"
    processes = start_job(count, ["reconstruct", str(star), "-o", str(folder), *search_options])
    assert codes_of(processes) == [0] * count
    ours, theirs = read_star(folder / "run_data.star"), read_star(searched_run / "run_data.star")
    for column in ("rlnImageName", "rlnRandomSubset"):
        assert ours.particles[column].tolist() == theirs.particles[column].tolist()
    # No map differs by more than one of its images weighs.
    for name, images in (("run_class001.mrc", len(ours)), *((half, len(ours) // 2) for half in HALVES)):
        found, expected = (read_map(run / name).values for run in (folder, searched_run))
        assert relative_difference(found, expected) ** 2 < 1 / images, name
    # Poses are the same, by far closer than the image determines them, or ties: maxima of one height.
    _, dataset = opened(star, {})
    observed = result_of(load_transforms(dataset, torch.device("cpu")))
    volume, pixel = read_map(searched_run / "run_class001.mrc").values, dataset.pixel_size_angstrom
    poses = [posed(run / "run_data.star", searched_particles) for run in (folder, searched_run)]
    (here, rounding), (there, _) = (maxima(observed, volume, one, pixel) for one in poses)
    is_same = angles_between(poses[0].rotations, poses[1].rotations) < 0.25 * there.rotation_sigma_rad
    is_tie = (here.log_likelihood - there.log_likelihood).abs() <= rounding
    assert bool((is_same | is_tie).all()), (here.log_likelihood - there.log_likelihood)[~is_same]
    assert math.degrees(float(there.rotation_sigma_rad.median())) < 5
    assert read_json(folder / "job.json")["status"] == "done"
    assert f"{count} processes" in (folder / "run.log").read_text()
    for rank in range(1, count):
        assert (tmp_path / f"said_{rank}").read_text() == ""


def posed(star: Path, particles: Path) -> Poses:
    poses = read_particles(star, datadir=particles, with_poses=True).table.poses
    assert poses is not None
    return Poses(poses.rotations.double(), poses.shifts_angstrom.double())


def test_known_poses(
    start_job: Start, codes_of: Wait, tmp_path: Path, tiny_particles: Path
) -> None:  # fmt: skip
    from cryoeq.cli.main import run

    command = ["reconstruct", str(tiny_particles / "truth.star"), "--pose-inference", "known", "--device", "cpu", "-o"]
    assert run([*command, str(tmp_path / "alone")]) == 0
    assert codes_of(start_job(2, [*command, str(tmp_path / "run")])) == [0, 0]
    assert correlation(tmp_path / "alone" / "run_class001.mrc", tmp_path / "run" / "run_class001.mrc") > 1 - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "short",
    [
        ("hybrid.projections=300",),
        ("hybrid.posterior=network", "hybrid.training_steps=40", "hybrid.batch_size=64"),
    ],
    ids=("slices", "network"),
)
def test_a_hybrid_run(
    start_job: Start,
    codes_of: Wait,
    tmp_path: Path,
    searched_particles: Path,
    search_options: tuple[str, ...],
    short: tuple[str, ...],
) -> None:
    from cryoeq.cli.main import run

    particles = str(searched_particles / "particles.star")
    chosen = [word for setting in short for word in ("--set", setting)]
    command = ["reconstruct", particles, "--pose-inference", "hybrid", *search_options, *chosen, "-o"]
    assert run([*command, str(tmp_path / "alone")]) == 0
    assert codes_of(start_job(2, [*command, str(tmp_path / "run")])) == [0, 0]
    assert (tmp_path / "run" / "encoder.pt").is_file()
    assert correlation(tmp_path / "alone" / "run_class001.mrc", tmp_path / "run" / "run_class001.mrc") > 0.99


def test_commands_that_do_not_share_are_refused(start_job: Start, codes_of: Wait, tmp_path: Path) -> None:
    assert codes_of(start_job(2, ["doctor"])) == [2, 2]
    assert "2 processes for one cryoeq doctor. Only cryoeq reconstruct shares" in (tmp_path / "said_1").read_text()
