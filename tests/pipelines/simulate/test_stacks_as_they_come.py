"""Stacks with several species, junk, neighbours and wrong defocus: the truth explains them, the particles do not."""

import math
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from scipy.stats import kstest

from cryoeq.cli.main import run
from cryoeq.config.loading import load_config
from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, fft_image
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.pipelines.simulate.simulate import simulate
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

TRUTH = {
    "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset",
    "rlnClassNumber", "cryoeqJunkKind", "cryoeqHasNeighbour", "rlnCtfScalefactor", "rlnCtfBfactor",
}  # fmt: skip
REAL = {
    "junk_share": 0.2, "neighbour_share": 0.15, "scale_sd": 0.15, "defocus_error_angstrom": 150.0,
    "bfactor_angstrom2": 80.0, "micrograph_count": 25, "optics_group_count": 3, "shift_sigma_angstrom": 6.0,
    "astigmatism_angstrom": 300.0,
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, phantom_map: Volume) -> tuple[Path, Path]:
    """Two molecules; the second is the mirror image of a larger one."""
    paths = tmp_path / "a.mrc", tmp_path / "b.mrc"
    write_map(paths[0], phantom_map)
    other = sample_atoms(chiral_phantom(70.0).rotated(torch.diag(torch.tensor([1.0, 1.0, -1.0]))), 32, 5.0)
    write_map(paths[1], other)
    return paths


def work(models: tuple[Path, Path], output: Path, **settings: object) -> list[Event]:
    explicit = {"model": models[0], "output": output, "count": 100, "seed": 5, "device": "cpu"} | settings
    return list(simulate(load_config(SimulateConfig, explicit=explicit)))


def explained(folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor, dict[str, np.ndarray]]:
    """Correlation and scale of each particle against the projection of the map of its class; the truth's columns."""
    stack = read_particles(folder / "truth.star", with_poses=True)
    table, columns = stack.table, stack.star.particles
    images = stack.images.read(torch.arange(len(table)))
    classes = torch.from_numpy(columns["rlnClassNumber"].astype(int))
    plane = HalfPlane.up_to(table.box_size_px, 0.8 * table.box_size_px / 2)
    assert table.poses is not None
    assert table.ctf is not None
    predicted = torch.zeros(len(table), len(plane), dtype=torch.complex64)
    for number, name in enumerate(names, 1):
        rows = (classes == number).nonzero().squeeze(1)
        transfer = image_transfer(table.ctf[rows], plane.frequencies_per_angstrom(table.pixel_size_angstrom))
        shifts_px = table.poses.shifts_angstrom[rows] / table.pixel_size_angstrom
        padded = prepare_slices(read_map(folder / name).values)
        predicted[rows] = form_images(padded, table.poses.rotations[rows], shifts_px, transfer, plane)
    observed = plane.gather(fft_image(images))
    products = (predicted * observed.conj()).sum(-1).real
    norms = predicted.norm(dim=-1).clamp(min=1e-9)
    return products / (norms * observed.norm(dim=-1).clamp(min=1e-9)), products / norms.square(), dict(columns)


@pytest.mark.parametrize("several", [False, True])
def test_the_truth_explains_every_particle_and_no_junk(
    models: tuple[Path, Path], tmp_path: Path, several: bool
) -> None:
    others = {"other_models": [f"{models[1]}:0.4"]} if several else {}
    work(models, tmp_path / "out", **REAL, **others, snr=math.inf)
    names = ["truth_volume_class001.mrc", "truth_volume_class002.mrc"] if several else ["truth_volume.mrc"]
    assert sorted(path.name for path in (tmp_path / "out").glob("truth_volume*")) == names
    correlation, scale, columns = explained(tmp_path / "out", names)
    is_particle, beside = columns["rlnClassNumber"] != "0", columns["cryoeqHasNeighbour"] == "1"
    alone = torch.from_numpy(is_particle & ~beside)
    assert int(alone.sum()) == 65
    assert float(correlation[alone].min()) > 0.998
    assert float(scale[alone].sub(1).abs().max()) < 0.04
    with_neighbour = torch.from_numpy(beside)
    assert int(with_neighbour.sum()) == 15
    assert float(correlation[with_neighbour].max()) < 0.9999
    assert float(correlation[with_neighbour].min()) > 0.4


def test_what_the_truth_says_of_the_stack(models: tuple[Path, Path], tmp_path: Path) -> None:
    work(models, tmp_path / "out", **REAL, other_models=[f"{models[1]}:0.4"], count=400)
    tables = starfile.read(tmp_path / "out" / "truth.star")
    truth = tables["particles"]
    kinds = truth["cryoeqJunkKind"].value_counts()
    assert dict(kinds) == {"none": 320, "empty": 20, "edge": 20, "overlap": 20, "broken": 20}
    assert ((truth["rlnClassNumber"] == 0) == (truth["cryoeqJunkKind"] != "none")).all()
    assert abs((truth["rlnClassNumber"] == 2).sum() - 128) < 30
    assert set(truth["rlnCtfBfactor"]) == {80.0}
    assert float(truth["rlnCtfScalefactor"].std()) == pytest.approx(0.15, rel=0.2)
    assert len(tables["optics"]) == 3
    assert truth["rlnMicrographName"].nunique() == 25
    assert (truth.groupby("rlnMicrographName")["rlnOpticsGroup"].nunique() == 1).all()


def test_particles_say_nothing_of_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    work(models, tmp_path / "out", **REAL, other_models=[f"{models[1]}:0.4"], count=400, normalise=True)
    shown, hidden = (starfile.read(tmp_path / "out" / name)["particles"] for name in ("particles.star", "truth.star"))
    assert not TRUTH & set(shown.columns)
    assert set(hidden.columns) - set(shown.columns) == TRUTH
    errors = shown["rlnDefocusU"] - hidden["rlnDefocusU"]
    assert np.allclose(errors, shown["rlnDefocusV"] - hidden["rlnDefocusV"], atol=0.01)
    assert kstest(errors / 150, "norm").pvalue > 0.01
    same = [name for name in shown.columns if name not in {"rlnDefocusU", "rlnDefocusV"}]
    assert hidden[same].equals(shown[same])


@pytest.mark.parametrize("noise", ["white", "coloured", "ice"])
def test_backgrounds_are_normalised_and_the_truth_knows_by_how_much(
    models: tuple[Path, Path], tmp_path: Path, noise: str
) -> None:
    options = {"noise": noise, "snr": 5.0, "scale_sd": 0.2, "micrograph_count": 6, "optics_group_count": 3}
    work(models, tmp_path / "out", **options, normalise=True)
    stack = read_particles(tmp_path / "out" / "particles.star")
    images = stack.images.read(torch.arange(100))
    x = torch.arange(32) - 16
    background = images[:, (x[:, None].square() + x.square()).sqrt() > 12]
    torch.testing.assert_close(background.mean(1), torch.zeros(100), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(background.std(1, correction=0), torch.ones(100), atol=1e-4, rtol=0.0)
    _, scale, _ = explained(tmp_path / "out", ["truth_volume.mrc"])
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("option", ["junk_share", "neighbour_share", "defocus_error_angstrom"])
def test_one_option_changes_no_draw_of_another(models: tuple[Path, Path], tmp_path: Path, option: str) -> None:
    work(models, tmp_path / "plain", scale_sd=0.15)
    work(models, tmp_path / "with", scale_sd=0.15, **{option: REAL[option]})
    plain, other = (starfile.read(tmp_path / name / "truth.star")["particles"] for name in ("plain", "with"))
    poses = [name for name in plain.columns if name.startswith(("rlnAngle", "rlnOrigin", "rlnDefocus"))]
    assert plain[[*poses, "rlnRandomSubset"]].equals(other[[*poses, "rlnRandomSubset"]])


def test_batches_join_seamlessly(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the draws is that of the rows, whatever the batches: here, of the images without contaminants."""
    options = {"other_models": [f"{models[1]}:0.4"], "neighbour_share": 0.3, "snr": math.inf}
    work(models, tmp_path / "whole", **options)
    monkeypatch.setattr("cryoeq.simulation.particles._PIXELS_AT_ONCE", 7 * 32**2)
    work(models, tmp_path / "parts", **options)
    whole, parts = (
        read_particles(tmp_path / name / "particles.star").images.read(torch.arange(100)) for name in ("whole", "parts")
    )
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_the_box_holds_the_largest_molecule(tmp_path: Path, models: tuple[Path, Path]) -> None:
    wide = tmp_path / "wide.mrc"
    write_map(wide, sample_atoms(chiral_phantom(100.0), 48, 5.0))
    work(models, tmp_path / "out", other_models=[f"{wide}:0.5"], count=4)
    table = read_particles(tmp_path / "out" / "particles.star").table
    assert (table.box_size_px, table.pixel_size_angstrom) == (48, 5.0)
    events = work(models, tmp_path / "given", other_models=[f"{wide}:0.5"], count=4, box_size_px=32)
    assert read_particles(tmp_path / "given" / "particles.star").table.box_size_px == 32
    assert any("no common grey scale" in event.text for event in events if isinstance(event, Note))


@pytest.mark.gpu
def test_gpu_and_cpu_agree_but_for_the_noise(models: tuple[Path, Path], tmp_path: Path) -> None:
    for device in ("cpu", "cuda:0"):
        options = REAL | {"snr": math.inf, "device": device}
        work(models, tmp_path / device[:4], **options, other_models=[f"{models[1]}:0.4"])
    on_cpu, on_gpu = (
        read_particles(tmp_path / name / "particles.star").images.read(torch.arange(100)) for name in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
    assert (tmp_path / "cpu" / "truth.star").read_bytes() == (tmp_path / "cuda" / "truth.star").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--model {b}", 2, "as in B.pdb:0.4"),
        ("--model {b}:1.5", 2, "as in B.pdb:0.4"),
        ("--model {b}:0.6 --model {b}:0.4", 2, "add up to 1"),
        ("--model {folder}/absent.mrc:0.4", 3, "does not exist"),
        ("--junk 1", 2, "--junk"),
        ("--junk 0.8 --neighbours 0.3", 2, "add up to more than 1"),
        ("--junk 0.9 -n 1", 2, "leaves none"),
        ("--optics-groups 3", 2, "give --n-micrographs"),
        ("--optics-groups 3 --n-micrographs 2", 2, "give --n-micrographs"),
        ("--crystal 90 90 90 --junk 0.1", 2, "--junk with --crystal"),
        ("--crystal 90 90 90 --noise ice", 2, "--noise ice with --crystal"),
        ("--scale-sd -1", 2, "--scale-sd"),
        ("--noise snow", 2, "--noise"),
    ],
)
def test_wrong_use_is_explained(
    options: str, code: int, message: str, models: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = options.format(b=models[1], folder=tmp_path).split()
    assert run(["simulate", str(models[0]), *words, "-o", str(tmp_path / "out"), "--device", "cpu"]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_the_command_line_reaches_the_settings(models: tuple[Path, Path], tmp_path: Path) -> None:
    words = (
        f"--model {models[1]}:0.25 --junk 0.2 --neighbours 0.1 --scale-sd 0.15 --defocus-error 150 --bfactor 80 "
        "--n-micrographs 5 --optics-groups 2 --noise ice --normalise -n 20 --device cpu"
    ).split()
    assert run(["simulate", str(models[0]), *words, "-o", str(tmp_path / "out")]) == 0
    again = ["simulate", str(models[0]), "-o", str(tmp_path / "again"), "--config", str(tmp_path / "out/config.yaml")]
    assert run(again) == 0
    first, second = ((tmp_path / name / "truth.star").read_bytes() for name in ("out", "again"))
    assert first == second
    assert b"cryoeqJunkKind" in first
