"""Steerable perceptron: linear maps on the orbits of pixels, block-diagonal in the irreps of the group.

It is the same family of functions as a convolution with one filter as large as the image, followed by layers at one
pixel, for groups that map the pixel grid to itself. But no filter is expanded: an image is its values along the orbit
of each pixel, functions on the group, and a linear map between functions on the group decomposes into one small matrix
per irrep (Schur's lemma). For d4 that is 12 products of fields where expanded filters take 64.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryoeq.equivariance.groups import PlaneGroup, RegularRepresentation
from cryoeq.equivariance.nonlinearity import FieldActivation


class SteerablePerceptron(nn.Module):
    """Layers from images to hidden fields at their centre, with f(g.I) = rho(g) f(I).

    Args:
        group: a group that maps the pixel grid to itself.
        levels: number of images per particle: itself and its low-passes.
        size_px: odd side of the images in pixels.
        fields: number of hidden fields of each layer.
        depth: number of linear maps, each followed by an activation.
    """

    def __init__(self, group: PlaneGroup, levels: int, size_px: int, fields: int, depth: int = 3) -> None:
        super().__init__()
        self.fields = fields
        representation = group.regular_representation()
        self.lift = PixelOrbits(representation, size_px)
        counts = [levels * self.lift.count] + [fields] * depth
        linears = [GroupLinear(representation, *pair) for pair in pairwise(counts)]
        self.layers = nn.ModuleList(_Layer(linear, FieldActivation(group, fields)) for linear in linears)

    def forward(self, images: Float[Tensor, "batch levels n n"]) -> Float[Tensor, "batch channels 1 1"]:
        """The fields, channels ordered (component, field)."""
        values: Tensor = self.lift(images)
        for layer in self.layers:
            values = layer(values)
        return values.transpose(0, 1).flatten(1)[:, :, None, None]

    @torch.no_grad()
    def init_filters_from(self, images: Float[Tensor, "fields levels n n"]) -> None:
        """Initialise the first layer with matched filters: the value of a field is the product with its template.

        Args:
            images: template of each field, of any scale.
        """
        self.blocks()[0][0].init_filters_from(self.lift(images))

    def blocks(self) -> "list[tuple[GroupLinear, FieldActivation]]":
        """Linear map and activation of each layer."""
        return [(layer.linear, layer.activation) for layer in self.layers if isinstance(layer, _Layer)]


class _Layer(nn.Module):
    """A linear map, batch norm and nonlinearity."""

    def __init__(self, linear: "GroupLinear", activation: FieldActivation) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, values: Float[Tensor, "order batch in"]) -> Float[Tensor, "order batch out"]:
        mapped: Tensor = self.linear(values)
        return self.activation.on_values(mapped.flatten(0, 1)).view(mapped.shape)


class PixelOrbits(nn.Module):
    """Images as functions on the group, one for each orbit of pixels: h -> I(h p).

    Pixels that some elements do not move appear several times in their orbit, and have a smaller weight there.

    Args:
        representation: regular representation of the group.
        size_px: odd side of the images in pixels.
    """

    pixels: Tensor
    weights: Tensor

    def __init__(self, representation: RegularRepresentation, size_px: int) -> None:
        super().__init__()
        self.size_px, middle = size_px, size_px // 2
        axis = torch.arange(-middle, middle + 1, dtype=torch.float64)
        pixels = torch.cartesian_prod(axis, axis).flip(1)  # (x, y) of each pixel in the order of its index
        moved = torch.einsum("hij,pj->hpi", representation.elements, pixels).round().long() + middle
        index = moved[..., 1] * size_px + moved[..., 0]
        first = index.amin(0) == torch.arange(size_px**2)  # one pixel represents its orbit
        orbits = index[:, first]
        sizes = torch.tensor([len(set(orbit)) for orbit in orbits.T.tolist()])
        self.register_buffer("pixels", orbits, persistent=False)
        self.register_buffer("weights", (sizes / len(index)).sqrt().to(torch.get_default_dtype()), persistent=False)

    @property
    def count(self) -> int:
        """Number of orbits of one image."""
        return self.pixels.shape[1]

    def forward(self, images: Float[Tensor, "batch levels n n"]) -> Float[Tensor, "order batch fields"]:
        """Values along the orbits; fields ordered (level, orbit)."""
        values = images.flatten(2)[:, :, self.pixels] * self.weights
        return values.permute(2, 0, 1, 3).flatten(2)


class GroupLinear(nn.Module):
    """Any linear map between functions on a finite group that commutes with it.

    Args:
        representation: regular representation of the group.
        in_count: number of input functions per particle.
        out_count: number of output functions per particle.
    """

    change: Tensor
    back: Tensor

    def __init__(self, representation: RegularRepresentation, in_count: int, out_count: int) -> None:
        super().__init__()
        self.in_count = in_count
        self.register_buffer("change", representation.change.to(torch.get_default_dtype()), persistent=False)
        self.irreps = nn.ModuleList(
            (_ComplexLinear if is_complex else _RealLinear)(columns, in_count, out_count)
            for columns, is_complex in zip(representation.columns, representation.is_complex, strict=True)
        )
        indices = torch.cat([block.indices for block in self._blocks()])
        self.register_buffer("back", self.change[:, indices], persistent=False)

    def forward(self, values: Float[Tensor, "order batch in"]) -> Float[Tensor, "order batch out"]:
        """The output functions."""
        spectrum = (self.change.T @ values.flatten(1)).view(values.shape)
        mapped = torch.cat([irrep(spectrum) for irrep in self.irreps])
        return (self.back @ mapped.flatten(1)).view(mapped.shape)

    @torch.no_grad()
    def matrix(self) -> Float[Tensor, "order_out order_in"]:
        """The whole map, functions ordered (element, field)."""
        order, count = len(self.change), self.in_count
        unit = torch.eye(order * count).to(self.change)
        columns: Tensor = self(unit.view(-1, order, count).transpose(0, 1))
        return columns.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def init_filters_from(self, templates: Float[Tensor, "order out in"]) -> None:
        """Set the map whose output at the identity is the product with a template, for each output function.

        Args:
            templates: functions on the group; they are scaled so that white noise keeps its variance.
        """
        scaled = templates / templates.square().mean((0, 2), keepdim=True).sqrt().clamp(min=1e-12)
        spectrum = (self.change.T @ scaled.flatten(1)).view(scaled.shape) / math.sqrt(scaled.shape[2] * len(scaled))
        for block in self._blocks():
            block.init_filters_from(spectrum, self.change[0])

    def _blocks(self) -> "list[_RealLinear | _ComplexLinear]":
        return [block for block in self.irreps if isinstance(block, _RealLinear | _ComplexLinear)]


class _RealLinear(nn.Module):
    """The block of an irrep of real type: one matrix mixes its copies, the same for each of its dimensions."""

    indices: Tensor

    def __init__(self, columns: tuple[int, ...], in_count: int, out_count: int) -> None:
        super().__init__()
        self.dim = math.isqrt(len(columns))  # the multiplicity in the regular representation is the dimension
        by_copy: Int[Tensor, "copies dim"] = torch.tensor(columns).view(self.dim, self.dim)
        self.register_buffer("indices", by_copy.T.flatten(), persistent=False)
        fan = self.dim * in_count
        self.weight = nn.Parameter(torch.randn(fan, self.dim * out_count) / math.sqrt(fan))

    def forward(self, spectrum: Float[Tensor, "order batch in"]) -> Float[Tensor, "block batch out"]:
        dim, batch = self.dim, spectrum.shape[1]
        rows = spectrum[self.indices].view(dim, dim, batch, -1).transpose(1, 2).reshape(dim * batch, -1)
        return (rows @ self.weight).view(dim, batch, dim, -1).transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def init_filters_from(self, spectrum: Float[Tensor, "order out in"], at_identity: Float[Tensor, " order"]) -> None:
        dim, (out, count) = self.dim, spectrum.shape[1:]
        values = at_identity[self.indices].view(dim, dim)  # (dimension, copy)
        targets = spectrum[self.indices].view(dim, dim, out, count)  # (dimension, copy of the input)
        weight = torch.einsum("cd,dpfn->pncf", torch.linalg.inv(values), targets)
        self.weight.copy_(weight.reshape(dim * count, dim * out))


class _ComplexLinear(nn.Module):
    """The block of an irrep of complex type in two dimensions: a product with a complex matrix."""

    indices: Tensor

    def __init__(self, columns: tuple[int, ...], in_count: int, out_count: int) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(columns), persistent=False)
        self.real = nn.Parameter(torch.randn(in_count, out_count) / math.sqrt(2 * in_count))
        self.imag = nn.Parameter(torch.randn(in_count, out_count) / math.sqrt(2 * in_count))

    def forward(self, spectrum: Float[Tensor, "order batch in"]) -> Float[Tensor, "block batch out"]:
        rows = spectrum[self.indices].transpose(0, 1).flatten(1)
        weight = torch.cat([torch.cat([self.real, self.imag], 1), torch.cat([-self.imag, self.real], 1)])
        return (rows @ weight).view(len(rows), 2, -1).transpose(0, 1)

    @torch.no_grad()
    def init_filters_from(self, spectrum: Float[Tensor, "order out in"], at_identity: Float[Tensor, " order"]) -> None:
        (first, second), (x, y) = at_identity[self.indices], spectrum[self.indices].transpose(1, 2)
        squared = first.square() + second.square()
        self.real.copy_((first * x + second * y) / squared)
        self.imag.copy_((second * x - first * y) / squared)
