"""``--pose-inference hybrid`` with encoders of views, and ``cryoeq infer`` by them, on tiny sets."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.data.prefetch import read_batches
from cryoeq.domain.particles import ParticleBatch
from cryoeq.errors import DivergedError
from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector, rotation_vector
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import star_half_set, star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 240
QUICK = {
    "search.initial_model.iterations": 30, "search.consensus.shells": "[6,7]", "search.initial_model.batch_size": 60,
    "search.half_sets.iterations": 2, "hybrid.projections": 600, "hybrid.training_steps": 150,
    "hybrid.held_out": 0.25,
}  # fmt: skip


def simulate(folder: Path, extent_angstrom: float, seed: int, *more: str) -> Path:
    """Particles of a phantom of some size; the folder, with ``particles.star`` and ``truth.star``."""
    folder.mkdir(parents=True)
    write_map(folder / "phantom.mrc", sample_atoms(chiral_phantom(extent_angstrom), 16, 5.0))
    options = ["-n", str(COUNT), "--snr", "2", "--shift-sigma", "4", "--seed", str(seed), "--device", "cpu", *more]
    assert run(["simulate", str(folder / "phantom.mrc"), "-o", str(folder / "set"), *options]) == 0
    return folder / "set"


def reconstruction(star: Path, output: Path) -> list[str]:
    chosen = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    command = ["reconstruct", str(star), "-o", str(output), "--pose-inference", "hybrid", "--shift-sigma", "4"]
    return [*command, "--device", "cpu", *chosen]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A simulated set, and the run of it."""
    folder = tmp_path_factory.mktemp("views")
    simulated = simulate(folder / "known", 28.0, 1, "--n-micrographs", "12")
    assert run(reconstruction(simulated / "particles.star", folder / "run")) == 0
    return simulated, folder / "run"


def test_held_out_particles_are_posed_by_what_never_saw_them(whole_run: tuple[Path, Path]) -> None:
    _, output = whole_run
    results = read_json(output / "job.json")["results"]
    assert results["held_out_median_deg"] < 20
    assert f"Encoder, held-out particles ({COUNT // 4})" in (output / "run.log").read_text()
    state = load_checkpoint(output / "encoder.pt", torch.device("cpu"))
    assert state["kind"] == "views"
    first, second = (half["volume"] for half in state["classes"][0]["halves"])
    assert not torch.equal(first, second)


def test_new_particles_are_posed_in_any_batch(whole_run: tuple[Path, Path], tmp_path: Path) -> None:
    simulated, output = whole_run
    star = simulated / "particles.star"
    command = ["infer", str(output), str(star), "--device", "cpu"]
    assert run([*command, "-o", str(tmp_path / "poses.star")]) == 0
    assert run([*command, "-o", str(tmp_path / "again.star"), "-b", "7"]) == 0
    found, again, given = read_star(tmp_path / "poses.star"), read_star(tmp_path / "again.star"), read_star(star)
    assert found.particles["rlnImageName"].tolist() == given.particles["rlnImageName"].tolist()
    for name in ("rlnAngleRot", "rlnOriginXAngst", "rlnMaxValueProbDistribution", "rlnRandomSubset"):
        assert np.array_equal(found.particles[name], again.particles[name]), name
    assert set(star_half_set(found).tolist()) == {1, 2}
    probability = found.floats("rlnMaxValueProbDistribution")
    assert ((probability > 0) & (probability <= 1)).all()
    record = read_json(tmp_path / "poses.json")
    assert record["particles"] == COUNT
    assert record["micrographs"] == 12
    assert record["share_unusual"] < 0.2
    assert (tmp_path / "poses.png").stat().st_size > 10_000
    assert run(["evaluate", str(tmp_path / "poses.star"), str(simulated / "truth.star")]) == 0


def test_the_bare_pass_is_rougher(whole_run: tuple[Path, Path], tmp_path: Path, median_error: Callable) -> None:
    simulated, output = whole_run
    command = ["infer", str(output), str(simulated / "particles.star"), "--device", "cpu"]
    errors = []
    for name, more in (("refined", []), ("bare", ["--no-refine"])):
        poses = tmp_path / f"{name}.star"
        assert run([*command, *more, "-o", str(poses)]) == 0
        errors.append(median_error(poses, simulated / "truth.star"))
    assert errors[0] < errors[1] < 25
    bare = read_json(tmp_path / "bare.json")
    assert bare["junk_share"] is None
    assert bare["share_of_search_kept"] == 0


@pytest.fixture
def median_error() -> Callable[[Path, Path], float]:
    from cryoeq.evaluation.poses import compare_poses

    def measure(poses: Path, truth: Path) -> float:
        errors = compare_poses(star_poses(read_star(poses)), star_poses(read_star(truth)))
        return float(errors.rotation_rad.rad2deg().median())

    return measure


def test_images_are_not_kept(whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch is due, all before it are gone: memory does not grow with the set."""
    simulated, output = whole_run
    before: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watched(*given: object, **more: object) -> Iterator[ParticleBatch]:
        nonlocal most
        for batch in read_batches(*given, **more):  # type: ignore[arg-type]
            gc.collect()
            most = max(most, sum(each() is not None for each in before))
            before.append(weakref.ref(batch.images))
            yield batch
            del batch

    monkeypatch.setattr("cryoeq.pipelines.infer_views.read_batches", watched)
    command = ["infer", str(output), str(simulated / "particles.star"), "-o", str(tmp_path / "poses.star")]
    assert run([*command, "--device", "cpu", "--no-refine", "-b", "20"]) == 0
    assert len(before) == COUNT // 20
    assert most <= 1  # that of the loop variable


def test_a_table_of_cryosparc_comes_back_with_poses(whole_run: tuple[Path, Path], tmp_path: Path) -> None:
    simulated, output = whole_run
    star = read_star(simulated / "particles.star")
    names = [name.split("@") for name in star.particles["rlnImageName"].tolist()]
    angles = star.floats("rlnDefocusAngle")
    kinds = [
        ("uid", "<u8"), ("blob/path", "S200"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
        ("blob/psize_A", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"),
        ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"), ("ctf/exp_group_id", "<u4"),
    ]  # fmt: skip
    table = np.zeros(len(star), kinds)
    table["uid"], table["blob/idx"] = np.arange(len(star)), [int(number) - 1 for number, _ in names]
    table["blob/path"] = [str(simulated / name).encode() for _, name in names]
    table["blob/shape"], table["blob/psize_A"] = 16, 5.0
    table["ctf/accel_kv"], table["ctf/cs_mm"], table["ctf/amp_contrast"] = 300.0, 2.7, 0.1
    table["ctf/df1_A"], table["ctf/df2_A"] = star.floats("rlnDefocusU"), star.floats("rlnDefocusV")
    table["ctf/df_angle_rad"] = np.deg2rad(angles)
    with (tmp_path / "new.cs").open("wb") as file:
        np.save(file, table)
    command = ["infer", str(output), "--device", "cpu", "--no-refine"]
    assert run([*command, str(tmp_path / "new.cs"), "-o", str(tmp_path / "poses.star")]) == 0
    assert run([*command, str(simulated / "particles.star"), "-o", str(tmp_path / "same.star")]) == 0
    written = np.load(tmp_path / "poses.cs")
    assert np.array_equal(written["uid"], table["uid"])
    assert set(written["alignments3D/split"].tolist()) == {0, 1}
    found, same = (star_poses(read_star(tmp_path / f"{name}.star")).rotations for name in ("poses", "same"))
    vectors = rotation_vector(found.double().mT).float()
    angle = rotation_angle_rad(rotation_from_vector(vectors), rotation_from_vector(_vectors(written)))
    assert float(angle.max()) < 1e-3
    assert float(rotation_angle_rad(found, same).median()) < 0.02  # its CTF angles are rounded to float32


def _vectors(table: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(table["alignments3D/pose"].astype(np.float32))


def test_another_molecule_is_told(
    whole_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smaller phantom at another seed: its fit is below that of the run's particles, and a warning says so."""
    _, output = whole_run
    other = simulate(tmp_path / "other", 16.0, 2)
    command = ["infer", str(output), str(other / "particles.star"), "-o", str(tmp_path / "other.star")]
    assert run([*command, "--device", "cpu"]) == 0
    assert read_json(tmp_path / "other.json")["share_unusual"] > 0.25
    assert "Do not trust their poses" in " ".join(capsys.readouterr().err.split())


def test_what_slices_cannot_do_is_refused(
    whole_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated, output = whole_run
    command = ["infer", str(output), str(simulated / "particles.star"), "-o", str(tmp_path / "poses.star")]
    assert run([*command, "--precision", "int8", "--device", "cpu"]) == 2
    assert "compares slices of the half map" in " ".join(capsys.readouterr().err.split())
    assert run(["evaluate", "--bound", str(output), "--device", "cpu"]) == 3
    assert "no network to bound" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_is_resumed_learns_the_same(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its encoders and gone on from its checkpoints: the same files, bit by bit."""
    simulated, output = whole_run

    def stop(*_given: object, **_more: object) -> NoReturn:
        raise DivergedError("stopped", "", "")

    with monkeypatch.context() as patched:
        patched.setattr("cryoeq.pipelines.reconstruct.hybrid_views.learn_half", stop)
        assert run(reconstruction(simulated / "particles.star", tmp_path / "again")) == 4
    assert not (tmp_path / "again" / "encoder.pt").exists()
    assert run([*reconstruction(simulated / "particles.star", tmp_path / "again"), "--resume"]) == 0
    assert "Resumed from checkpoint" in (tmp_path / "again" / "run.log").read_text()
    first, second = (load_checkpoint(each / "encoder.pt", torch.device("cpu")) for each in (output, tmp_path / "again"))
    for ours, theirs in zip(first["classes"][0]["halves"], second["classes"][0]["halves"], strict=True):
        assert torch.equal(ours["volume"], theirs["volume"])
        assert torch.equal(ours["head"]["weight"], theirs["head"]["weight"])
        assert torch.equal(ours["refined"], theirs["refined"])
    assert (output / "run_data.star").read_bytes() == (tmp_path / "again" / "run_data.star").read_bytes()
