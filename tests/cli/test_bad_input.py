"""Bad input through the command line: one clear message, the agreed exit code, and nothing half-written."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.io import atomic
from cryoeq.io.text import read_json

COUNT, BOX, ANGPIX = 24, 16, 6.0
COLUMNS = {
    "rlnImageName": "{row:06d}@particles.mrcs",
    "rlnOpticsGroup": "1",
    "rlnDefocusU": "15000.0",
    "rlnDefocusV": "14800.0",
    "rlnDefocusAngle": "30.0",
    "rlnAngleRot": "{angle}",
    "rlnAngleTilt": "{tilt}",
    "rlnAnglePsi": "{angle}",
    "rlnOriginXAngst": "0.0",
    "rlnOriginYAngst": "0.0",
    "rlnRandomSubset": "{subset}",
}
OPTICS = {
    "rlnOpticsGroup": "1",
    "rlnOpticsGroupName": "one",
    "rlnVoltage": "300.0",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.1",
    "rlnImagePixelSize": str(ANGPIX),
    "rlnImageSize": str(BOX),
    "rlnImageDimensionality": "2",
}


def block(name: str, rows: list[dict[str, str]]) -> str:
    lines = [f"data_{name}", "", "loop_", *(f"_{label} #{number}" for number, label in enumerate(rows[0], 1))]
    return "\n".join([*lines, *(" ".join(row.values()) for row in rows), "", ""])


def particle_rows() -> list[dict[str, str]]:
    values = [
        {"row": row, "angle": 37.0 * row % 360, "tilt": 53.0 * row % 180, "subset": 1 + row % 2} for row in range(1, 25)
    ]
    return [{label: text.format(**value) for label, text in COLUMNS.items()} for value in values]


def write_star(folder: Path, rows: list[dict[str, str]], optics: dict[str, str] = OPTICS) -> Path:
    path = folder / "particles.star"
    path.write_text(block("optics", [optics]) + block("particles", rows))
    return path


def write_stack(path: Path, count: int = COUNT, box: int = BOX) -> None:
    images = np.random.default_rng(0).normal(size=(count, box, box)).astype(np.float32)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = ANGPIX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small stack that is in order, with poses."""
    write_stack(tmp_path / "particles.mrcs")
    write_star(tmp_path, particle_rows())
    return tmp_path


@pytest.fixture
def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Reconstruct, see it fail with this code, give the message."""

    def reconstruct(code: int, *options: str) -> str:
        output = ["-o", str(folder / "out")] if "-o" not in options else []
        arguments = [
            "reconstruct",
            str(folder / "particles.star"),
            *output,
            "--pose-inference",
            "known",
            "--device",
            "cpu",
        ]
        assert run([*arguments, *options]) == code
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("cryoeq: ")
        assert not (folder / "out" / "run_class001.mrc").exists()
        return message

    return reconstruct


def test_what_is_in_order_works(folder: Path) -> None:
    assert (
        run(["reconstruct", str(folder / "particles.star"), "-o", str(folder / "out"), "--pose-inference", "known"])
        == 0
    )
    assert (folder / "out" / "run_class001.mrc").is_file()


NO_SUCH_SETTING = [
    (
        ["--set", "encoder.gruop=so2"],
        [
            "--set: encoder.gruop is not a setting",
            "Did you mean encoder.group?",
            "`cryoeq settings encoder` lists them",
        ],
    ),
    (["--set", "training.decoder.rate=1"], ["training.decoder"]),
    (["--set", "speed=fast"], ["--set: speed is not a setting", "pose_inference"]),
    (["--set", "seed"], ["--set key=value"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml cannot be read"]),
]
NO_SUCH_VALUE = [
    (["--set", "encoder.group=d3"], ["--set: encoder.group is 'd3'", "'d4'"]),
    (["--set", "encoder.heads=0"], ["--set: encoder.heads is 0", "greater than or equal to 1"]),
    (["--set", "input.contrast=dark"], ["--set: input.contrast is 'dark'", "'keep' or 'invert'"]),
    (["--box", "14"], ["-D/--box is 14", "16"]),
    (["--box", "33"], ["-D/--box is 33", "multiple of 2"]),
    (["--angpix", "0"], ["--angpix is 0", "greater than or equal to 0.01"]),
    (["--threads", "0"], ["-j/--threads is 0", "greater than or equal to 1"]),
    (["--shift-sigma", "-1"], ["--shift-sigma is -1", "greater than or equal to 0"]),
    (["--sym", "X3"], ["--sym is 'X3'", "Expected C1, C2,"]),
    (["--set", "training.encoder_learning_rate=fast"], ["training.encoder_learning_rate is 'fast'", "number"]),
    (["--set", "encoder.channels=[8,0]"], ["encoder.channels.1 is 0", "greater than 0"]),
    (["--device", "gpu"], ["--device gpu", "cuda:N"]),
    (["--seed", str(2**63)], ["--seed is 9223372036854775808", "less than"]),
]


@pytest.mark.parametrize(("options", "words"), NO_SUCH_SETTING + NO_SUCH_VALUE, ids=" ".join)
def test_a_setting_that_cannot_be(
    folder: Path, fails: Callable[..., str], options: list[str], words: list[str]
) -> None:
    message = fails(2, *options)
    for word in words:
        assert word in message
    assert not (folder / "out").exists()


def test_an_unknown_key_of_a_file(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "mine.yaml").write_text("encoder:\n  heads: 4\n  gruop: so2\n")
    message = fails(2, "--config", str(folder / "mine.yaml"))
    assert "mine.yaml: encoder.gruop is not a setting" in message
    assert "Did you mean encoder.group?" in message


AMORTIZED = ("--pose-inference", "amortized", "--set", "training.epochs=1", "--set", "encoder.heads=2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "18"], ["working box of 18 px", "16"]),
        (["--set", "encoder.channels=[8,8,8,8,8,8,8]"], ["encoder.channels", "16 px"]),
    ],
)
def test_a_setting_that_does_not_fit_the_images(
    folder: Path, fails: Callable[..., str], options: list[str], words: list[str]
) -> None:
    message = fails(2, *AMORTIZED, *options)
    for word in words:
        assert word in message
    assert not (folder / "out").exists()


def test_what_failed_may_be_repeated_at_the_same_place(folder: Path, fails: Callable[..., str]) -> None:
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as file:
        file.data[6, 3, 3] = np.nan
    fails(3)
    write_stack(folder / "particles.mrcs")
    test_what_is_in_order_works(folder)


@pytest.mark.parametrize("name", ["nowhere.star", "nowhere.mrcs", "subfolder.star", "note.star", "empty.star"])
def test_particles_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "subfolder.star").mkdir()
    (folder / "note.star").write_text("Dear reader,\nthis is no star file.\n")
    (folder / "empty.star").write_text(block("optics", [OPTICS]) + "data_particles\n\nloop_\n_rlnImageName #1\n")
    assert run(["reconstruct", str(folder / name), "-o", str(folder / "out"), "--device", "cpu"]) == 3
    assert name in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("column", ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"])
def test_known_poses_that_are_not_there(folder: Path, fails: Callable[..., str], column: str) -> None:
    write_star(folder, [{label: text for label, text in row.items() if label != column} for row in particle_rows()])
    message = fails(3)
    assert f"column {column} is missing" in message
    assert "let cryoeq infer them" in message


@pytest.mark.parametrize("column", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"])
def test_a_missing_column_of_the_optics(folder: Path, fails: Callable[..., str], column: str) -> None:
    write_star(folder, particle_rows(), {label: text for label, text in OPTICS.items() if label != column})
    assert f"optics column {column} is missing" in fails(3)


@pytest.mark.parametrize("rate", ["decoder_learning_rate", "encoder_learning_rate"])
def test_a_training_that_blows_up(folder: Path, fails: Callable[..., str], rate: str) -> None:
    message = fails(4, *AMORTIZED, "--set", "training.batch_size=8", "--set", f"training.{rate}=1e30")
    assert "training step" in message
    assert "training.encoder_learning_rate and training.decoder_learning_rate" in message
    assert read_json(folder / "out" / "job.json")["status"] == "failed"


def test_a_missing_column(folder: Path, fails: Callable[..., str]) -> None:
    rows = [{label: text for label, text in row.items() if label != "rlnDefocusU"} for row in particle_rows()]
    write_star(folder, rows)
    message = fails(3)
    assert "rlnDefocusU" in message
    assert "particles.star" in message
    assert "--no-ctf" in message


def test_a_value_that_is_no_number(folder: Path, fails: Callable[..., str]) -> None:
    rows = particle_rows()
    rows[11]["rlnDefocusV"] = "deep"
    write_star(folder, rows)
    message = fails(3)
    assert "rlnDefocusV" in message
    assert "row 12" in message
    assert "deep" in message


def test_a_truncated_stack(folder: Path, fails: Callable[..., str]) -> None:
    stack = folder / "particles.mrcs"
    stack.write_bytes(stack.read_bytes()[:-5000])
    assert "particles.mrcs" in fails(3)


def test_a_stack_that_is_no_mrc_file(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "particles.mrcs").write_bytes(b"GIF89a" + bytes(4000))
    assert "particles.mrcs" in fails(3)


def test_a_missing_stack(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "particles.mrcs").unlink()
    message = fails(3)
    assert "particles.mrcs" in message
    assert "--datadir" in message


def test_an_image_index_beyond_the_stack(folder: Path, fails: Callable[..., str]) -> None:
    write_stack(folder / "particles.mrcs", COUNT - 1)
    message = fails(3)
    assert "24" in message
    assert "23" in message


def test_image_sizes_that_differ(folder: Path, fails: Callable[..., str]) -> None:
    write_stack(folder / "others.mrcs", box=2 * BOX)
    rows = particle_rows()
    rows[3]["rlnImageName"] = "000001@others.mrcs"
    write_star(folder, rows)
    message = fails(3)
    assert "16" in message
    assert "32" in message


@pytest.mark.parametrize("box", [17, 4])
def test_a_box_that_is_odd_or_tiny(folder: Path, fails: Callable[..., str], box: int) -> None:
    write_stack(folder / "particles.mrcs", box=box)
    write_star(folder, particle_rows(), OPTICS | {"rlnImageSize": str(box)})
    assert f"{box} px" in fails(3)


def test_a_header_without_its_stamp_is_read_with_one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = folder / "particles.mrcs"
    content = bytearray(stack.read_bytes())
    content[208:212] = bytes(4)
    stack.write_bytes(content)
    test_what_is_in_order_works(folder)
    shown = capsys.readouterr().err
    assert len([line for line in shown.splitlines() if line.startswith("Warning") and "MAP" in line]) == 1


def test_nan_pixels(folder: Path, fails: Callable[..., str]) -> None:
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as file:
        file.data[6, 3, 3:5] = np.nan
    message = fails(3)
    assert "2 " in message
    assert "image 7" in message or "000007@" in message


def test_images_without_anything_in_them(folder: Path, fails: Callable[..., str]) -> None:
    with mrcfile.open(folder / "particles.mrcs", "r+") as file:
        file.data[:] = 3.0
    message = fails(3, *AMORTIZED)
    assert "particles.star: all 24 images that were looked at are constant" in message
    assert "row 1 (image 1 of particles.mrcs)" in message


@pytest.mark.parametrize("pixel_size", [None, "0.0"])
def test_a_pixel_size_that_is_missing_or_zero(folder: Path, fails: Callable[..., str], pixel_size: str | None) -> None:
    optics = {label: text for label, text in OPTICS.items() if label != "rlnImagePixelSize"}
    write_star(folder, particle_rows(), optics if pixel_size is None else OPTICS | {"rlnImagePixelSize": pixel_size})
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as file:
        file.voxel_size = 0.0
    message = fails(3)
    assert "pixel size" in message.lower()
    assert "--angpix" in message


def test_a_folder_that_holds_another_run(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "job.json").write_text("{}")
    message = fails(2)
    assert "holds another run" in message
    assert [path.name for path in (folder / "out").iterdir()] == ["job.json"]


def test_a_folder_that_cannot_be_made(folder: Path, fails: Callable[..., str]) -> None:
    assert "particles.star" in fails(2, "-o", str(folder / "particles.star" / "out"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = fails(2, "--device", "cuda")
    assert "--device cuda" in message
    assert "cryoeq doctor" in message


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path | None]]:
    """A small file system of memory, given its options; None where we may not mount one."""
    place = tmp_path / "disk"

    def mount_memory(options: str) -> Path | None:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") and not subprocess.run(command, capture_output=True, check=False).returncode:
            return place
        return None

    yield mount_memory
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def disk(mount: Callable[[str], Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """A disk of so many KiB, or a folder in which the kernel seems to say the same of the results."""

    def make(size_kib: int) -> Path:
        place = mount(f"size={size_kib}k")
        if place is not None:
            return place
        force_to_disk = atomic._force_to_disk

        def refuse(path: Path) -> None:
            if path.suffix in {".mrc", ".mrcs", ".pt"}:
                raise OSError(errno.ENOSPC, "No space left on device")
            force_to_disk(path)

        monkeypatch.setattr(atomic, "_force_to_disk", refuse)
        return tmp_path / "disk"

    return make


def assert_nothing_is_half_written(folder: Path) -> None:
    for path in folder.iterdir():
        assert ".tmp" not in path.name
        assert path.suffix not in {".mrc", ".mrcs"} or mrcfile.validate(path)


@pytest.mark.parametrize(
    ("options", "size_kib"),
    [(["--pose-inference", "known"], 28), (AMORTIZED, 60)],
    ids=["at the maps", "at the checkpoint"],
)
def test_a_disk_that_fills_up(
    disk: Callable[[int], Path], fails: Callable[..., str], options: list[str], size_kib: int
) -> None:
    place = disk(size_kib)
    message = fails(2, *options, "-o", str(place / "out"))
    assert "the disk is full" in message
    assert "checkpoint.pt" in message or "run_class001.mrc" in message
    assert "-o" in message
    assert_nothing_is_half_written(place / "out")


def test_a_disk_that_fills_up_with_particles(
    disk: Callable[[int], Path], tiny_particles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk(40)
    model = tiny_particles.parent / "phantom.mrc"
    assert run(["simulate", str(model), "-o", str(place / "out"), "-n", "200", "--device", "cpu"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "particles.mrcs could not be written: the disk is full" in message
    assert_nothing_is_half_written(place / "out")
    assert not list((place / "out").glob("*.star"))


def test_a_disk_that_is_read_only(
    mount: Callable[[str], Path | None], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if mount("ro") is None:
        mkdir = Path.mkdir

        def refuse(path: Path, *arguments: object, **options: object) -> None:
            if path.is_relative_to(tmp_path / "disk"):
                raise OSError(errno.EROFS, "Read-only file system")
            mkdir(path, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", refuse)
    message = fails(2, "-o", str(tmp_path / "disk" / "out"))
    assert "cannot be made a folder (Read-only file system)" in message
    assert "Choose another -o" in message


def test_a_model_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pdb").write_text("nothing of the kind\n")
    assert run(["simulate", str(tmp_path / "model.pdb"), "-o", str(tmp_path / "out")]) == 3
    assert "model.pdb" in capsys.readouterr().err


def test_maps_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, box in (("a.mrc", 16), ("b.mrc", 18)):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(np.random.default_rng(0).normal(size=(box, box, box)).astype(np.float32))
            file.voxel_size = ANGPIX
    assert run(["fsc", str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")]) == 3
    message = capsys.readouterr().err
    assert "a.mrc" in message or "16" in message


def test_poses_of_other_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder / "other"
    other.mkdir()
    rows = particle_rows()
    rows[4]["rlnImageName"] = "000099@elsewhere.mrcs"
    write_star(other, rows)
    assert run(["evaluate", str(other / "particles.star"), str(folder / "particles.star")]) == 3
    assert "000099@elsewhere.mrcs" in capsys.readouterr().err
