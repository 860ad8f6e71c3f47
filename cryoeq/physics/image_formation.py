"""Image formation: a slice of the map's transform, times CTF, times shift.

Everything is in Fourier space, one row per particle.
"""

from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.projection import extract_slices
from cryoeq.physics.shift import shift_phases


def form_images(
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
    transfer: Float[Tensor, "batch points"] | None,
    plane: HalfPlane,
) -> Complex[Tensor, "batch points"]:
    """Noise-free image transforms: slice * transfer * shift.

    Args:
        padded: oversampled transform of the map, from ``prepare_slices``.
        rotations: RELION's matrices A.
        shifts_px: RELION's origin offsets, in pixels of the plane's box.
        transfer: transfer of each image, from ``image_transfer``; None for images without a CTF.
        plane: coefficients to compute.
    """
    return apply_optics(extract_slices(padded, rotations, plane), shifts_px, transfer, plane)


def apply_optics(
    slices: Complex[Tensor, "batch points"],
    shifts_px: Float[Tensor, "batch 2"],
    transfer: Float[Tensor, "batch points"] | None,
    plane: HalfPlane,
) -> Complex[Tensor, "batch points"]:
    """CTF and shift of centred, sharp slices from any decoder: slice * transfer * shift."""
    transferred = slices if transfer is None else slices * transfer
    return transferred * shift_phases(shifts_px, plane.coords, plane.box_size_px)


def undo_optics(
    images: Complex[Tensor, "batch points"],
    shifts_px: Float[Tensor, "batch 2"],
    factor: Float[Tensor, "batch points"] | None,
    plane: HalfPlane,
) -> Complex[Tensor, "batch points"]:
    """Adjoint of ``apply_optics``: images centred and multiplied by their transfer, or another real factor."""
    centred = images * shift_phases(-shifts_px, plane.coords, plane.box_size_px)
    return centred if factor is None else centred * factor
