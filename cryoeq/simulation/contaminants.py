"""Edges of the carbon film and pieces of crystalline ice, as picked by mistake.

Both are thick: they scatter electrons out of the aperture, so that their amplitude contrast is large. Carbon scatters
more than ice: where protein is bright, it is too. Its edge is that of a hole of several boxes, its texture that of an
amorphous film. Crystalline ice has a smooth outline of any shape, is thicker in its middle, and has less texture; three
in four pieces are bright, the others dark, as where the ice is thin or missing. The CTF draws the fringes along both.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.soft_mask import falling_cosine
from cryoeq.physics.ctf import image_transfer

AMPLITUDE_CONTRAST = 0.4
STRENGTH = 3.0, 8.0  # standard deviation over the image, in units of that of the particles' signal over the stack
_CARBON_SHARE, _BRIGHT_SHARE = 0.5, 0.75
_HOLE_RADIUS = 3.0, 12.0  # in boxes
_EDGE_PLACE = 0.35  # farthest place of the edge from the middle, in boxes
_ICE_RADIUS, _ICE_PLACE = (0.12, 0.4), 0.4  # in boxes
_TEXTURE = 1.0, 0.5  # standard deviation of carbon and of ice, in units of their step
_EDGE_PX = 2.0


def draw_contaminants(count: int, box_size_px: int, generator: torch.Generator) -> Float[Tensor, "count m m"]:
    """Contaminants before the CTF, in a box of twice the side, so that their edges go on beyond the image.

    Args:
        count: number of images.
        box_size_px: side of the images.
        generator: random number generator on the CPU.
    """
    n, m = box_size_px, 2 * box_size_px
    objects = torch.empty(count, m, m)
    for number in range(count):
        is_carbon, is_bright = (
            torch.rand(2, generator=generator) < torch.tensor([_CARBON_SHARE, _BRIGHT_SHARE])
        ).tolist()
        depth = _depth_in_carbon(n, generator) if is_carbon else _depth_in_ice(n, generator)
        texture = _TEXTURE[0 if is_carbon else 1] * torch.randn(m, m, generator=generator)
        sign = 1.0 if is_carbon or is_bright else -1.0
        thickness = 1.0 if is_carbon else 0.4 + 0.6 * (depth / depth.max()).clamp(min=0)
        objects[number] = sign * thickness * (1 + texture) * falling_cosine(0.5 - depth / _EDGE_PX)
    return objects


def image_contaminants(
    objects: Float[Tensor, "count m m"],
    ctf: CtfParameters | None,
    pixel_size_angstrom: float,
    signal_deviation: float,
    generator: torch.Generator,
) -> Float[Tensor, "count n n"]:
    """Their images: through the CTF with much amplitude contrast, several times as strong as particles.

    Args:
        objects: as drawn.
        ctf: CTF of each image, on the objects' device; None without one.
        pixel_size_angstrom: pixel size of the images.
        signal_deviation: standard deviation of the particles' signal over images and stack.
        generator: random number generator of the strength, on the CPU.
    """
    m = objects.shape[-1]
    n = m // 2
    plane = HalfPlane.up_to(m, n - 1, objects.device)
    transforms = plane.transform(objects)
    if ctf is not None:
        thick = replace(ctf, amplitude_contrast=torch.full_like(ctf.amplitude_contrast, AMPLITUDE_CONTRAST))
        transforms = transforms * image_transfer(thick, plane.frequencies_per_angstrom(pixel_size_angstrom))
    images = middle(plane.images(transforms), n)
    low, high = (math.log(bound) for bound in STRENGTH)
    strength = torch.exp(low + (high - low) * torch.rand(len(objects), generator=generator)).to(images)
    deviation = images.flatten(1).std(1).clamp(min=torch.finfo(images.dtype).tiny)
    return images * (signal_deviation * strength / deviation)[:, None, None]


def middle(images: Float[Tensor, "batch m m"], box_size_px: int) -> Float[Tensor, "batch n n"]:
    """The middle of larger images, with their centre in its centre."""
    first = images.shape[-1] // 2 - box_size_px // 2
    return images[:, first : first + box_size_px, first : first + box_size_px]


def _places(n: int) -> tuple[Float[Tensor, "m m"], Float[Tensor, "m m"]]:
    axis = torch.arange(2 * n, dtype=torch.float32) - n
    return axis.expand(2 * n, 2 * n), axis[:, None].expand(2 * n, 2 * n)


def _depth_in_carbon(n: int, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """Distance in pixels of each place from the edge of a hole, positive in the film around it."""
    place, radius, angle = torch.rand(3, generator=generator).tolist()
    radius_px = n * (_HOLE_RADIUS[0] + (_HOLE_RADIUS[1] - _HOLE_RADIUS[0]) * radius)
    from_edge = radius_px - n * _EDGE_PLACE * (2 * place - 1)
    x, y = _places(n)
    cx, cy = from_edge * math.cos(2 * math.pi * angle), from_edge * math.sin(2 * math.pi * angle)
    return torch.hypot(x - cx, y - cy) - radius_px


def _depth_in_ice(n: int, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """Distance in pixels, along the line to its middle, of each place from the outline of a piece of ice."""
    size, distance, angle = torch.rand(3, generator=generator).tolist()
    radius_px = n * (_ICE_RADIUS[0] + (_ICE_RADIUS[1] - _ICE_RADIUS[0]) * size)
    x, y = _places(n)
    cx, cy = (n * _ICE_PLACE * distance * turn(2 * math.pi * angle) for turn in (math.cos, math.sin))
    direction = torch.atan2(y - cy, x - cx)
    order = torch.arange(2, 7, dtype=torch.float32)
    waves = torch.randn(5, generator=generator) * 0.3 / order
    phases = 2 * math.pi * torch.rand(5, generator=generator)
    outline = 1 + (waves * torch.cos(order * direction[..., None] + phases)).sum(-1)
    return radius_px * outline.clamp(min=0.3) - torch.hypot(x - cx, y - cy)
