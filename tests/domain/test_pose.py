"""Poses in Angstrom and in pixels, and the one conversion between them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cryoeq
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.shift import shift_phases

PACKAGE = Path(cryoeq.__file__).parent


def poses(generator: torch.Generator, count: int = 5) -> Poses:
    return Poses(random_rotations(count, generator), 10 * torch.randn(count, 2, generator=generator))


@pytest.mark.parametrize(("pixel_angstrom", "box"), [(1.0, 16), (2.5, 64), (0.731, 360)])
def test_pixels_are_angstrom_over_the_pixel_size(generator: torch.Generator, pixel_angstrom: float, box: int) -> None:
    given = poses(generator)
    found = PoseSet.from_angstrom(given, pixel_angstrom, box)
    assert found.box_size_px == box
    torch.testing.assert_close(found.shifts_px, given.shifts_angstrom / pixel_angstrom)
    back = found.to_angstrom(pixel_angstrom)
    assert back.rotations is given.rotations
    torch.testing.assert_close(back.shifts_angstrom, given.shifts_angstrom)


def test_a_shift_is_the_same_length_in_every_box(generator: torch.Generator) -> None:
    """Of one side in Angstrom: a smaller box has larger pixels."""
    given, side_angstrom = poses(generator), 320.0
    large = PoseSet.from_angstrom(given, side_angstrom / 128, 128)
    small = large.in_box(32)
    assert small.box_size_px == 32
    torch.testing.assert_close(small.to_angstrom(side_angstrom / 32).shifts_angstrom, given.shifts_angstrom)
    torch.testing.assert_close(small.in_box(128).shifts_px, large.shifts_px)
    assert large.in_box(128) is large
    coords = HalfPlane.up_to(32, 10).coords
    phases = [shift_phases(found.shifts_px, coords, found.box_size_px) for found in (large, small)]
    torch.testing.assert_close(phases[0], phases[1], atol=1e-5, rtol=0)


def test_identity_poses_move_nothing() -> None:
    found = PoseSet.identity(3, 16)
    assert (len(found), found.box_size_px) == (3, 16)
    assert torch.equal(found.rotations, torch.eye(3).expand(3, 3, 3))
    assert not found.shifts_px.any()


def test_several_poses_of_each_particle_are_a_pose_set_too(generator: torch.Generator) -> None:
    rotations = random_rotations(12, generator).view(4, 3, 3, 3)
    found = PoseSet(rotations, torch.randn(4, 3, 2, generator=generator), 16)
    assert len(found) == 4
    second = found.each(lambda values: values[:, 1])
    assert torch.equal(second.rotations, rotations[:, 1])
    assert second.shifts_px.shape == (4, 2)


def shift_conversions(code: str) -> Iterator[str]:
    """Products and quotients of particles' shifts with a pixel size; a map has one shift, no shifts."""

    def names(node: ast.AST) -> set[str]:
        nodes = list(ast.walk(node))
        attributes = {inner.attr for inner in nodes if isinstance(inner, ast.Attribute)}
        return attributes | {inner.id for inner in nodes if isinstance(inner, ast.Name)}

    def is_shifts(node: ast.AST) -> bool:
        return any(name in {"shifts", "shifts_px", "shifts_angstrom"} for name in names(node))

    def is_pixel(node: ast.AST) -> bool:
        return any({"pixel", "angpix"} & set(name.split("_")) for name in names(node))

    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            sides = (node.left, node.right), (node.right, node.left)
            if any(is_shifts(one) and is_pixel(other) for one, other in sides):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("poses.shifts_angstrom / pixel", 1), ("pixel_size_angstrom * found.shifts_px[rows]", 1),
        ("own.shifts_angstrom.to(dtype) / self.dataset.pixel_size_angstrom", 1), ("shifts_px * step_px", 0),
        ("fit.shift_angstrom / volume.pixel_size_angstrom", 0), ("box_size_px * pixel_size_angstrom", 0),
    ],
)  # fmt: skip
def test_conversions_are_recognised(code: str, count: int) -> None:
    assert len(list(shift_conversions(code))) == count


def test_pose_sets_alone_convert_shifts() -> None:
    """But for readers and writers of formats that count offsets in pixels: RELION 3.0, cryoSPARC."""
    conversions = {
        path.relative_to(PACKAGE).as_posix(): found
        for path in PACKAGE.rglob("*.py")
        if (found := list(shift_conversions(path.read_text(encoding="utf-8"))))
    }
    assert len(conversions.pop("domain/pose.py")) == 2
    assert set(conversions) == {"io/particles.py", "io/cryosparc.py"}, conversions
