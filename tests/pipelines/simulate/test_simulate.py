"""``cryoeq simulate`` end to end: what it writes, and that its truth explains its particles."""

import gzip
import json
import math
from pathlib import Path

import mrcfile
import pytest
import starfile
import torch

from cryoeq.cli.main import run
from cryoeq.config.loading import load_config, packaged_file
from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError, OutputError
from cryoeq.geometry.fourier import HalfPlane, fft_image
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import ParticleStack, read_particles
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.pipelines.simulate.reference_map import read_truth
from cryoeq.pipelines.simulate.simulate import simulate
from cryoeq.pipelines.simulate.stack import Stack
from cryoeq.simulation.particles import NoiseFreeStack
from pretended_cuda.machine import MACHINE

POSE_COLUMNS = {
    "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset",
}  # fmt: skip
SAMPLE = "data_samples/1wcm_ca.pdb.gz"
HARD = {"shift_sigma_angstrom": 8.0, "astigmatism_angstrom": 400.0, "count": 60, "snr": math.inf}


@pytest.fixture
def map_path(tmp_path: Path, phantom_map: Volume) -> Path:
    path = tmp_path / "phantom.mrc"
    write_map(path, phantom_map)
    return path


def work(model: Path, output: Path, **settings: object) -> list[Event]:
    explicit = {"model": model, "output": output, "count": 40, "seed": 5, "device": "cpu"} | settings
    return list(simulate(load_config(SimulateConfig, explicit=explicit)))


def read_all(folder: Path, name: str = "truth.star") -> tuple[ParticleStack, torch.Tensor]:
    stack = read_particles(folder / name, with_poses=name == "truth.star")
    return stack, stack.images.read(torch.arange(len(stack.table)))


def explained_by_truth(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation and scale of each particle against the projection of the truth by ``cryoeq.physics``."""
    stack, images = read_all(folder)
    truth, table = read_map(folder / "truth_volume.mrc"), stack.table
    assert table.poses is not None
    n = table.box_size_px
    plane = HalfPlane.up_to(n, 0.8 * n / 2)
    frequencies = plane.frequencies_per_angstrom(table.pixel_size_angstrom)
    transfer = None if table.ctf is None else image_transfer(table.ctf, frequencies)
    shifts_px = table.poses.shifts_angstrom / table.pixel_size_angstrom
    predicted = form_images(prepare_slices(truth.values), table.poses.rotations, shifts_px, transfer, plane)
    observed = plane.gather(fft_image(images))
    products = (predicted * observed.conj()).sum(-1).real
    norms = predicted.norm(dim=-1)
    return products / (norms * observed.norm(dim=-1)), products / norms.square()


@pytest.mark.parametrize("model", ["map", "atoms"])
def test_projecting_the_truth_reproduces_the_particles(model: str, map_path: Path, tmp_path: Path) -> None:
    path = map_path if model == "map" else packaged_file(SAMPLE)
    work(path, tmp_path / "out", **HARD, box_size_px=32)
    correlation, scale = explained_by_truth(tmp_path / "out")
    assert correlation.min() > 0.999
    # Views along an axis of the grid meet the worst of the trilinear slices: 2 %.
    assert scale.sub(1).abs().max() < 0.03
    assert scale.mean().sub(1).abs() < 0.003


def test_particles_say_nothing_of_the_truth(map_path: Path, tmp_path: Path) -> None:
    work(map_path, tmp_path / "out", shift_sigma_angstrom=5.0)
    shown, hidden = (starfile.read(tmp_path / "out" / name) for name in ("particles.star", "truth.star"))
    assert not POSE_COLUMNS & set(shown["particles"].columns)
    assert set(hidden["particles"].columns) - set(shown["particles"].columns) == POSE_COLUMNS
    assert hidden["particles"][shown["particles"].columns].equals(shown["particles"])
    assert sorted(hidden["particles"]["rlnRandomSubset"].value_counts().to_list()) == [20, 20]
    assert "rlnImageSize" in shown["optics"]


def test_files_are_valid_and_nothing_else_is_left(
    map_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = work(map_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "command.txt", "config.yaml", "job.json", "particles.mrcs", "particles.star", "truth.star", "truth_volume.mrc",
    ]  # fmt: skip
    for name in ("particles.mrcs", "truth_volume.mrc"):
        assert mrcfile.validate(tmp_path / "out" / name), capsys.readouterr().out
    with mrcfile.open(tmp_path / "out" / "particles.mrcs") as mrc:
        assert mrc.is_image_stack()
        assert float(mrc.voxel_size.x) == 5.0
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert (job["status"], job["seed"]) == ("done", 5)
    assert isinstance(events[-1], Report)
    assert [event.done for event in events if isinstance(event, Progress)] == [40, 40]


@pytest.mark.parametrize("noise", ["white", "coloured"])
@pytest.mark.parametrize("snr", [0.05, 2.0])
def test_snr_is_the_variance_of_the_signal_over_that_of_the_noise(
    map_path: Path, tmp_path: Path, snr: float, noise: str
) -> None:
    work(map_path, tmp_path / "noisy", snr=snr, noise=noise, count=300, shift_sigma_angstrom=5.0)
    work(map_path, tmp_path / "clean", snr=math.inf, count=300, shift_sigma_angstrom=5.0)
    clean = read_all(tmp_path / "clean")[1]
    noisy = read_all(tmp_path / "noisy")[1]
    assert float(clean.var()) == pytest.approx(1.0, rel=1e-3)
    signal = clean * math.sqrt(snr)  # the same seed draws the same poses and defoci at any SNR
    noise_images = noisy - signal
    assert float(noise_images.var()) == pytest.approx(1.0, rel=0.02)
    assert float(signal.var() / noise_images.var()) == pytest.approx(snr, rel=0.02)
    assert torch.corrcoef(torch.stack([signal.flatten(), noise_images.flatten()]))[0, 1].abs() < 0.01
    # The truth is in the same grey scale as the particles.
    volumes = [read_map(tmp_path / name / "truth_volume.mrc").values for name in ("noisy", "clean")]
    torch.testing.assert_close(volumes[0], volumes[1] * math.sqrt(snr), rtol=1e-4, atol=1e-5)


def test_a_seed_decides_everything(map_path: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        work(map_path, tmp_path / name, seed=seed)
    for file in ("particles.star", "truth.star"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    (one, first), (_, second), (other, third) = (read_all(tmp_path / name) for name in "abc")
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert one.table.poses is not None
    assert other.table.poses is not None
    assert rotation_angle_rad(one.table.poses.rotations, other.table.poses.rotations).min() > 1e-3


def test_without_ctf_images_are_plain_projections(map_path: Path, tmp_path: Path) -> None:
    work(map_path, tmp_path / "out", with_ctf=False, snr=math.inf)
    assert "rlnDefocusU" not in starfile.read(tmp_path / "out" / "particles.star")["particles"].columns
    stack = read_particles(tmp_path / "out" / "particles.star", ignore_ctf=True)
    images = stack.images.read(torch.arange(40))
    sums = images.sum((1, 2))
    torch.testing.assert_close(sums, sums.mean().expand(40), rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("settings", [{}, {"junk_share": 0.4, "noise": "ice", "normalise": True}])
def test_images_are_the_same_whether_they_were_kept_or_made_again(
    map_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr("cryoeq.simulation.particles._PIXELS_AT_ONCE", 9 * 32**2)
    made, images_of = [], NoiseFreeStack.images
    monkeypatch.setattr(NoiseFreeStack, "images", lambda stack, rows: made.append(rows) or images_of(stack, rows))
    for name, pixels in (("kept", 2**28), ("some", 20 * 32**2), ("none", 0)):
        monkeypatch.setattr("cryoeq.pipelines.simulate.simulate._KEPT_PIXELS", pixels)
        work(map_path, tmp_path / name, shift_sigma_angstrom=5.0, **settings)
    assert [rows.start for rows in made[5:13]] == [0, 9, 18, 27, 36, 18, 27, 36]
    kept, *others = (read_all(tmp_path / name)[1] for name in ("kept", "some", "none"))
    assert all(torch.equal(kept, other) for other in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [{}, {"junk_share": 0.3, "noise": "ice", "normalise": True}])
def test_a_gpu_draws_other_noise_always_the_same(map_path: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    options = {"snr": 0.5, "shift_sigma_angstrom": 5.0, "count": 60} | settings
    for name, device in (("cpu", "cpu"), ("one", "cuda"), ("other", "cuda")):
        work(map_path, tmp_path / name, device=device, **options)
    cpu, one, other = (read_all(tmp_path / name)[1] for name in ("cpu", "one", "other"))
    if MACHINE.watch:  # sums on a real GPU are in no fixed order
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (one - cpu).std() > 0.5
    assert float(one.var()) == pytest.approx(float(cpu.var()), rel=0.05)
    shown = [starfile.read(tmp_path / name / "truth.star")["particles"] for name in ("cpu", "one")]
    columns = sorted(POSE_COLUMNS)
    assert shown[0][columns].equals(shown[1][columns])


def test_symmetry_makes_the_truth_symmetric(map_path: Path, tmp_path: Path) -> None:
    events = work(map_path, tmp_path / "out", symmetry="C2", snr=math.inf)
    truth = read_map(tmp_path / "out" / "truth_volume.mrc").values
    half_turn = torch.roll(truth.flip(1, 2), (1, 1), (1, 2))
    assert (truth - half_turn).norm() < 2e-3 * truth.norm()
    assert any("rotations of C2" in event.text for event in events if isinstance(event, Note))


def test_an_interrupted_run_leaves_no_particles(
    map_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stack: Stack, rows: slice) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(Stack, "draw_noise", fail)
    with pytest.raises(MemoryError):
        work(map_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["command.txt", "config.yaml", "job.json"]
    assert json.loads((tmp_path / "out" / "job.json").read_text())["status"] == "failed"


def test_the_folder_of_another_run_is_refused(map_path: Path, tmp_path: Path) -> None:
    work(map_path, tmp_path / "out")
    before = (tmp_path / "out" / "particles.mrcs").read_bytes()
    with pytest.raises(OutputError, match="another run"):
        work(map_path, tmp_path / "out", seed=9)
    assert (tmp_path / "out" / "particles.mrcs").read_bytes() == before


def test_box_and_pixel_size_are_chosen_for_the_molecule(tmp_path: Path) -> None:
    for name, settings, expected in (
        ("fit", {"box_size_px": 32}, (32, 7.75)),
        ("wide", {"pixel_size_angstrom": 10.0}, (26, 10.0)),
        ("given", {"box_size_px": 32, "pixel_size_angstrom": 7.0}, (32, 7.0)),
    ):
        work(packaged_file(SAMPLE), tmp_path / name, count=2, **settings)
        table = read_particles(tmp_path / name / "particles.star").table
        assert (table.box_size_px, table.pixel_size_angstrom) == expected
    with pytest.raises(ConfigError, match=r"198 Å across, the box 160 Å.*--box 50"):
        work(packaged_file(SAMPLE), tmp_path / "small", box_size_px=32, pixel_size_angstrom=5.0)
    assert not (tmp_path / "small").exists()


def test_a_map_is_resampled_to_the_asked_box(map_path: Path, tmp_path: Path) -> None:
    work(map_path, tmp_path / "out", box_size_px=20, snr=math.inf)
    truth = read_map(tmp_path / "out" / "truth_volume.mrc")
    assert (truth.box_size_px, truth.pixel_size_angstrom) == (20, pytest.approx(8.0))
    assert explained_by_truth(tmp_path / "out")[0].min() > 0.999


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{map}", "--snr", "0"], 2, "--snr is 0.0"),
        (["{map}", "--snr", "nan"], 2, "snr"),
        (["{map}", "--box", "31"], 2, "--box is 31"),
        (["{map}", "--defocus-min", "3", "--defocus-max", "2"], 2, "--defocus-min"),
        (["{map}", "--defocus-min", "10000"], 2, "for Å write 1"),
        (["{map}", "--kv", "300000"], 2, "--kv"),
        (["{map}", "--views", "sideways"], 2, "'--views': 'sideways' is not one of"),
        (["{map}", "--sym", "X9"], 2, "--sym"),
        (["{map}", "--assembly", "1"], 3, "assembl"),
        (["{map}", "--device", "cuda:99"], 2, "--device"),
        (["{folder}/absent.pdb"], 3, "no such file"),
        (["{folder}/absent.mrc"], 3, "does not exist"),
        (["{folder}/molecule.txt"], 3, "neither an atomic model nor a map"),
    ],
)
def test_wrong_use_is_explained(
    arguments: list[str], code: int, message: str, map_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(map=map_path, folder=tmp_path) for argument in arguments]
    assert run(["simulate", *filled, "-o", str(tmp_path / "out")]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_line_reaches_every_setting(map_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (
        "-n 7 --box 24 --angpix 7 --snr inf --shift-sigma 3 --defocus-min 0.5 --defocus-max 0.8 --astigmatism 100 "
        "--astigmatism-angle 25 --kv 200 --cs 2.0 --amplitude-contrast 0.07 --views preferred --sym c2 "
        "--noise coloured --seed 4 --device cpu"
    )
    assert run(["simulate", str(map_path), "-o", str(out), *options.split()]) == 0
    settings = json.loads((out / "job.json").read_text())["settings"]
    assert settings == {
        "model": str(map_path), "output": str(out), "assembly": None, "box_size_px": 24, "pixel_size_angstrom": 7.0,
        "count": 7, "snr": "inf", "shift_sigma_angstrom": 3.0, "defocus_min_um": 0.5, "defocus_max_um": 0.8,
        "astigmatism_angstrom": 100.0, "astigmatism_angle_deg": 25.0, "voltage_kv": 200.0,
        "spherical_aberration_mm": 2.0, "amplitude_contrast": 0.07,
        "with_ctf": True, "views": "preferred", "symmetry": "c2", "noise": "coloured", "seed": 4, "device": "cpu",
        "other_models": [], "junk_share": 0.0, "neighbour_share": 0.0, "scale_sd": 0.0, "defocus_error_angstrom": 0.0,
        "bfactor_angstrom2": 0.0, "micrograph_count": None, "optics_group_count": 1, "normalise": False,
        "crystal": None, "tilt_deg": 0.0, "tilt_axis_deg": 0.0, "disorder_angstrom": 0.0, "micrograph_px": 1024,
    }  # fmt: skip
    again = tmp_path / "again"
    assert run(["simulate", str(map_path), "-o", str(again), "--config", str(out / "config.yaml")]) == 0
    assert (again / "truth.star").read_bytes() == (out / "truth.star").read_bytes()


def test_a_packed_map_is_a_map_and_a_missing_pixel_size_can_be_given(map_path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "phantom.map.gz"
    packed.write_bytes(gzip.compress(map_path.read_bytes()))
    config, cpu = SimulateConfig(model=packed, output=tmp_path / "out"), torch.device("cpu")
    assert torch.equal(read_truth(config, cpu).volume.values, read_map(map_path).values)
    with mrcfile.open(map_path, "r+") as mrc:
        mrc.header.cella.x = 0.0
    config = SimulateConfig(model=map_path, output=tmp_path / "out", pixel_size_angstrom=3.0)
    truth = read_truth(config, cpu)
    assert truth.volume.pixel_size_angstrom == 3.0
    assert "that of --angpix is taken" in next(note.text for note in truth.notes if note.level == "warning")


@pytest.mark.gpu
def test_gpu_and_cpu_agree(tmp_path: Path) -> None:
    for device in ("cpu", "cuda:0"):
        work(packaged_file(SAMPLE), tmp_path / device[:4], **HARD, box_size_px=32, device=device)
    (_, on_cpu), (_, on_gpu) = read_all(tmp_path / "cpu"), read_all(tmp_path / "cuda")
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "cpu" / "truth.star").read_bytes() == (tmp_path / "cuda" / "truth.star").read_bytes()


@pytest.mark.realdata
def test_relions_own_images_are_reproduced(reference_data: Path) -> None:
    """RELION's projections of its map (trilinear slices) agree with these exact ones inside 0.8 Nyquist."""
    folder = reference_data / "relion_1wcm"
    truth = read_map(folder / "truth_1WCM_64p_3.75A.mrc")
    stack = read_particles(folder / "clean105.star", with_poses=True)
    table = stack.table
    assert table.poses is not None
    ours = torch.cat(list(NoiseFreeStack.from_map(truth, table.poses, table.ctf).batches()))
    theirs = stack.images.read(torch.arange(len(table)))
    plane = HalfPlane.up_to(64, 0.8 * 32)
    first, second = plane.gather(fft_image(ours)), plane.gather(fft_image(theirs))
    products = (first * second.conj()).sum(-1).real
    assert (products / (first.norm(dim=-1) * second.norm(dim=-1))).min() > 0.999
    scale = products / first.norm(dim=-1).square()
    assert scale.sub(1).abs().max() < 0.02
    assert scale.mean().sub(1).abs() < 0.005


@pytest.mark.realdata
def test_atomic_images_agree_with_those_of_another_program(reference_data: Path, tmp_path: Path) -> None:
    """bench_6msm: exact atomic projections at SNR 1, so the best correlation with a clean image is sqrt(1/2)."""
    folder = reference_data / "bench_6msm"
    work(
        reference_data / "models" / "6msm.pdb",
        tmp_path / "out",
        box_size_px=32,
        pixel_size_angstrom=6.0,
        count=2,
        snr=1.0,
    )
    truth = read_map(tmp_path / "out" / "truth_volume.mrc")
    stack = read_particles(folder / "s1" / "truth.star", with_poses=True)
    table, rows = stack.table, torch.arange(300)
    assert table.poses is not None
    assert table.ctf is not None
    ours = torch.cat(list(NoiseFreeStack.from_map(truth, table.poses[rows], table.ctf[rows]).batches()))
    pixels = torch.stack([ours.flatten(), stack.images.read(rows).flatten()])
    assert 0.68 < torch.corrcoef(pixels)[0, 1] < math.sqrt(0.5)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_a_symmetry_that_the_model_lacks_is_warned_of(map_path: Path, tmp_path: Path, is_symmetric: bool) -> None:
    if is_symmetric:
        work(map_path, tmp_path / "first", symmetry="C4", count=2)
        map_path = tmp_path / "first" / "truth_volume.mrc"
    events = work(map_path, tmp_path / "out", symmetry="C4", count=2)
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert any("no C4 symmetry about z" in text for text in warnings) != is_symmetric
