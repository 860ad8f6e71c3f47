"""Preprocessing of particle images: Fourier crop, contrast, normalisation of the background to mean 0, sigma 1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.special import stdtr
from torch import Tensor

from cryoeq.geometry.fourier import fourier_crop_images

_BACKGROUND_RADIUS = 0.75  # of half the box: RELION's default, outside of which there is no particle
_SURE = 1e-3  # probability of the t test below which the contrast counts as decided
_VARIED = 0.2  # relative variation of the images' backgrounds above which each is scaled by its own
_LOUD = 10.0  # deviation over that of the typical image above which an image is no particle: ice, an edge, a defect
_NOISE_FREE = 0.2  # background over whole image; a stack with noise that stays below it would have an SNR above 20

CONTRAST_SIGNS: Mapping[str, int | None] = {"auto": None, "keep": 1, "invert": -1}
"""Factor of each setting of the contrast; None decides from the images."""


@dataclass(frozen=True)
class ContrastDecision:
    """Whether the protein is bright in the stored images.

    Args:
        sign: factor that makes protein bright, 1 or -1.
        reason: reason of the decision, one sentence for the user.
    """

    sign: int
    reason: str


@dataclass(frozen=True)
class BackgroundScale:
    """Divisor of the images.

    Args:
        value: standard deviation by which all images are divided; None divides each image by that of its own
            background.
        reason: reason of the choice, one sentence for the user.
    """

    value: float | None
    reason: str


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of each image: a Fourier crop, the background's mean subtracted, a scale, a sign.

    Args:
        working_box_px: side of the images after the crop.
        scale: standard deviation by which all images are divided; None for that of each image's background.
        sign: factor that makes protein bright, 1 or -1.
        loudest: standard deviation of a whole image after the scale above which it would drown the others: it is made
            as loud as the typical image is, see ``loudest_deviation``.
        background_radius: radius of the circle around the particle, as a fraction of half the box.
    """

    working_box_px: int
    scale: float | None
    sign: int
    loudest: float = math.inf
    background_radius: float = _BACKGROUND_RADIUS

    def apply(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch m m"]:
        """Preprocessed images."""
        return self.apply_and_judge(images)[0]

    def apply_and_judge(
        self, images: Float[Tensor, "batch n n"], out: Float[Tensor, "batch m m"] | None = None
    ) -> tuple[Float[Tensor, "batch m m"], Bool[Tensor, " batch"]]:
        """Preprocessed images, and whether each was so loud that it was scaled down.

        Args:
            images: as stored.
            out: where to write the preprocessed images; None for a new tensor.
        """
        cropped = crop(images, self.working_box_px)
        scaled = normalise_background(cropped, self.scale, self.background_radius, self.sign, out=out)
        loudness = _deviations(scaled) / self.loudest
        is_loud = loudness > 1
        if is_loud.device.type != "cpu" or bool(is_loud.any()):  # a GPU need not be waited for
            scaled *= torch.where(is_loud, 1 / (_LOUD * loudness), 1.0)[:, None, None]
        return scaled, is_loud


def crop(images: Float[Tensor, "batch n n"], working_box_px: int) -> Float[Tensor, "batch m m"]:
    """Images resampled to the working box; unchanged where they have it."""
    return images if images.shape[-1] == working_box_px else fourier_crop_images(images, working_box_px)


def _squared_radius(box_size_px: int, device: torch.device) -> Float[Tensor, "n n"]:
    """Squared distance of each pixel from the centre, in units of half the box."""
    axis = (torch.arange(box_size_px, device=device) - box_size_px // 2) / (box_size_px / 2)
    return axis[:, None].square() + axis.square()


def background_radius(particle_diameter_angstrom: float | None, side_angstrom: float) -> float:
    """Radius of the circle outside of which an image is background, as a fraction of half the box.

    Args:
        particle_diameter_angstrom: diameter of the particle, which the circle has too; None for 0.75 of the box.
        side_angstrom: side of the box.
    """
    if particle_diameter_angstrom is None:
        return _BACKGROUND_RADIUS
    return particle_diameter_angstrom / side_angstrom


def background_mask(
    box_size_px: int, device: torch.device | None = None, radius: float = _BACKGROUND_RADIUS
) -> Bool[Tensor, "n n"]:
    """The pixels outside a circle.

    Args:
        box_size_px: side of the images.
        device: where to make it; None for the CPU.
        radius: of the circle, as a fraction of half the box.
    """
    return _squared_radius(box_size_px, device or torch.device("cpu")) > radius**2


def is_ordinary(images: Float[Tensor, "batch n n"]) -> Bool[Tensor, " batch"]:
    """Whether an image may speak for the stack: not constant, and no more than ten times as loud as the typical one.

    Args:
        images: sample of the stack.
    """
    deviations = images.flatten(1).std(1)
    varied = deviations > 0
    middle = deviations[varied].median() if bool(varied.any()) else deviations.new_tensor(0.0)
    return varied & (deviations <= _LOUD * middle)


def decide_contrast(images: Float[Tensor, "batch n n"]) -> ContrastDecision:
    """Whether protein is bright or dark, from the centre of the low-passed images against their background.

    The centre of an image is its mean under a Gaussian of an eighth of the box, which is the low pass and the average
    at once. Each image votes with its centre minus its background mean; a t test over the images says whether they
    agree. Particles may be of any size and somewhat off centre; at SNR 0.1 a few dozen images are enough. A transfer
    function does not change the sign, since it is positive from zero frequency to the first zero under focus.

    Args:
        images: 3 images at least, drawn evenly from the stack; 500 are plenty.
    """
    radius2 = _squared_radius(images.shape[-1], images.device)
    weights = torch.exp(-radius2 / (2 * 0.25**2))
    centre = (images * (weights / weights.sum())).sum((1, 2))
    votes = (centre - images[:, radius2 > _BACKGROUND_RADIUS**2].mean(1)).double()
    votes = votes[is_ordinary(images)]
    how = "undecided from too few images"
    if len(votes) >= 3:
        error = (votes.std() / len(votes) ** 0.5).clamp_min(torch.finfo(torch.float64).tiny)
        t = float(votes.mean() / error)
        how = f"the centre differs from the background by {t:+.1f} standard errors over {len(votes)} images"
        if 2 * float(stdtr(len(votes) - 1, -abs(t))) < _SURE:
            found, done = ("bright", "kept") if t > 0 else ("dark", "multiplied by -1")
            return ContrastDecision(1 if t > 0 else -1, f"Contrast: protein is {found} ({how}); the images are {done}.")
    return ContrastDecision(1, f"Contrast: undecided ({how}); the images are kept. Override with --invert-data.")


def decide_scale(
    images: Float[Tensor, "batch n n"], *, is_premultiplied: bool = False, radius: float = _BACKGROUND_RADIUS
) -> BackgroundScale:
    """One scale for the stack, or one for each image.

    The standard deviation of one image's few background pixels is itself uncertain (3 % at 32 px), and the particle's
    own tails are part of it: dividing each image by its own would add jitter to amplitudes that extraction has
    already made equal. So one scale serves all, unless the backgrounds differ by more than 20 %. It serves
    CTF-premultiplied images in any case: the variance of their background follows their CTF, which the model
    contains. Without noise the background is constant, or mere ripples, and the whole images set the scale.

    Args:
        images: sample of the stack, cropped to the working box.
        is_premultiplied: whether the images were multiplied by their CTF.
        radius: radius of the circle around the particle, as a fraction of half the box.
    """
    images = images[is_ordinary(images)]
    if not len(images):
        return BackgroundScale(1.0, "Scale: the images are constant; they are left as they are.")
    sigmas = images[:, background_mask(images.shape[-1], images.device, radius)].std(1)
    middle = sigmas.median()
    whole = (images - images.mean((1, 2), keepdim=True)).square().mean().sqrt()
    if middle < _NOISE_FREE * whole:
        value = float(whole)
        return BackgroundScale(
            value, f"Scale: the images look noise-free; all are divided by their common deviation {value:.4g}."
        )
    variation = float(1.4826 * (sigmas - middle).abs().median() / middle)
    if variation > _VARIED and not is_premultiplied:
        return BackgroundScale(
            None, f"Scale: backgrounds differ by {variation:.0%}; each image is divided by its own deviation."
        )
    value = float(sigmas.square().mean().sqrt())
    return BackgroundScale(value, f"Scale: all images are divided by their common background deviation {value:.4g}.")


def loudest_deviation(images: Float[Tensor, "batch n n"]) -> float:
    """Standard deviation of a whole image above which it is no particle: ten times that of the typical image.

    Args:
        images: sample of the stack, from ``normalise_background``.
    """
    return _LOUD * float(images.flatten(1).std(1).median())


def normalise_background(
    images: Float[Tensor, "batch n n"],
    scale: float | None = None,
    radius: float = _BACKGROUND_RADIUS,
    sign: int = 1,
    *,
    out: Float[Tensor, "batch n n"] | None = None,
) -> Float[Tensor, "batch n n"]:
    """Images whose background, outside of a circle around the particle, has mean 0 and standard deviation 1.

    Args:
        images: images at the working box.
        scale: standard deviation by which all images are divided; None takes that of each image's background, and
            leaves a constant background unscaled.
        radius: radius of the circle, as a fraction of half the box.
        sign: factor of the images, 1 or -1.
        out: where to write them; None for a new tensor.
    """
    # Products with a mask, since an index by it takes six times as long; not a matrix product, whose sums depend on how
    # many images there are.
    mask = background_mask(images.shape[-1], images.device, radius).to(images.dtype)
    count = mask.sum()
    means = ((images * mask).sum((1, 2)) / count)[:, None, None]
    centred = images - means if out is None else torch.sub(images, means, out=out)
    if scale is not None:
        return centred.mul_(sign / scale)
    sigmas = ((centred * mask).square().sum((1, 2)) / (count - 1)).sqrt()
    return centred.mul_((sign / torch.where(sigmas > 0, sigmas, 1.0))[:, None, None])


def _deviations(images: Float[Tensor, "batch n n"]) -> Float[Tensor, " batch"]:
    """Standard deviation of each image, of its squares: no pass to its mean before."""
    flat = images.flatten(1)
    count = flat.shape[1]
    return (
        ((torch.linalg.vector_norm(flat, dim=1).square() - flat.sum(1).square() / count) / (count - 1))
        .clamp(min=0)
        .sqrt()
    )
