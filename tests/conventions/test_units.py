"""Units of offsets: pixels of the plane's box in Fourier-space code, Angstrom elsewhere, one conversion."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.shift import shift_phases

PACKAGE = Path(__file__).parents[2] / "cryoeq"
# PoseSet itself, and the formats that count offsets in pixels of their own.
CONVERTERS = {"domain/pose.py", "io/particles.py", "io/cryosparc.py"}


@pytest.fixture
def poses(generator: torch.Generator) -> Poses:
    return Poses(random_rotations(7, generator), 20 * torch.randn(7, 2, generator=generator))


@pytest.mark.parametrize("pixel_size_angstrom", [1.0, 3.54, 0.8125])
def test_offsets_return_from_pixels(poses: Poses, pixel_size_angstrom: float) -> None:
    in_pixels = PoseSet.from_angstrom(poses, pixel_size_angstrom, 48)
    torch.testing.assert_close(in_pixels.shifts_px * pixel_size_angstrom, poses.shifts_angstrom)
    returned = in_pixels.to_angstrom(pixel_size_angstrom)
    torch.testing.assert_close(returned.shifts_angstrom, poses.shifts_angstrom)
    assert torch.equal(returned.rotations, poses.rotations)


def test_another_box_changes_the_pixels_and_not_the_offsets(poses: Poses) -> None:
    """A box of the same side in Angstrom: the same Poses, and the same phases at the same coefficients."""
    stored = PoseSet.from_angstrom(poses, 1.5, 96)
    working = stored.in_box(32)
    torch.testing.assert_close(working.to_angstrom(1.5 * 96 / 32).shifts_angstrom, poses.shifts_angstrom)
    assert torch.equal(working.rotations, stored.rotations)
    assert stored.in_box(96) is stored
    coords = HalfPlane.up_to(32, 10).coords
    phases = [shift_phases(pose_set.shifts_px, coords, pose_set.box_size_px) for pose_set in (stored, working)]
    torch.testing.assert_close(phases[0], phases[1], atol=1e-5, rtol=0)


def names(expression: ast.expr) -> set[str]:
    found = (getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(expression))
    return {name for name in found if name}


def conversions(tree: ast.Module) -> Iterator[int]:
    """Lines of products and quotients of offsets of particles and a pixel size."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                has_offsets = any(name.split("_")[0] in {"shifts", "offsets", "origins"} for name in names(one))
                if has_offsets and any("pixel" in name or name == "angpix" for name in names(other)):
                    yield node.lineno


def test_no_other_module_converts_offsets() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line in conversions(ast.parse(path.read_text()))
    }
    assert {position.split(":")[0] for position in found} == CONVERTERS, f"each converter, and no other: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "poses.shifts_angstrom / pixel_size_angstrom",
        "dataset.pixel_size_angstrom * found.shifts_px",
        "shifts / pixel",
    ],
)
def test_a_conversion_would_be_found(line: str) -> None:
    assert list(conversions(ast.parse(line)))
