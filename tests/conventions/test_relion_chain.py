"""The whole forward chain against RELION 3.1.3, with its numbers frozen here, and image by image on its own files."""

import math
from pathlib import Path

import pytest
import torch

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.euler import rotations_from_euler_deg
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import read_particles
from cryoeq.physics.ctf import evaluate_ctf, image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices

BOX, ANGPIX = 24, 4.0
# x, y, z of the centre, sigma (all in pixels), amplitude.
BLOBS = (
    (2.0, -1.0, 3.0, 1.6, 1.0),
    (-3.0, 2.0, 0.0, 1.8, 0.8),
    (0.0, 3.0, -3.0, 1.5, 1.2),
    (1.0, -4.0, -2.0, 2.0, 0.6),
)
# rot, tilt, psi (degrees), origin x, y (Angstrom), defocus U, V (Angstrom), angle, phase shift (degrees).
PARTICLES = (
    (30.0, 50.0, -70.0, 3.0, -5.0, 12000.0, 9000.0, 25.0, 0.0),
    (-110.0, 95.0, 15.0, -6.0, 2.0, 20000.0, 21000.0, 80.0, 0.0),
    (160.0, 140.0, 120.0, 1.5, 4.0, 8000.0, 8000.0, 0.0, 90.0),
)
COORDS = ((0, 0), (2, 1), (-3, 2), (0, 4), (5, 0), (-4, 5), (6, 3))
# Coefficients of `relion_project --pad 2 [--ctf]` for the map of BLOBS: rows are PARTICLES, columns COORDS.
WITHOUT_CTF = (
    (11.99606, 2.58592 - 0.35519j, -0.54147 + 2.46127j, 1.29062 + 0.32721j, -0.03811 - 0.07361j, -0.07878 + 0.03705j, 0.12598 - 0.07938j),  # noqa: E501
    (11.99606, 1.84586 - 2.21668j, -1.31954 - 0.97526j, -1.37920 - 0.64129j, 0.60488 + 0.43523j, 0.00368 + 0.16038j, 0.06789 + 0.06570j),  # noqa: E501
    (11.99606, 3.53885 + 2.36076j, 0.14415 - 1.04821j, 1.12989 + 0.25576j, 0.39370 - 0.51247j, -0.09434 + 0.00949j, 0.10312 - 0.02014j),  # noqa: E501
)  # fmt: skip
WITH_CTF = (
    (1.19961, 1.24581 - 0.17112j, -0.44214 + 2.00976j, 1.16345 + 0.29497j, -0.03431 - 0.06627j, -0.03951 + 0.01858j, -0.06843 + 0.04312j),  # noqa: E501
    (1.19961, 1.31490 - 1.57905j, -1.24098 - 0.91720j, -1.07310 - 0.49897j, -0.27638 - 0.19886j, -0.00186 - 0.08123j, 0.00300 + 0.00290j),  # noqa: E501
    (11.93593, 3.30126 + 2.20227j, 0.10069 - 0.73218j, 0.64966 + 0.14706j, 0.05134 - 0.06682j, 0.06250 - 0.00629j, -0.08314 + 0.01623j),  # noqa: E501
)  # fmt: skip
# Where RELION's clean105 and noctf105 are strongest: (kx, ky) and the ratio of the two, that is RELION's CTF, of images
# 1 and 15; 300 kV, Cs 2.7 mm, Q0 0.1, 64 px of 3.75 Angstrom.
RELION_CTF = (
    (14583.47, 14276.59, 15.653, {(-3, 2): 0.2967, (7, 3): 0.8456, (0, 16): -0.7725, (-19, 13): 0.9148}),
    (14307.52, 14397.16, 63.348, {(3, 0): 0.2368, (4, 6): 0.7826, (-13, 15): -0.1124, (23, 4): 0.8115}),
)  # fmt: skip


def ctf_of(u: list[float], v: list[float], angle_deg: list[float], phase_deg: list[float]) -> CtfParameters:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    same = [1.0] * len(u)
    return CtfParameters(
        column(u),
        column(v),
        torch.deg2rad(column(angle_deg)),
        torch.deg2rad(column(phase_deg)),
        column(same) * 0,
        column(same),
        column(same) * 300,
        column(same) * 2.7,
        column(same) * 0.1,
        column(same) * 0,
        column(same) * 0,
    )


def phantom() -> torch.Tensor:
    x = torch.arange(BOX, dtype=torch.float64) - BOX // 2
    volume = torch.zeros(BOX, BOX, BOX, dtype=torch.float64)
    for *centre, sigma, amplitude in BLOBS:
        ax, ay, az = (torch.exp(-((x - c) ** 2) / (2 * sigma**2)) for c in centre)
        volume += amplitude * az[:, None, None] * ay[:, None] * ax
    return volume


@pytest.mark.parametrize(("with_ctf", "expected"), [(False, WITHOUT_CTF), (True, WITH_CTF)])
def test_frozen_projections_of_relion(with_ctf: bool, expected: tuple[tuple[complex, ...], ...]) -> None:
    columns = [list(column) for column in zip(*PARTICLES, strict=True)]
    coords = torch.tensor(COORDS)
    plane = HalfPlane(BOX, coords, torch.zeros(len(coords), dtype=torch.long), torch.ones(len(coords)))
    rotations = rotations_from_euler_deg(torch.tensor(columns[:3], dtype=torch.float64).T)
    shifts_px = torch.tensor(columns[3:5], dtype=torch.float64).T / ANGPIX
    transfer = (
        image_transfer(ctf_of(*columns[5:]), plane.frequencies_per_angstrom(ANGPIX).double()) if with_ctf else None
    )
    ours = form_images(prepare_slices(phantom()), rotations, shifts_px, transfer, plane)
    # RELION's own tables and single precision leave 1e-4 of the value.
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.complex128), atol=1e-4, rtol=2e-4)


@pytest.mark.parametrize(("u", "v", "angle_deg", "values"), RELION_CTF)
def test_frozen_ctf_of_relion(u: float, v: float, angle_deg: float, values: dict[tuple[int, int], float]) -> None:
    frequencies = torch.tensor(list(values), dtype=torch.float64) / (64 * 3.75)
    ours = evaluate_ctf(ctf_of([u], [v], [angle_deg], [0.0]), frequencies)[0]
    torch.testing.assert_close(ours, torch.tensor(list(values.values()), dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "with_ctf"), [("clean105", True), ("noctf105", False)])
def test_projections_of_relion_image_by_image(reference_data: Path, name: str, with_ctf: bool) -> None:
    folder = reference_data / "relion_1wcm"
    stack = read_particles(folder / f"{name}.star", with_poses=True)
    poses, ctf, angpix = stack.table.poses, stack.table.ctf, stack.table.pixel_size_angstrom
    assert poses is not None
    assert ctf is not None
    plane = HalfPlane.up_to(64, 0.8 * 32)
    observed = plane.transform(stack.images.read(torch.arange(105)))
    padded = prepare_slices(read_map(folder / "truth_1WCM_64p_3.75A.mrc").values)
    transfer = image_transfer(ctf, plane.frequencies_per_angstrom(angpix)) if with_ctf else None
    predicted = form_images(padded, poses.rotations.float(), (poses.shifts_angstrom / angpix).float(), transfer, plane)
    common = ((predicted.conj() * observed).real * plane.weights).double().sum(1)
    power = [(values.abs().square() * plane.weights).double().sum(1) for values in (predicted, observed)]
    assert (common / (power[0] * power[1]).sqrt()).min() > 0.99999
    assert ((common / power[0]) - 1).abs().max() < 0.001
    assert math.isclose((common / power[0]).mean().item(), 1.0001, abs_tol=5e-5)
