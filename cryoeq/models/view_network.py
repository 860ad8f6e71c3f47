"""View network: particle images to logits over views, by an equivariant trunk and an invariant head.

Rotating or mirroring an image changes its in-plane angle and mirror, not along which view, up to sign, the particle is
seen. So the logits are to be invariant under O(2), and are so exactly under the network's group: they are functions of
the invariants of its hidden fields.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance import PlaneGroup
from cryoeq.models.pose_encoder import EncoderDesign, FieldEncoder, TrunkKind

_LEAST_SQUARE = 1e-6  # under the root of a norm, whose slope at 0 is not defined; fields are of variance 1


class ViewNetwork(FieldEncoder):
    """Images to logits of views, each up to its sign, f(g.I) = f(I) for every g of the group.

    Args:
        group: name of the symmetry group, as ``FieldEncoder`` has them; "c1" for a plain network.
        box_size_px: side of the images.
        directions: of the views, in the frame of the map.
        channels: widths of the trunk's features in channels, as in ``FieldEncoder``.
        trunk: "conv", "dense" or "mobilenet".
        low_passes: whether the trunk also gets low-passes of the images.
        design: kernels, samplers and degree of equivariance of the blocks.
        is_bf16: whether the trunk's products are in bf16.
    """

    directions: Tensor

    def __init__(
        self,
        group: str,
        box_size_px: int,
        directions: Float[Tensor, "views 3"],
        channels: tuple[int, ...] | None = None,
        *,
        trunk: TrunkKind = "dense",
        low_passes: bool = False,
        design: EncoderDesign | Mapping[str, Any] | None = None,
        is_bf16: bool = False,
    ) -> None:
        super().__init__(
            group, box_size_px, channels, trunk=trunk, low_passes=low_passes, design=design, is_bf16=is_bf16
        )  # fmt: skip
        self.register_buffer("directions", directions)
        self.invariants = FieldInvariants(self.group, self.fields)
        self.norm = nn.BatchNorm1d(self.invariants.count)
        self.head = nn.Linear(self.invariants.count, len(directions))

    def forward(
        self, images: Float[Tensor, "batch n n"], ctf_features: Float[Tensor, "batch 3"] | None = None
    ) -> Float[Tensor, "batch views"]:
        """Logits of the views; softmax gives their probabilities.

        Args:
            images: particle images of the network's box, in real space: times their CTF, and weighted so that noise is
                white, where the network is to see particles with different CTFs alike.
            ctf_features: conditioning vectors of the CTFs, which kernel "implicit_ctf" alone uses; None without a CTF.

        Raises:
            ValueError: the images are of another box.
        """
        logits: Tensor = self.head(self.norm(self.invariants(self.features(images, ctf_features))))
        return logits

    def scale_and_shift(self) -> tuple[Float[Tensor, " invariants"], Float[Tensor, " invariants"]]:
        """What the norm behind the invariants does in evaluation: multiply, then add.

        Raises:
            ValueError: it has no running statistics.
        """
        mean, variance = self.norm.running_mean, self.norm.running_var
        if mean is None or variance is None:
            raise ValueError("a network without running statistics")
        scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
        return scale, self.norm.bias - mean * scale


class FieldInvariants(nn.Module):
    """Numbers of hidden fields that the group does not change: what is invariant itself, and norms of all other irreps.

    Args:
        group: symmetry group of the fields.
        fields: number of fields.
    """

    def __init__(self, group: PlaneGroup, fields: int) -> None:
        super().__init__()
        self.fields = fields
        invariant = group.invariants("hidden").double()
        self.register_buffer("invariant", invariant.to(torch.get_default_dtype()), persistent=False)
        spans = [span.basis for span in group.irrep_spans("hidden")]
        others = [basis for basis in spans if float((invariant @ basis).norm()) < 0.5]  # 1 for the trivial irrep
        for place, basis in enumerate(others):
            self.register_buffer(f"span_{place}", basis.to(torch.get_default_dtype()), persistent=False)
        self.n_spans = len(others)

    @property
    def count(self) -> int:
        """Number of invariants of one image."""
        return self.fields * (len(self.get_buffer("invariant")) + self.n_spans)

    def forward(self, features: Float[Tensor, "batch channels 1 1"]) -> Float[Tensor, "batch invariants"]:
        """The invariants.

        Args:
            features: hidden fields at one pixel, channels ordered (component, field).
        """
        values = features.flatten(1).unflatten(1, (-1, self.fields))
        parts = [self.get_buffer("invariant") @ values]
        for place in range(self.n_spans):
            squared = (self.get_buffer(f"span_{place}").T @ values).square().mean(1, keepdim=True)
            parts.append((squared + _LEAST_SQUARE).sqrt())
        return torch.cat(parts, 1).flatten(1)
