"""Local refinement compiled for CPUs: it agrees with plain torch, in one evaluation and in all steps."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction import compiled_refinement as compiled
from cryoeq.reconstruction.local_refinement import refine_in_torch
from cryoeq.reconstruction.normal_equations import NormalEquations, WeightedImages

Refine = Callable[..., tuple[torch.Tensor, torch.Tensor, NormalEquations]]
WAYS: tuple[Refine, Refine] = (compiled.compiled_refinement, refine_in_torch)
Arguments = tuple[WeightedImages, torch.Tensor, torch.Tensor, torch.Tensor]


def scene(n: int, radius: float, count: int) -> Arguments:
    """Images of noise, a map of noise, random poses; images in the order of a half plane's lines."""
    generator = torch.Generator().manual_seed(0)
    plane = HalfPlane.up_to(n, radius)
    order = plane.flat_index.argsort()
    lines = HalfPlane(n, plane.coords[order], plane.flat_index[order], plane.weights[order])
    images = torch.randn(count, len(plane), generator=generator, dtype=torch.complex64)
    precision = torch.rand(count, len(plane), generator=generator) * lines.weights
    padded = prepare_slices(torch.randn(n, n, n, generator=generator))
    rotations = random_rotations(count, generator)
    shifts = 3 * torch.randn(count, 2, generator=generator)
    return WeightedImages(lines, images, precision), padded, rotations, shifts


def assert_same(found: NormalEquations, expected: NormalEquations) -> None:
    for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()  # positions are rounded to 1e-5 of a sample of the noise


def evaluate(arguments: Arguments, refine: Refine, sigma_px: float = 0.0) -> NormalEquations:
    """The normal equations at the poses, which no step has changed."""
    rotations, shifts, found = refine(*arguments, shift_sigma_px=sigma_px, steps=0)
    assert torch.equal(rotations, arguments[2])
    assert torch.equal(shifts, arguments[3])
    return found


@pytest.mark.parametrize("sigma_px", [0.0, 2.0])
@pytest.mark.parametrize(
    ("n", "radius", "count"), [(8, 3.0, 1), (9, 3.5, 3), (16, 7.0, 40), (17, 2.0, 5), (32, 15.0, 7), (150, 74.0, 1)]
)
def test_compiled_and_plain_evaluations_agree(n: int, radius: float, count: int, sigma_px: float) -> None:
    arguments = scene(n, radius, count)
    found, expected = (evaluate(arguments, way, sigma_px) for way in WAYS)
    assert_same(found, expected)
    assert torch.equal(found.curvature, found.curvature.mT)


def test_coefficients_need_not_be_whole_lines() -> None:
    observed, padded, rotations, shifts = scene(16, 7.0, 3)
    plane, some = observed.plane, torch.arange(len(observed.plane)) % 5 != 2
    part = HalfPlane(16, plane.coords[some], plane.flat_index[some], plane.weights[some])
    images = WeightedImages(part, observed.images[:, some], observed.precision[:, some])
    found, expected = (evaluate((images, padded, rotations, shifts), way) for way in WAYS)
    assert_same(found, expected)


@pytest.mark.parametrize("sigma_px", [0.0, 2.0])
def test_compiled_and_plain_steps_agree(sigma_px: float) -> None:
    """From poses off by more than a step may go, to where no step gains any more."""
    observed, padded, rotations, shifts = scene(16, 6.0, 30)
    slices = extract_slices(padded, rotations, observed.plane)
    images = observed.precision * slices * shift_phases(shifts, observed.plane.coords, 16)
    observed = WeightedImages(observed.plane, images, observed.precision)
    turn = rotation_from_vector(torch.tensor([0.1, -0.12, 0.12]))
    start = (turn @ rotations, shifts + (torch.tensor([1.2, -0.3]) if sigma_px else 0))
    for steps in (1, 2, 12):
        (ours, our_shifts, found), (theirs, their_shifts, expected) = (
            way(observed, padded, *start, shift_sigma_px=sigma_px, steps=steps) for way in WAYS
        )
        assert float(rotation_angle_rad(ours, theirs).max()) < 5e-3
        torch.testing.assert_close(our_shifts, their_shifts, rtol=0, atol=1e-2)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-2)
    assert (
        float(rotation_angle_rad(ours, rotations).median())
        < 0.01
        < float(rotation_angle_rad(start[0], rotations).min())
    )


def test_of_no_images_there_are_none() -> None:
    for way in WAYS:
        assert evaluate(scene(8, 3.0, 0), way).gradient.shape == (0, 5)


def test_an_image_is_refined_alike_whatever_stands_beside_it() -> None:
    observed, padded, rotations, shifts = scene(24, 11.0, 6)
    alone = WeightedImages(observed.plane, observed.images[4:5], observed.precision[4:5])
    together = compiled.compiled_refinement(observed, padded, rotations, shifts, shift_sigma_px=3.0, steps=4)
    found = compiled.compiled_refinement(alone, padded, rotations[4:5], shifts[4:5], shift_sigma_px=3.0, steps=4)
    for ours, theirs in zip((*found[:2], *found[2].tensors()), (*together[:2], *together[2].tensors()), strict=True):
        assert torch.equal(ours[0], theirs[4])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_a_number_stays_none(way: Refine) -> None:
    """And reads no memory beyond the map, however wrong the rotation is."""
    observed, padded, rotations, shifts = scene(8, 3.0, 3)
    wrong = rotations.clone()
    wrong[0], wrong[1] = math.nan, 1e4 * wrong[1]
    _, _, found = way(observed, padded, wrong, shifts, shift_sigma_px=2.0, steps=2)
    _, _, expected = way(observed, padded, rotations, shifts, shift_sigma_px=2.0, steps=2)
    assert found.value[0].isnan()
    torch.testing.assert_close(found.value[2], expected.value[2])


def test_where_machine_code_cannot_be_kept_it_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_function, asked = numba.njit, []

    def without_a_folder(*words: Any, cache: bool = False, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_function(*words, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    doubled = compiled._compiled(lambda x: 2 * x)
    assert asked == [True, False]
    assert doubled(4) == 8


def test_compilers_are_loaded_by_the_first_refinement_only() -> None:
    program = (
        "import sys, cryoeq.reconstruction.local_refinement, cryoeq.pipelines.reconstruct\n"
        "sys.exit(bool({'numba', 'llvmlite', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from reconstruction.test_compiled_refinement import compiled, scene
rotations, shifts, ends = compiled.compiled_refinement(*scene(20, 8.0, 30), shift_sigma_px=2.0, steps=5)
print([values.double().sum().item() for values in (rotations, shifts, ends.value)])
"""


@pytest.mark.slow
def test_the_process_that_compiles_has_the_results_of_those_that_find_it_compiled(tmp_path: Path) -> None:
    """To the last bit: a run that is resumed by another process goes on as it would have."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
    said = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    assert list(tmp_path.rglob("*.nbi"))
    assert said[0].stdout == said[1].stdout != ""
