"""Normal equations in one Triton kernel: they agree with plain torch, and no CPU ever asks for them.

``TRITON_INTERPRET=1 pytest tests/reconstruction/test_fused_normal_equations.py`` runs the kernel in Triton's
interpreter, on the CPU; without the variable it is only compiled. Both need Triton, which comes with torch for CUDA.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction import local_refinement
from cryoeq.reconstruction import normal_equations as seam
from cryoeq.reconstruction.normal_equations import NormalEquations, WeightedImages, plain_normal_equations
from cryoeq.runtime import compiling

Arguments = tuple[WeightedImages, torch.Tensor, torch.Tensor, torch.Tensor]
Evaluate = Callable[..., NormalEquations]
HAS_TRITON, IS_INTERPRETED = find_spec("triton") is not None, os.environ.get("TRITON_INTERPRET") == "1"
NOT_INSTALLED = "Triton is not installed: it comes with torch for CUDA only"


@pytest.fixture
def fused() -> Evaluate:
    """The kernel, run by Triton's interpreter."""
    if not HAS_TRITON:
        pytest.skip(NOT_INSTALLED)
    if not IS_INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 is not set")
    from cryoeq.reconstruction.fused_normal_equations import fused_normal_equations

    return fused_normal_equations


def scene(n: int, coords: torch.Tensor, count: int, m: int = 0, dtype: torch.dtype = torch.float32) -> Arguments:
    """Images of noise, a map of noise of m samples (2 n if not given), random poses.

    A map of another size is not the transform of a real one.
    """
    generator = torch.Generator().manual_seed(0)
    plane = HalfPlane(n, coords, torch.zeros_like(coords[:, 0]), torch.ones(len(coords)))
    images = torch.randn(count, len(plane), 2, generator=generator, dtype=dtype)
    precision = torch.rand(count, len(plane), generator=generator, dtype=dtype)
    if m:
        padded = torch.view_as_complex(torch.randn(m, m, m, 2, generator=generator, dtype=dtype))
    else:
        padded = prepare_slices(torch.randn(n, n, n, generator=generator, dtype=dtype))
    rotations = random_rotations(count, generator).to(dtype)
    shifts = 3 * torch.randn(count, 2, generator=generator, dtype=dtype)
    return WeightedImages(plane, torch.view_as_complex(images), precision), padded, rotations, shifts


def half(n: int, radius: float) -> torch.Tensor:
    """Coordinates of a half plane, line by line."""
    plane = HalfPlane.up_to(n, radius)
    return plane.coords[plane.flat_index.argsort()]


def assert_same(found: NormalEquations, expected: NormalEquations) -> None:
    """Up to rounding: of a position by 1e-5 of a sample in single precision."""
    tolerance = 1e-4 if expected.value.dtype == torch.float32 else 1e-11
    for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "radius", "count"), [(8, 0.0, 1), (8, 3.0, 1), (9, 4.0, 3), (16, 7.0, 4), (17, 2.0, 5), (31, 13.0, 2)]
)
def test_the_kernel_agrees_with_plain_torch(
    fused: Evaluate, n: int, radius: float, count: int, dtype: torch.dtype
) -> None:
    arguments = scene(n, half(n, radius), count, dtype=dtype)
    found = fused(*arguments)
    assert_same(found, plain_normal_equations(*arguments))
    assert torch.equal(found.curvature, found.curvature.mT)


@pytest.mark.parametrize("points", [1, 15, 16, 17, 47, 48, 49, 75])
def test_coefficients_need_not_fill_blocks(fused: Evaluate, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs of three blocks of 16 coefficients share an image."""
    import triton.language as tl

    from cryoeq.reconstruction import fused_normal_equations as module

    monkeypatch.setattr(module, "_BLOCK", tl.constexpr(16))
    monkeypatch.setattr(module, "_BLOCKS", tl.constexpr(3))
    coords = half(16, 7.0)
    chosen = torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))[:points]
    arguments = scene(16, coords[chosen], 3)
    assert_same(fused(*arguments), plain_normal_equations(*arguments))


@pytest.mark.parametrize("m", [4, 5, 8, 12, 13, 24])
def test_of_maps_of_any_size_and_beyond_their_edges(fused: Evaluate, m: int) -> None:
    """Whole squares of coefficients, whose corners the map does not reach in all directions."""
    coords = torch.cartesian_prod(torch.arange(-4, 5), torch.arange(-4, 5))
    arguments = scene(8, coords, 4, m=m, dtype=torch.float64)
    assert_same(fused(*arguments), plain_normal_equations(*arguments))


@pytest.mark.parametrize("m", [8, 12, 16])
def test_on_samples_and_half_way_between_them(fused: Evaluate, m: int) -> None:
    """Where a position leaves its cell, and where the nearer neighbour changes."""
    observed, padded, rotations, shifts = scene(8, half(8, 3.0), 3, m=m)
    axes = torch.stack([torch.eye(3), torch.eye(3)[[1, 2, 0]], torch.eye(3)[[2, 0, 1]]])
    assert_same(fused(observed, padded, axes, shifts), plain_normal_equations(observed, padded, axes, shifts))
    assert not torch.equal(axes, rotations)


def test_friedel_mates_say_the_same(fused: Evaluate) -> None:
    """Of a real map and a real image: the conjugate at -k, not yet resolved in memory."""
    observed, padded, rotations, shifts = scene(16, half(16, 6.0), 3, dtype=torch.float64)
    mates = replace(observed.plane, coords=-observed.plane.coords)
    of_mates = WeightedImages(mates, observed.images.conj(), observed.precision)
    found, expected = (fused(images, padded, rotations, shifts) for images in (of_mates, observed))
    assert_same(found, expected)


def test_arguments_need_not_be_contiguous(fused: Evaluate) -> None:
    observed, padded, rotations, shifts = scene(8, half(8, 3.0), 6)
    every_other = WeightedImages(observed.plane, observed.images[::2], observed.precision.T.contiguous().T[::2])
    found = fused(every_other, padded.mT.contiguous().mT, rotations[::2].mT.contiguous().mT, shifts[::2])
    assert_same(found, plain_normal_equations(every_other, padded, rotations[::2], shifts[::2]))


def test_of_no_images_there_are_none(fused: Evaluate) -> None:
    assert fused(*scene(8, half(8, 3.0), 0)).curvature.shape == (0, 5, 5)


def test_an_image_has_the_same_sums_whatever_stands_beside_it(fused: Evaluate) -> None:
    observed, padded, rotations, shifts = scene(24, half(24, 11.0), 6)
    alone = WeightedImages(observed.plane, observed.images[4:5], observed.precision[4:5])
    together = fused(observed, padded, rotations, shifts)
    found = fused(alone, padded, rotations[4:5], shifts[4:5])
    for ours, theirs in zip(found.tensors(), together.tensors(), strict=True):
        assert torch.equal(ours[0], theirs[4])


def test_what_is_not_a_number_stays_none(fused: Evaluate) -> None:
    """And reads no memory beyond the map, however wrong the rotation is."""
    observed, padded, rotations, shifts = scene(8, half(8, 3.0), 3)
    wrong = rotations.clone()
    wrong[0], wrong[1] = math.nan, 1e4 * wrong[1]
    found, expected = fused(observed, padded, wrong, shifts), fused(observed, padded, rotations, shifts)
    assert all(values[0].isnan().all() for values in found.tensors())
    assert all(
        torch.equal(ours[2], theirs[2]) for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True)
    )


@pytest.mark.parametrize("sigma_px", [0.0, 2.0])
def test_steps_end_at_the_same_poses(fused: Evaluate, sigma_px: float, monkeypatch: pytest.MonkeyPatch) -> None:
    observed, padded, rotations, shifts = scene(16, half(16, 6.0), 12)
    slices = extract_slices(padded, rotations, observed.plane)
    images = observed.precision * slices * shift_phases(shifts, observed.plane.coords, 16)
    observed = WeightedImages(observed.plane, images, observed.precision)
    turn = rotation_from_vector(torch.tensor([0.1, -0.12, 0.12]))
    start = (turn @ rotations, shifts + (torch.tensor([1.2, -0.3]) if sigma_px else 0))
    ends = []
    for evaluate in (fused, plain_normal_equations):
        monkeypatch.setattr(local_refinement, "normal_equations", evaluate)
        ends.append(local_refinement.refine_in_torch(observed, padded, *start, shift_sigma_px=sigma_px, steps=4))
    (ours, our_shifts, found), (theirs, their_shifts, expected) = ends
    assert float(rotation_angle_rad(ours, theirs).max()) < 2e-3
    torch.testing.assert_close(our_shifts, their_shifts, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-2)
    assert float(rotation_angle_rad(start[0], rotations).min()) > 0.1 > float(rotation_angle_rad(ours, theirs).max())


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cryoeq.reconstruction.fused_normal_equations import _kernel
real, capability = f"*{sys.argv[1]}", int(sys.argv[2])
types = {"inputs": (real, real, "*i64", real, real), "padded": real, "sums": real}
types |= dict.fromkeys(("points", "n", "m"), "i32")
aligned = {place: [["tt.divisibility", 16]] for place in [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1,), (2,)]}
target = GPUTarget("cuda", capability, 32)
print(triton.compile(ASTSource(_kernel, types, {}, aligned), target=target).asm["ptx"])
"""


@pytest.mark.skipif(not HAS_TRITON, reason=NOT_INSTALLED)
@pytest.mark.parametrize(("real", "capability", "access"), [("fp32", 90, "v2.b32"), ("fp64", 80, "v2.b64")])
def test_the_kernel_compiles_for_gpus(real: str, capability: int, access: str) -> None:
    """Down to machine code, for which Triton needs no GPU. A sample of the map, two numbers, is one access."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, real, str(capability)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count(f"ld.global.{access}") >= 21
    assert said.stdout.count("st.global") == 31


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "radius", "count"), [(9, 4.0, 3), (64, 31.0, 100), (150, 74.0, 3)])
def test_kernel_and_plain_torch_agree_on_a_gpu(n: int, radius: float, count: int, dtype: torch.dtype) -> None:
    if not seam.is_fused(torch.device("cuda")):
        pytest.skip("Triton cannot launch kernels here")
    observed, padded, rotations, shifts = scene(n, half(n, radius), count, dtype=dtype)
    plane = replace(observed.plane, coords=observed.plane.coords.cuda())
    images = WeightedImages(plane, observed.images.cuda(), observed.precision.cuda())
    arguments = (images, padded.cuda(), rotations.cuda(), shifts.cuda())
    assert_same(seam.normal_equations(*arguments), plain_normal_equations(*arguments))


@pytest.fixture
def can_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], bool]]:
    """What is found where Triton is installed, or is not."""

    def ask(is_installed: bool) -> bool:
        compiling.can_launch_triton.cache_clear()
        if not is_installed:
            monkeypatch.setattr(compiling, "find_spec", lambda _: None)
        return compiling.can_launch_triton()

    yield ask
    compiling.can_launch_triton.cache_clear()


def test_without_triton_a_gpu_has_plain_torch(can_launch: Callable[[bool], bool]) -> None:
    assert not can_launch(False)
    assert not seam.is_fused(torch.device("cuda", 0))


@pytest.mark.skipif(not HAS_TRITON, reason=NOT_INSTALLED)
@pytest.mark.skipif("PRETENDED_CUDA" in os.environ, reason="a pretended GPU has no driver")
def test_triton_needs_a_driver_or_its_interpreter(can_launch: Callable[[bool], bool]) -> None:
    assert can_launch(True) == (IS_INTERPRETED or torch.cuda.is_available())


def test_the_kernel_is_for_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "can_launch_triton", lambda: True)
    assert seam.is_fused(torch.device("cuda", 1))
    assert not seam.is_fused(torch.device("cpu"))
    arguments = scene(8, half(8, 3.0), 2)
    found, expected = seam.normal_equations(*arguments), plain_normal_equations(*arguments)
    assert all(torch.equal(*pair) for pair in zip(found.tensors(), expected.tensors(), strict=True))


class Traffic(TorchDispatchMode):
    """Counts operators and the bytes that they read and write; of a map, those of the samples taken from it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.moved = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            is_gather = operator.overloadpacket is torch.ops.aten.index
            read = [result, *args[1:]] if is_gather else list(args)
            tensors = [leaf for leaf in tree_leaves([read, result]) if isinstance(leaf, torch.Tensor)]
            self.launches += 1
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def test_what_plain_torch_moves() -> None:
    """The figures that the kernel's module compares itself with."""
    arguments = scene(32, half(32, 15.0), 64)
    plain_normal_equations(*arguments)  # makes tables that are kept
    with Traffic() as traffic:
        plain_normal_equations(*arguments)
    assert traffic.moved / 64 / len(arguments[0].plane) == pytest.approx(4360, rel=0.05)
    assert traffic.launches == pytest.approx(78, rel=0.05)
