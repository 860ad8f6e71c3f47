"""A trained dense network in evaluation mode as a product of equivariant matrices with ReLU between them.

Batch norms are folded into the matrices before them. Biases become one more scalar field of constant value, which every
layer passes on. So the network is homogeneous, and each layer may be scaled without changing its predictions::

    f(a x) = a f(x)  for a > 0

So are the invariants before the head of a view network, norms of orthogonal parts of the fields (with a thousandth of
the constant field's unit under the root), which moreover are never further apart than the fields are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance import PlaneGroup, SteerableConv, SteerablePerceptron
from cryoeq.equivariance.irrep_blocks import Fields, IrrepBlock, irrep_blocks
from cryoeq.equivariance.perceptron import PixelOrbits
from cryoeq.models.view_network import ViewNetwork


@dataclass(frozen=True)
class FoldedLayer:
    """A linear map between fields, the constant field included, in double precision.

    Args:
        name: name of the layer in reports.
        matrix: equivariant matrix.
        in_fields: fields of the columns.
        out_fields: fields of the rows.
    """

    name: str
    matrix: Float[Tensor, "out in"]
    in_fields: Fields
    out_fields: Fields

    def blocks(self, group: PlaneGroup) -> tuple[IrrepBlock, ...]:
        """The block of each irrep."""
        return irrep_blocks(group, self.matrix, self.in_fields, self.out_fields)


@dataclass(frozen=True)
class FoldedNet:
    """A network of folded layers, with the map from images to the input of the first layer.

    Args:
        group: group that the layers commute with.
        lift: isometry from images to functions on the group.
        constant: value of the constant field in the input.
        layers: layers from the first to the last, whose rows are those of all heads.
    """

    group: PlaneGroup
    lift: PixelOrbits
    constant: float
    layers: tuple[FoldedLayer, ...]

    def inputs(self, images: Float[Tensor, "batch levels n n"]) -> Float[Tensor, "batch channels"]:
        """Input of the first layer, the constant field included."""
        values = self.lift(images).transpose(0, 1).flatten(1).double()
        return torch.cat([values, values.new_full((len(values), 1), self.constant)], 1)


@dataclass(frozen=True)
class LevelNorm:
    """Normalisation of each level of the input pyramid, by its mean and variance."""

    mean: Float[Tensor, " levels"]
    variance: Float[Tensor, " levels"]


@torch.no_grad()
def fold_perceptron(
    trunk: SteerablePerceptron, heads: Sequence[SteerableConv], group: PlaneGroup, norm: LevelNorm
) -> FoldedNet:
    """Fold a steerable perceptron with linear heads.

    Args:
        trunk: trained perceptron in evaluation mode.
        heads: linear maps of its fields, at one pixel.
        group: group of trunk and heads.
        norm: normalisation of the input pyramid, before the trunk.
    """
    constant, layers = _fold_trunk(trunk, group, norm)
    matrix = torch.cat([head.filters().flatten(1).double() for head in heads])
    column = torch.cat([_offsets(head).double() for head in heads]) / constant
    fields: Fields = ((trunk.fields, "hidden"), (1, "scalar"))
    out: Fields = tuple((head.out_count, head.out_kind) for head in heads)
    layers.append(FoldedLayer("head", torch.cat([matrix, column[:, None]], 1), fields, out))
    return FoldedNet(group, trunk.lift, constant, tuple(layers))


@torch.no_grad()
def fold_network(network: ViewNetwork) -> FoldedNet:
    """Fold a view network: from padded images and their low-passes to the logits of all views.

    Its last layer is a map of the invariants of the fields before it.

    Args:
        network: trained network in evaluation mode.

    Raises:
        ValueError: its trunk is not a steerable perceptron.
    """
    if not isinstance(network.trunk, SteerablePerceptron):
        raise ValueError("a network of convolutions, or of a group that the pixel grid does not serve")  # noqa: TRY004
    mean, variance = network.pyramid.norm.running_mean, network.pyramid.norm.running_var
    if mean is None or variance is None:
        raise ValueError("a network without running statistics")
    norm = LevelNorm(mean, variance + network.pyramid.norm.eps)
    constant, layers = _fold_trunk(network.trunk, network.group, norm)
    scale, shift = (values.double() for values in network.scale_and_shift())
    matrix, bias = network.head.weight.double(), network.head.bias.double()
    column = (bias + matrix @ shift) / constant
    fields: Fields = ((network.invariants.count, "scalar"), (1, "scalar"))
    whole = torch.cat([matrix * scale, column[:, None]], 1)
    layers.append(FoldedLayer("head", whole, fields, ((len(matrix), "scalar"),)))
    return FoldedNet(network.group, network.trunk.lift, constant, tuple(layers))


def network_inputs(
    network: ViewNetwork, net: FoldedNet, images: Float[Tensor, "batch n n"]
) -> Float[Tensor, "batch channels"]:
    """Input of the first layer of a folded network.

    Args:
        network: the network.
        net: its folded form.
        images: input of the network.
    """
    return net.inputs(network.pyramid.levels(network.centre(images)))


def _fold_trunk(trunk: SteerablePerceptron, group: PlaneGroup, norm: LevelNorm) -> tuple[float, list[FoldedLayer]]:
    """Value of the constant field, and the layers of a perceptron."""
    blocks = trunk.blocks()
    constant = trunk.lift.size_px * math.sqrt(len(norm.mean))  # the norm of images of unit variance
    counts = [len(norm.mean) * trunk.lift.count] + [trunk.fields] * len(blocks)
    order, layers = group.dim("hidden"), list[FoldedLayer]()
    for number, ((linear, activation), (before, after)) in enumerate(zip(blocks, pairwise(counts), strict=True)):
        matrix, bias = linear.matrix().double(), torch.zeros(order * after, dtype=torch.float64)
        if number == 0:
            matrix, bias = _with_norm(matrix.to(norm.mean.device), trunk.lift, norm)
        scale, shift = (values.double().repeat(order) for values in activation.scale_and_shift())
        column = (scale * bias.to(scale) + shift) / constant
        layers.append(_with_constant_field(f"layer {number + 1}", scale[:, None] * matrix, column, before, after))
    return constant, layers


def _with_constant_field(name: str, matrix: Tensor, column: Tensor, before: int, after: int) -> FoldedLayer:
    """A layer with its bias as a column, and a row that passes the constant field on."""
    row = torch.zeros_like(matrix[:1])
    whole = torch.cat([torch.cat([matrix, column[:, None]], 1), torch.cat([row, torch.ones_like(row[:, :1])], 1)])
    return FoldedLayer(name, whole, ((before, "hidden"), (1, "scalar")), ((after, "hidden"), (1, "scalar")))


def _with_norm(matrix: Tensor, lift: PixelOrbits, norm: LevelNorm) -> tuple[Tensor, Tensor]:
    """The first matrix and its bias, for images before normalisation.

    Components that no image has are removed: where an element fixes a pixel, not every function on its orbit occurs.
    """
    size, levels = lift.size_px, len(norm.mean)
    pixels = torch.eye(size**2, device=norm.mean.device).view(-1, 1, size, size)
    isometry = lift(pixels).permute(0, 2, 1).double()  # (order, orbit, pixel)
    by_level = matrix.view(len(matrix), len(isometry), levels, -1) * norm.variance.double().rsqrt()[:, None]
    on_pixels = torch.einsum("ohlk,hkp->olp", by_level, isometry)
    reached = torch.einsum("olp,hkp->ohlk", on_pixels, isometry).flatten(1)
    return reached, -torch.einsum("olp,l->o", on_pixels, norm.mean.double())


def _offsets(head: SteerableConv) -> Tensor:
    offsets = head.channel_bias()
    return torch.zeros(head.out_dim * head.out_count, device=head.weight.device) if offsets is None else offsets
