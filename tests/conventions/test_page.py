"""The conventions page: laws that no file of a peer is needed for, and whether the tests that it names exist."""

import re
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

import cryoeq.domain
from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane, fft_image, fft_map
from cryoeq.geometry.so3 import random_rotations
from cryoeq.maps.alignment import mirror_map
from cryoeq.physics.ctf import evaluate_ctf, image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import extract_slices, prepare_slices

N = 17  # odd: the centre of a quarter turn is then the origin
# Array operation on (y, x) about the centre, and what it does to the vector (x, y).
ELEMENTS = [
    (lambda image: image, [[1, 0], [0, 1]]),
    (lambda image: image.rot90(1, (-2, -1)), [[0, 1], [-1, 0]]),
    (lambda image: image.rot90(2, (-2, -1)), [[-1, 0], [0, -1]]),
    (lambda image: image.rot90(3, (-2, -1)), [[0, -1], [1, 0]]),
    (lambda image: image.flip(-1), [[-1, 0], [0, 1]]),
    (lambda image: image.flip(-2), [[1, 0], [0, -1]]),
    (lambda image: image.transpose(-2, -1), [[0, 1], [1, 0]]),
    (lambda image: image.rot90(2, (-2, -1)).transpose(-2, -1), [[0, -1], [-1, 0]]),
]


@pytest.fixture
def volume() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    axis = torch.arange(N) - N // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.randn((N,) * 3, generator=generator) * (x**2 + y**2 + z**2 <= 36)


def rho(g: Tensor) -> Tensor:
    lifted = torch.zeros(3, 3)
    lifted[:2, :2], lifted[2, 2] = g, torch.linalg.det(g)
    return lifted


@pytest.mark.parametrize(("act", "matrix"), ELEMENTS)
def test_group_action(act, matrix: list[list[int]], volume: Tensor, generator: torch.Generator) -> None:
    g = torch.tensor(matrix, dtype=torch.float32)
    plane = HalfPlane.up_to(N, N / 2 - 1)
    pose, shift = random_rotations(1, generator), torch.tensor([[1.5, -0.7]])
    padded = prepare_slices(volume)
    image = plane.images(form_images(padded, pose, shift, None, plane))
    turned = plane.images(form_images(padded, rho(g) @ pose, shift @ g.T, None, plane))
    torch.testing.assert_close(act(image), turned, atol=1e-4 * float(image.abs().max()), rtol=0)


def test_axes_and_centre() -> None:
    for n in (16, 17):
        image = torch.zeros(n, n)
        image[n // 2, n // 2] = 1.0
        torch.testing.assert_close(fft_image(image), torch.full((n, n), 1 / n, dtype=torch.complex64))
        image = torch.zeros(n, n)
        image[n // 2, n // 2 + 1] = 1.0  # one pixel along x: the phase runs along the last axis
        phase = torch.exp(-2j * torch.pi * (torch.arange(n) - n // 2) / n) / n
        torch.testing.assert_close(fft_image(image), phase.expand(n, n).to(torch.complex64), atol=1e-6, rtol=1e-5)
    point = torch.zeros(16, 16)
    point[8, 8] = 1.0
    assert point.rot90(1, (0, 1))[7, 8] == 1.0, "a quarter turn of an even array moves its origin"


def test_a_slice_is_the_transform_of_the_sum_along_z(volume: Tensor) -> None:
    plane = HalfPlane.up_to(N, N / 2 - 1)
    torch.testing.assert_close(fft_map(volume)[N // 2], fft_image(volume.sum(0)), atol=1e-4, rtol=1e-4)
    # The view along image z of pose A is along the third row of A in the map.
    pose = torch.tensor(Rotation.from_euler("ZYZ", [[0, 90, 0]], degrees=True).as_matrix().transpose(0, 2, 1))
    along_x = extract_slices(prepare_slices(volume), pose.float(), plane)
    torch.testing.assert_close(pose[0, 2].abs().float(), torch.tensor([1.0, 0.0, 0.0]))
    exact = plane.gather(fft_image(volume.sum(2).T.flip(1)))  # image x is -z, image y is y
    similarity = (along_x[0].conj() * exact).sum().real / (along_x.norm() * exact.norm())
    assert similarity > 0.999


def test_shift_moves_the_particle_to_minus_o(volume: Tensor) -> None:
    plane = HalfPlane.up_to(N, N / 2 - 1)
    pose = torch.eye(3)[None]
    padded = prepare_slices(volume)
    still = plane.images(form_images(padded, pose, torch.zeros(1, 2), None, plane))
    moved = plane.images(form_images(padded, pose, torch.tensor([[3.0, 1.0]]), None, plane))
    torch.testing.assert_close(moved, still.roll((-1, -3), (-2, -1)), atol=1e-4, rtol=1e-4)


def ctf(is_premultiplied: float = 0.0, is_phase_flipped: float = 0.0) -> CtfParameters:
    values = [15000.0, 14000.0, 0.3, 0.0, 0.0, 1.0, 300.0, 2.7, 0.1, is_premultiplied, is_phase_flipped]
    return CtfParameters(*(torch.tensor([value]) for value in values))


def test_ctf_is_positive_at_the_origin_and_squared_where_premultiplied() -> None:
    frequencies = torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.05, 0.02]])
    values = evaluate_ctf(ctf(), frequencies)
    torch.testing.assert_close(values[0, 0], torch.tensor(0.1))
    assert values[0, 1] > values[0, 0], "positive up to the first zero under focus"
    torch.testing.assert_close(image_transfer(ctf(is_premultiplied=1.0), frequencies), values.square())


def test_ctf_of_phase_flipped_images_is_its_absolute_value() -> None:
    frequencies = torch.stack([torch.linspace(0, 0.2, 50), torch.zeros(50)], 1)
    values = evaluate_ctf(ctf(), frequencies)
    assert values.min() < -0.5
    assert torch.equal(image_transfer(ctf(is_phase_flipped=1.0), frequencies), values.abs())


def test_the_other_hand_gives_the_same_images(volume: Tensor, generator: torch.Generator) -> None:
    plane, mirror = HalfPlane.up_to(N, N / 2 - 1), torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    poses = random_rotations(5, generator)
    first = extract_slices(prepare_slices(volume), poses, plane)
    second = extract_slices(prepare_slices(mirror_map(volume)), mirror @ poses @ mirror, plane)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


def test_every_paragraph_of_the_page_names_tests_that_exist() -> None:
    page = cryoeq.domain.__doc__ or ""
    paragraphs = re.findall(r"^([A-Z]\w+(?: \w+)?)\. (.*?)(?=^[A-Z]\w+(?: \w+)?\. |\Z)", page, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in paragraphs} >= {"Axes", "Centre", "Rotation", "Shift", "CTF", "Hand", "Shells", "SNR"}
    tests = Path(__file__).parents[1]
    for name, text in paragraphs:
        references = re.findall(r"(\w+/test_\w+)\.(test_\w+)", text)
        assert references, f"{name} names no test"
        for module, function in references:
            assert f"def {function}(" in (tests / f"{module}.py").read_text(), f"{name}: {module}.{function} is missing"
