"""Predicted memory: what is allocated per particle, and how the peak grows. Measured peaks: benchmarks/memory.py."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.reconstruction.expectation import LOG_LIKELIHOODS_ON_CPU, disk_offsets, offset_step_px
from cryoeq.reconstruction.global_realignment import OFFSETS_PER_WAVELENGTH, REACH
from cryoeq.reconstruction.memory import (
    SearchSize,
    encoder_memory,
    full_box_memory,
    reconstruction_memory,
    search_memory,
    transform_bytes,
)
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, grid_size, pose_grid
from cryoeq.reconstruction.reference import Reference

SMALL = SearchSize(1000, 32, 1.6, 15, 0.42, 1)


def total(size: SearchSize) -> int:
    return sum(search_memory(size).values())


def test_bytes_of_a_particle_are_those_of_its_tensors(
    make_known: Callable[..., Any], observe: Callable[..., Any]
) -> None:
    particles = observe(make_known(5).dataset)
    tensors = (
        particles.ctf_multiplied, particles.ctf_squared, particles.ctf_squared_harmonics, particles.ctf_features
    )  # fmt: skip
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 5
    assert transform_bytes(particles.plane.box_size_px) == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("radius", [4, COARSE_SHELL, COARSE_SHELL + 1])
def test_the_size_of_a_grid_is_known_without_it(radius: int, generator: torch.Generator) -> None:
    grid = pose_grid(radius, generator, torch.device("cpu"))
    assert grid_size(radius) == (len(grid.views), len(grid.inplane_rad))


def test_offsets_of_one_particle_are_counted(generator: torch.Generator) -> None:
    """Where those of a single particle exceed a batch, they decide."""
    size = replace(SMALL, shift_sigma_px=12.0)
    step = offset_step_px(32, COARSE_SHELL, OFFSETS_PER_WAVELENGTH)
    offsets = disk_offsets(REACH * 12.0, step, 1, generator, torch.device("cpu")).shape[1]
    views, angles = grid_size(COARSE_SHELL)
    poses = 2 * views * angles * offsets
    assert poses > LOG_LIKELIHOODS_ON_CPU
    assert search_memory(size)["poses and offsets"] == pytest.approx(16 * poses, rel=0.03)


def test_maps_are_at_least_what_is_held_while_one_is_made() -> None:
    """Two references, and the sums of both half sets."""
    padded = Reference.build(torch.zeros(32, 32, 32), torch.zeros(10)).padded
    sums = 2 * WienerBackprojection.empty(32).sums.numel() * 4
    assert search_memory(SMALL)["maps"] > 2 * padded.numel() * padded.element_size() + sums


@pytest.mark.parametrize(
    "larger",
    [
        {"count": 2000},
        {"box_px": 48},
        {"shift_sigma_px": 16.0},
        {"threads": 8},
        {"max_exhaustive_shell": 40, "box_px": 96},
    ],
)
def test_more_of_anything_needs_more(larger: dict[str, Any]) -> None:
    assert total(replace(SMALL, **larger)) > total(SMALL)


def test_the_compiler_is_counted_with_what_importing_it_takes() -> None:
    """A lower bound: the kernel comes on top of it."""
    script = (
        "import os, psutil, numpy\nmemory = lambda: psutil.Process(os.getpid()).memory_info().rss\n"
        "before = memory()\nimport numba\nprint(memory() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert grown < search_memory(SMALL)["compiler"] < 4 * grown


def test_figures_take_the_place_of_what_the_search_is_done_with() -> None:
    """They are loaded at the end: a large search hides them."""
    assert (
        search_memory(replace(SMALL, box_px=64, max_exhaustive_shell=31))["figures"] < search_memory(SMALL)["figures"]
    )


def test_a_million_offsets_are_a_hundred_gigabytes() -> None:
    """What is never split is what runs out of memory."""
    assert total(replace(SMALL, shift_sigma_px=1300.0)) > 1e11


def test_maps_of_known_poses_grow_with_the_box_alone_once_a_batch_is_full() -> None:
    full = reconstruction_memory(10**6, 64, 5 * 10**5, 2)
    assert reconstruction_memory(10**7, 64, 5 * 10**6, 2) == full
    assert reconstruction_memory(10**6, 256, 5 * 10**5, 2) > 20 * full / 4


def test_a_refinement_at_the_full_box_needs_more_for_each_particle_and_shell() -> None:
    least = full_box_memory(1000, 64, 20)
    assert full_box_memory(2000, 64, 20)["transforms of all particles"] == 2 * least["transforms of all particles"]
    further = full_box_memory(1000, 64, 31)
    assert all(further[name] > least[name] for name in least)
    few = [full_box_memory(10, box_px, 20)["maps at full size"] for box_px in (64, 128)]
    assert few[0] == few[1], "cropped to the shells"


def test_wide_encoders_and_large_inputs_need_more() -> None:
    assert encoder_memory(256, 32, is_wide=False) < encoder_memory(256, 32, is_wide=True)
    assert encoder_memory(256, 32, is_wide=False) < encoder_memory(256, 64, is_wide=False)
