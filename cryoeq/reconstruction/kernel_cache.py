"""Machine code of the kernels for CPUs: whether it is there, and how to make it before it is needed."""

from typing import Any

import torch

from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.reconstruction import compiled_offsets, compiled_scores, compiled_views
from cryoeq.reconstruction import compiled_refinement as compiled
from cryoeq.reconstruction.normal_equations import WeightedImages
from cryoeq.reconstruction.offset_scores import log_likelihoods_around
from cryoeq.reconstruction.particle_transforms import LikelihoodTerms, transforms_of_matched
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.view_likelihood import ViewProducts

_TINY_PX = 8


def is_compiled() -> bool:
    """Whether the machine code is there, in this process or kept by an earlier one: its first use takes no time.

    Numba has no public way to tell; where it keeps its index otherwise than now, the answer is no.
    """
    of_views = (*compiled_offsets.KERNELS, *compiled_views.KERNELS)
    return all(map(_is_there, (compiled._refine_images, *compiled_scores.KERNELS, *of_views)))


def _is_there(kernel: Any) -> bool:
    if kernel.signatures:
        return True
    index: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    return hasattr(index, "_load_index") and bool(index._load_index())


def compile_now() -> None:
    """Make the machine code, or read it, by refinement, posterior and views of one image of few pixels."""
    plane = HalfPlane.up_to(_TINY_PX, _TINY_PX / 2 - 1)
    nothing, ones = torch.zeros(1, len(plane), dtype=torch.complex64), torch.ones(1, len(plane))
    padded = torch.zeros((2 * _TINY_PX,) * 3, dtype=torch.complex64)
    observed, pose = WeightedImages(plane, nothing, ones), (torch.eye(3)[None], torch.zeros(1, 2))
    compiled.compiled_refinement(observed, padded, *pose, shift_sigma_px=1.0, steps=0)
    harmonics = disk_harmonics(_TINY_PX, plane.last_radius, _TINY_PX / 2 - 1, torch.device("cpu"))
    grid, map_of_nothing = PoseGrid.build(0, 4, torch.eye(3)), Reference.build(torch.zeros((_TINY_PX,) * 3), ones[0])
    likelihood = PoseLikelihood.build(map_of_nothing, grid, harmonics)
    image = transforms_of_matched(nothing, ones, None, plane, 1.0)
    _use_scores(likelihood, image.at_offsets(torch.zeros(1, 1, 2), harmonics))
    products, first = ViewProducts.build(map_of_nothing, grid.views, harmonics), torch.zeros(1, 1, dtype=torch.long)
    products.highest(image, first, torch.zeros(1, 1, 2))
    products.of_one_view(image, first[0], torch.zeros(1, 2))
    log_likelihoods_around(map_of_nothing, image, pose[0][:, None], torch.zeros(1, 1, 2), 1.0)


def _use_scores(likelihood: PoseLikelihood, terms: LikelihoodTerms) -> None:
    scores = compiled_scores.CompiledScores(likelihood, *likelihood.half_turns(terms), torch.zeros(1, 1))
    highest = scores.highest()
    # All hypotheses are alike; where one is far better, those that are significant are few.
    highest[0] += 1e3
    scores.weights(highest, highest.amax(0), 1.0).sum_images(terms)
