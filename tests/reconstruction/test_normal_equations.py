"""Normal equations of local refinement: a compiled kernel that agrees with plain torch."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction import compiled_normal_equations as compiled
from cryoeq.reconstruction.normal_equations import (
    NormalEquations,
    WeightedImages,
    normal_equations,
    plain_normal_equations,
)

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
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


@pytest.mark.parametrize(
    ("n", "radius", "count"), [(8, 3.0, 1), (9, 3.5, 3), (16, 7.0, 40), (17, 2.0, 5), (32, 15.0, 7), (48, 11.3, 2)]
)
def test_compiled_and_plain_agree(n: int, radius: float, count: int) -> None:
    arguments = scene(n, radius, count)
    found = normal_equations(*arguments)
    assert_same(found, plain_normal_equations(*arguments))
    assert torch.equal(found.curvature, found.curvature.mT)


def test_of_no_images_there_are_none() -> None:
    arguments = scene(8, 3.0, 0)
    for found in (normal_equations(*arguments), plain_normal_equations(*arguments)):
        assert found.gradient.shape == (0, 5)


def test_an_image_is_summed_alike_whatever_stands_beside_it() -> None:
    observed, padded, rotations, shifts = scene(24, 11.0, 6)
    together = normal_equations(observed, padded, rotations, shifts)
    alone = WeightedImages(observed.plane, observed.images[4:5], observed.precision[4:5])
    found = normal_equations(alone, padded, rotations[4:5], shifts[4:5])
    for ours, theirs in zip(found.tensors(), together.tensors(), strict=True):
        assert torch.equal(ours[0], theirs[4])


@pytest.mark.parametrize("evaluate", [normal_equations, plain_normal_equations])
def test_what_is_not_a_number_stays_none(evaluate: Callable[..., NormalEquations]) -> None:
    """And reads no memory beyond the map, however wrong the rotation is."""
    observed, padded, rotations, shifts = scene(8, 3.0, 3)
    wrong = rotations.clone()
    wrong[0], wrong[1] = math.nan, 1e4 * wrong[1]
    found = evaluate(observed, padded, wrong, shifts)
    assert found.value[0].isnan()
    torch.testing.assert_close(found.value[2], evaluate(observed, padded, rotations, shifts).value[2])


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


def test_numba_is_loaded_by_the_first_refinement_only() -> None:
    program = (
        "import sys, cryoeq.reconstruction.local_refinement, cryoeq.pipelines.reconstruct\n"
        "sys.exit(bool({'numba', 'llvmlite'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
