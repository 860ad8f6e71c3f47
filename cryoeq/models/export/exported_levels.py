"""Input of an exported network's trunk: padded images and their low-passes, normalised."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.models.pose_encoder import LowPassPyramid


class ExportedLevels(nn.Module):
    """Images cropped to an odd side, padded, with their low-passes, each normalised.

    Args:
        pyramid: low-passes and norm of the network, in evaluation mode.
        size_px: side of the padded images in pixels.

    Raises:
        ValueError: the norm has no running statistics.
    """

    blurs: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, pyramid: LowPassPyramid, size_px: int) -> None:
        super().__init__()
        self.size_px = size_px
        mean, variance = pyramid.norm.running_mean, pyramid.norm.running_var
        if mean is None or variance is None:
            raise ValueError("a network without running statistics")
        self.register_buffer("blurs", pyramid.blurs.clone())
        self.register_buffer("scale", (variance + pyramid.norm.eps).rsqrt()[:, None, None])
        self.register_buffer("shift", -mean[:, None, None] * self.scale)

    def forward(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch levels m m"]:
        """The levels, channels last."""
        levels = self.stacked(images).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self.shift, levels, self.scale)

    def stacked(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch levels m m"]:
        """The levels, not normalised."""
        padded = self.padded(images)[:, None]
        return torch.cat([padded, self.blurs @ padded @ self.blurs], 1)

    def padded(self, images: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch m m"]:
        """The padded images, without low-passes."""
        even = 1 - images.shape[-1] % 2
        odd = images[:, even:, even:]
        return F.pad(odd, ((self.size_px - odd.shape[-1]) // 2,) * 4)
