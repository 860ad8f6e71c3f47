"""Machine code of the compiled local refinement: whether it is there, and how to make it before it is needed."""

from typing import Any

import torch

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.reconstruction import compiled_refinement as compiled
from cryoeq.reconstruction.normal_equations import WeightedImages

_TINY_PX = 8


def is_compiled() -> bool:
    """Whether the machine code is there, in this process or kept by an earlier one: its first use takes no time.

    Numba has no public way to tell; where it keeps its index otherwise than now, the answer is no.
    """
    kernel: Any = compiled._refine_images
    if kernel.signatures:
        return True
    index: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    return hasattr(index, "_load_index") and bool(index._load_index())


def compile_now() -> None:
    """Make the machine code, or read it, by the refinement of one image of few pixels."""
    plane = HalfPlane.up_to(_TINY_PX, _TINY_PX / 2 - 1)
    nothing, ones = torch.zeros(1, len(plane), dtype=torch.complex64), torch.ones(1, len(plane))
    padded = torch.zeros((2 * _TINY_PX,) * 3, dtype=torch.complex64)
    observed, pose = WeightedImages(plane, nothing, ones), (torch.eye(3)[None], torch.zeros(1, 2))
    compiled.compiled_refinement(observed, padded, *pose, shift_sigma_px=1.0, steps=0)
