"""``cryoeq orientations``: any star file with poses, and clear refusals of others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.orientations import OrientationsConfig
from cryoeq.domain.events import Note, Report
from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.io.text import read_json
from cryoeq.pipelines.orientations import orientations

PNG = b"\x89PNG\r\n\x1a\n"
COUNT = 400


def angles(generator: torch.Generator) -> np.ndarray:
    """Rot, tilt and psi of top views: tilts up to 25 degrees."""
    rot, psi = ((torch.rand(COUNT, generator=generator) * 360 - 180).numpy() for _ in range(2))
    return np.stack([rot, torch.rand(COUNT, generator=generator).numpy() * 25, psi], 1)


def write_relion31(path: Path, euler: np.ndarray) -> Path:
    rows = "\n".join(f"{i + 1:06d}@a.mrcs 1 {r:.4f} {t:.4f} {p:.4f}" for i, (r, t, p) in enumerate(euler))
    path.write_text(
        "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n"
        "1 2.0 64\n\n\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n_rlnAngleRot #3\n"
        f"_rlnAngleTilt #4\n_rlnAnglePsi #5\n{rows}\n\n"
    )
    return path


def write_relion30(path: Path, euler: np.ndarray) -> Path:
    """No optics block, and no pixel size at all: orientations need none."""
    rows = "\n".join(f"{i + 1:06d}@a.mrcs {r:.4f} {t:.4f} {p:.4f}" for i, (r, t, p) in enumerate(euler))
    path.write_text(
        f"\ndata_\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n_rlnAngleTilt #3\n_rlnAnglePsi #4\n{rows}\n\n"
    )
    return path


def test_all_files_are_written_and_agree(tmp_path: Path, generator: torch.Generator) -> None:
    star, out = write_relion31(tmp_path / "p.star", angles(generator)), tmp_path / "out"
    events = list(orientations(OrientationsConfig(particles=star, output=out)))
    (report,) = (event for event in events if isinstance(event, Report))
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert any("SCF*" in text and "below 0.81" in text for text in warnings)
    figures = read_json(out / "orientations.json")
    assert figures["n_particles"] == COUNT
    assert report.rows["Efficiency E_od"] == f"{figures['efficiency']:.3f}"
    assert report.rows["SCF*"].startswith(f"{figures['scf_star']:.3f}")
    assert figures["is_uneven"]
    assert figures["in_plane"]["p_value"] > 1e-3
    assert sum(figures["view_counts_healpix_ring"]) == COUNT
    for name in ("orientations", "fourier_sampling", "in_plane_angles"):
        assert (out / f"{name}.png").read_bytes().startswith(PNG)


def test_the_bild_file_shows_the_views(tmp_path: Path) -> None:
    """Three particles seen from one side, one from the other: two cylinders on a sphere of half the box's radius."""
    euler = np.array([[30.0, 80.0, 0.0]] * 3 + [[-120.0, 150.0, 40.0]])
    star, out = write_relion31(tmp_path / "p.star", euler), tmp_path / "out"
    list(orientations(OrientationsConfig(particles=star, output=out)))
    lines = (out / "orientations.bild").read_text().splitlines()
    colours = [np.array(line.split()[1:], float) for line in lines if line.startswith(".color")]
    cylinders = [np.array(line.split()[1:], float) for line in lines if line.startswith(".cylinder")]
    assert len(colours) == len(cylinders) == 2
    by_length = sorted(
        zip(cylinders, colours, strict=True), key=lambda pair: -np.ptp(pair[0][:6].reshape(2, 3), 0).max()
    )
    half_box = 64.0
    for (cylinder, colour), (rot, tilt, _), part in zip(by_length, euler[[0, 3]], (1.0, 1 / 3), strict=True):
        foot, tip = cylinder[:6].reshape(2, 3) - half_box
        assert np.linalg.norm(foot) == pytest.approx(half_box, abs=1e-3)
        assert np.linalg.norm(tip) == pytest.approx(half_box * (1 + 0.3 * part), abs=1e-3)
        azimuth, polar = math.radians(rot), math.radians(tilt)
        level = math.sin(polar)
        view = torch.tensor([level * math.cos(azimuth), level * math.sin(azimuth), math.cos(polar)])
        assert int(pixel_of_directions(torch.from_numpy(foot), 3)) == int(pixel_of_directions(view, 3))
        assert colour[0] + colour[2] == pytest.approx(1.0)
    assert by_length[0][1][0] >= by_length[1][1][0]  # redder


def test_old_star_files_give_the_same_figures(tmp_path: Path, generator: torch.Generator) -> None:
    euler = angles(generator)
    figures = []
    for write in (write_relion31, write_relion30):
        star, target = write(tmp_path / "p.star", euler), tmp_path / "figures.json"
        assert run(["orientations", str(star), "--json", str(target), "--sym", "D2"]) == 0
        figures.append(read_json(target))
    assert figures[0] == figures[1]
    assert figures[0]["symmetry"] == "D2"
    list(orientations(OrientationsConfig(particles=write_relion30(tmp_path / "p.star", euler), output=tmp_path / "o")))
    assert (tmp_path / "o" / "orientations.bild").is_file()


def test_uneven_in_plane_angles_are_reported(tmp_path: Path, generator: torch.Generator) -> None:
    euler = angles(generator)
    euler[:, 2] /= 3
    star = write_relion31(tmp_path / "p.star", euler)
    events = list(orientations(OrientationsConfig(particles=star)))
    assert any(isinstance(event, Note) and "in-plane angles are not uniform" in event.text for event in events)


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], generator: torch.Generator) -> None:
    star = write_relion31(tmp_path / "p.star", angles(generator))
    text = star.read_text()
    (tmp_path / "blind.star").write_text(text.replace("rlnAngleTilt", "rlnSomethingElse"))
    (tmp_path / "holed.star").write_text(text.replace(text.splitlines()[-2].split()[-1], "nan"))
    (tmp_path / "text.star").write_text("no star")

    def message(name: str, *options: str, code: int = 3) -> str:
        assert run(["orientations", str(tmp_path / name), *options]) == code
        return capsys.readouterr().err

    assert "rlnAngleTilt is missing" in message("blind.star")
    assert "rlnAnglePsi" in message("holed.star")
    assert "text.star" in message("text.star")
    assert "nowhere.star" in message("nowhere.star")
    assert "--sym is 'Q5'" in message("p.star", "--sym", "Q5", code=2)


@pytest.mark.realdata
def test_random_poses_are_even(reference_data: Path, tmp_path: Path) -> None:
    target = tmp_path / "f.json"
    assert run(["orientations", str(reference_data / "relion_1wcm" / "particles.star"), "--json", str(target)]) == 0
    figures = read_json(target)
    assert figures["scf_star"] > 0.97
    assert figures["efficiency"] > 0.95
    assert figures["in_plane"]["p_value"] > 0.05
