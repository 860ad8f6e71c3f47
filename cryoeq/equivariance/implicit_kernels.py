"""Steerable kernels from an equivariant perceptron of the place in the filter, and of the particle's CTF where wanted.

Zhdanov, Hoffmann and Cesa 2023, Implicit convolutional kernels for steerable CNNs (arXiv 2212.06096), section 4: K(gx)
= rho_out(g) K(x) rho_in(g)^-1 says that K is an equivariant map from places to matrices, so any equivariant network is
one. A quantity z that turns with the image, K(x, z), changes nothing in that.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.convolution import SteerableConv
from cryoeq.equivariance.fields import FieldKind, Fourier, Restricted, delta, is_values, sampling_matrix
from cryoeq.equivariance.groups import PlaneGroup, plane_group
from cryoeq.equivariance.nonlinearity import disc

_WIDTH = 8
_MOST_KERNELS, _MOST_FIELDS = 64, 16
_INNER_FREQUENCY = 4
_SAMPLES = 32
"""Rotations at which the perceptron's functions on so2 and o2 are evaluated."""


class ImplicitBasis(nn.Module):
    """A kernel basis with parameters: a perceptron of the filter's pixels, the same in training and evaluation.

    Places enter as Gaussian rings times circular harmonics. Hidden features are functions on the group, at one pixel
    each, with ELU on their values: exact for finite groups; for so2 and o2 as exact as ``_SAMPLES`` samples are. A last
    function h gives the kernels K(x) = sum over g of h(x)(g) rho_out(g) E rho_in(g)^-1 for matrix units E.

    Args:
        group: the group.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side in pixels.
        conditioned: kernels also depend on a scalar and on a vector of angular frequency 2.
    """

    places: Tensor
    waves: Tensor
    expansion: Tensor
    scale: Tensor
    values: Tensor | None
    coefficients: Tensor | None

    def __init__(
        self, group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, size: int, *, conditioned: bool = False
    ) -> None:
        super().__init__()
        self.size, self.is_conditioned, self.is_windowed = size, conditioned, not group.is_grid_exact and size > 1
        highest = max(2 if conditioned else 0, min(size // 2, 3))
        circle = Fourier(highest, "d1")
        self.register_buffer("places", _places(circle, size), persistent=False)
        self.register_buffer("waves", _wave_columns(circle), persistent=False)
        inner: FieldKind = Fourier(_INNER_FREQUENCY) if group.is_continuous else "regular"
        expansion = _expansion(group, in_kind, out_kind, inner)
        self.register_buffer("expansion", expansion.to(torch.get_default_dtype()), persistent=False)
        fields = min(_MOST_FIELDS, max(1, _MOST_KERNELS // len(expansion)))
        self.count = fields * len(expansion)
        seen = (self.places.shape[1] + conditioned, Restricted("o2", circle))
        self.layers = nn.ModuleList([
            SteerableConv(group, seen, (_WIDTH, inner), bias=True),
            SteerableConv(group, (_WIDTH, inner), (_WIDTH, inner), bias=True),
            SteerableConv(group, (_WIDTH, inner), (fields, inner)),
        ])  # fmt: skip
        sampled = None if is_values(group.name, inner) else sampling_matrix(group.name, inner, _SAMPLES)
        self.register_buffer("values", sampled, persistent=False)
        inverse = None if sampled is None else torch.linalg.pinv(sampled)
        self.register_buffer("coefficients", inverse, persistent=False)
        self.register_buffer("scale", torch.ones(self.count, 1, 1, 1, 1))
        self.scale.copy_(self._first_scale())

    def forward(self, condition: Float[Tensor, "batch 3"] | None = None) -> Float[Tensor, "*batch basis out in s s"]:
        """The kernels, one set for each row of the condition where there is one.

        Args:
            condition: a scalar, and a vector that turns twice as fast as the image.
        """
        functions = self._functions(condition)
        kernels = torch.einsum("eoig,zcgyx->zceoiyx", self.expansion, functions).flatten(1, 2) * self.scale
        if self.is_windowed:
            kernels = kernels * disc(self.size, kernels)
        return kernels if self.is_conditioned else kernels[0]

    def _functions(self, condition: Tensor | None) -> Tensor:
        """The last functions on the group at each pixel, (batch, field, component, y, x)."""
        maps = self.places[None]
        if self.is_conditioned:
            told = self.places.new_zeros(1, 3) if condition is None else condition
            spread = (told @ self.waves)[:, :, None, None, None].expand(-1, -1, 1, self.size, self.size)
            maps = torch.cat([maps.expand(len(told), -1, -1, -1, -1), spread], 2)
        features = self.layers[0](maps.flatten(1, 2))
        for layer in list(self.layers)[1:]:
            features = layer(self._activate(features))
        fields = self.count // len(self.expansion)
        return features.unflatten(1, (-1, fields)).transpose(1, 2)

    def _activate(self, features: Tensor) -> Tensor:
        """ELU on values on the group."""
        if self.values is None or self.coefficients is None:
            return F.elu(features)
        by_component = features.unflatten(1, (-1, _WIDTH))
        values = F.elu(torch.einsum("sc,zcfyx->zsfyx", self.values, by_component))
        return torch.einsum("cs,zsfyx->zcfyx", self.coefficients, values).flatten(1, 2)

    @torch.no_grad()
    def _first_scale(self) -> Tensor:
        """For kernels that keep the variance of white noise, as the analytic ones do, before they have learnt."""
        kernels = self()
        drawn = (kernels[0] if self.is_conditioned else kernels).flatten(1)
        # Some are nearly forbidden by symmetry: brought to the norm of the others, their rounding would count.
        norms = drawn.norm(dim=1).clamp(min=0.1 * float(drawn.norm(dim=1).max()))
        return (math.sqrt(self.expansion.shape[1]) / norms).view(-1, 1, 1, 1, 1)


class ConditionedConv(nn.Module):
    """A steerable convolution whose filters are each image's own; turning image and condition turns the output.

    Args:
        group: the group.
        in_fields: number and kind of the input's fields.
        out_fields: number and kind of the output's fields.
        kernel_size: odd side of the filters in pixels.
        stride: 1 or 2; with 2 the input must have an odd side.
        is_whole: the filter is as large as the map and stands at its centre only.
    """

    def __init__(
        self,
        group: PlaneGroup,
        in_fields: tuple[int, FieldKind],
        out_fields: tuple[int, FieldKind],
        kernel_size: int,
        *,
        stride: int = 1,
        is_whole: bool = False,
    ) -> None:
        super().__init__()
        self.in_count, self.out_count = in_fields[0], out_fields[0]
        self.kernel_size, self.stride, self.is_whole = kernel_size, stride, is_whole
        self.basis = ImplicitBasis(group, in_fields[1], out_fields[1], kernel_size, conditioned=True)
        fan = self.in_count * self.basis.count
        self.weight = nn.Parameter(torch.randn(self.out_count, self.in_count, self.basis.count) / math.sqrt(fan))

    def forward(
        self, maps: Float[Tensor, "batch in h w"], condition: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch out h2 w2"]:
        """The filtered maps, zero beyond their edges.

        Raises:
            ValueError: stride 2 on maps of even side.
        """
        if self.stride == 2 and maps.shape[-1] % 2 == 0:
            raise ValueError(f"a map of {maps.shape[-1]} px under stride 2 loses equivariance: its side must be odd")
        kernels = self.basis(condition)
        fields = maps.unflatten(1, (-1, self.in_count)).transpose(1, 2)
        # The kernels are shared by all channels: they come first, the coefficients after.
        if self.is_whole:
            responses = torch.einsum("znoiyx,zfiyx->zfno", kernels, fields)[..., None, None]
        else:
            responses = self._respond(kernels, fields)
        return torch.einsum("cfn,zfnoyx->zocyx", self.weight, responses).flatten(1, 2)

    def _respond(self, kernels: Tensor, fields: Tensor) -> Tensor:
        """Each image's fields through each of its kernels, (batch, field, kernel, component, y, x)."""
        batch, count, out = kernels.shape[:3]
        each = kernels[:, None].expand(-1, self.in_count, *kernels.shape[1:]).flatten(0, 3)
        groups = batch * self.in_count
        stacked = fields.reshape(1, -1, *fields.shape[-2:])
        found = F.conv2d(stacked, each, stride=self.stride, padding=self.kernel_size // 2, groups=groups)
        return found.view(batch, self.in_count, count, out, *found.shape[-2:])


def _expansion(group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, inner: FieldKind) -> Tensor:
    """What each component of a function on the group contributes to each kernel: (E, out, in, component).

    Where a side holds values on the group, the matrix units of one of its rows or columns serve: elements permute it.
    """
    elements = group.elements(grid_exact=False, rotations=_SAMPLES)
    peak = torch.from_numpy(delta(group.name, inner))
    places = torch.stack([group.action(inner, g) @ peak for g in elements])
    outs = torch.stack([group.action(out_kind, g) for g in elements])
    ins = torch.stack([group.action(in_kind, g) for g in elements])
    if is_values(group.name, in_kind):
        ins = ins[:, :, :1]
    elif is_values(group.name, out_kind):
        outs = outs[:, :, :1]
    return torch.einsum("goa,gib,gc->aboic", outs, ins, places).flatten(0, 1) / len(elements)


def _places(circle: Fourier, size: int) -> Tensor:
    """Gaussian rings times circular harmonics at the filter's pixels, (component, ring, y, x)."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (offsets[:, None].square() + offsets.square()).sqrt()
    angle = torch.atan2(offsets[:, None].expand(size, size), offsets.expand(size, size))
    angles, which = angle.flatten().unique(return_inverse=True)
    waves = torch.stack([_wave(circle, float(a)) for a in angles])[which].T.view(-1, size, size)
    rings = torch.stack([torch.exp(-0.5 * ((radius - ring) / 0.6).square()) for ring in range(size // 2 + 1)])
    # A ring of radius r has no room for more than 2 r periods; at the centre there is no angle at all.
    frequency = torch.tensor([0, *(m for k in range(1, circle.frequency + 1) for m in (k, k))])
    fits = frequency[:, None] <= 2 * torch.arange(len(rings))
    fields = waves[:, None] * rings * fits[..., None, None]
    return torch.where((radius == 0) & (frequency > 0)[:, None, None, None], 0.0, fields).to(torch.get_default_dtype())


def _wave(circle: Fourier, angle_rad: float) -> Tensor:
    """Coefficients of the function on the circle that is concentrated in a direction, in our axes."""
    group, kind = plane_group("o2"), circle
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    turn = group.action(kind, torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    mirror = group.action(kind, torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))
    # Each irrep has one direction that the mirror along x leaves alone.
    kept = (torch.eye(len(mirror), dtype=torch.float64) + mirror) / 2
    blocks = [slice(0, 1), *(slice(2 * k - 1, 2 * k + 1) for k in range(1, circle.frequency + 1))]
    still = torch.zeros(len(mirror), dtype=torch.float64)
    for block in blocks:
        column = kept[block, block].norm(dim=0).argmax()
        vector = kept[block, block][:, column]
        still[block] = vector / vector.norm()
    return turn @ still


def _wave_columns(circle: Fourier) -> Tensor:
    """From (scalar, x, y of a vector that turns twice as fast as the image) to a field on the circle."""
    size = 2 * circle.frequency + 1
    columns = torch.zeros(3, size, dtype=torch.float64)
    columns[0, 0] = 1.0
    if circle.frequency >= 2:
        columns[1, 3:5] = _wave(circle, 0.0)[3:5]
        columns[2, 3:5] = _wave(circle, math.pi / 4)[3:5]
    return columns.to(torch.get_default_dtype())
