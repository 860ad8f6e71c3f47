"""Implicit steerable kernels: an equivariant perceptron of the position in the filter, and optionally of the CTF.

The constraint on steerable kernels::

    K(gx) = rho_out(g) K(x) rho_in(g)^-1

says that K is an equivariant map from positions to matrices, so any equivariant network gives one. The same holds for
K(x, z) with a further argument z, such as the CTF, that rotates with the image.

Zhdanov, Hoffmann and Cesa 2023, Implicit convolutional kernels for steerable CNNs (arXiv 2212.06096), section 4.
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
_MAX_KERNELS, _MAX_FIELDS = 64, 16
_INNER_FREQUENCY = 4
_SAMPLES = 32
"""Rotations at which the perceptron's functions on so2 and o2 are evaluated."""


class ImplicitBasis(nn.Module):
    """A kernel basis with parameters: a perceptron of the filter's pixels, the same in training and evaluation.

    Positions enter as Gaussian rings times circular harmonics. Hidden features are functions on the group, at one pixel
    each, with ELU on their values: exact for finite groups; for so2 and o2 up to the error of ``_SAMPLES`` samples. The
    last of these functions, h, gives a kernel for each matrix unit E::

        K(x) = sum_g h(x)(g) rho_out(g) E rho_in(g)^-1

    Args:
        group: symmetry group of the layer.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side of the kernels in pixels.
        conditioned: whether kernels also depend on CTF features: a scalar, and a vector of angular frequency 2.
    """

    positions: Tensor
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
        self.register_buffer("positions", _position_features(circle, size), persistent=False)
        self.register_buffer("waves", _wave_columns(circle), persistent=False)
        inner: FieldKind = Fourier(_INNER_FREQUENCY) if group.is_continuous else "regular"
        expansion = _expansion(group, in_kind, out_kind, inner)
        self.register_buffer("expansion", expansion.to(torch.get_default_dtype()), persistent=False)
        fields = min(_MAX_FIELDS, max(1, _MAX_KERNELS // len(expansion)))
        self.count = fields * len(expansion)
        in_fields = (self.positions.shape[1] + conditioned, Restricted("o2", circle))
        self.layers = nn.ModuleList([
            SteerableConv(group, in_fields, (_WIDTH, inner), bias=True),
            SteerableConv(group, (_WIDTH, inner), (_WIDTH, inner), bias=True),
            SteerableConv(group, (_WIDTH, inner), (fields, inner)),
        ])  # fmt: skip
        sampled = None if is_values(group.name, inner) else sampling_matrix(group.name, inner, _SAMPLES)
        self.register_buffer("values", sampled, persistent=False)
        inverse = None if sampled is None else torch.linalg.pinv(sampled)
        self.register_buffer("coefficients", inverse, persistent=False)
        self.register_buffer("scale", torch.ones(self.count, 1, 1, 1, 1))
        self.scale.copy_(self._first_scale())

    def forward(self, ctf_features: Float[Tensor, "batch 3"] | None = None) -> Float[Tensor, "*batch basis out in s s"]:
        """The kernels, one set per particle where they are conditioned.

        Args:
            ctf_features: scalar of each particle, and a vector that rotates twice as fast as the image.
        """
        functions = self._functions(ctf_features)
        kernels = torch.einsum("eoig,zcgyx->zceoiyx", self.expansion, functions).flatten(1, 2) * self.scale
        if self.is_windowed:
            kernels = kernels * disc(self.size, kernels)
        return kernels if self.is_conditioned else kernels[0]

    def _functions(self, ctf_features: Tensor | None) -> Tensor:
        """The last functions on the group at each pixel, (batch, field, component, y, x)."""
        maps = self.positions[None]
        if self.is_conditioned:
            given = self.positions.new_zeros(1, 3) if ctf_features is None else ctf_features
            repeated = (given @ self.waves)[:, :, None, None, None].expand(-1, -1, 1, self.size, self.size)
            maps = torch.cat([maps.expand(len(given), -1, -1, -1, -1), repeated], 2)
        features = self.layers[0](maps.flatten(1, 2))
        for layer in list(self.layers)[1:]:
            features = layer(self._activate(features))
        fields = self.count // len(self.expansion)
        return features.unflatten(1, (-1, fields)).transpose(1, 2)

    def _activate(self, features: Tensor) -> Tensor:
        """ELU on the values of functions on the group."""
        if self.values is None or self.coefficients is None:
            return F.elu(features)
        by_component = features.unflatten(1, (-1, _WIDTH))
        values = F.elu(torch.einsum("sc,zcfyx->zsfyx", self.values, by_component))
        return torch.einsum("cs,zsfyx->zcfyx", self.coefficients, values).flatten(1, 2)

    @torch.no_grad()
    def _first_scale(self) -> Tensor:
        """Scale with which untrained kernels keep the variance of white noise, as the analytic ones do."""
        kernels = self()
        untrained = (kernels[0] if self.is_conditioned else kernels).flatten(1)
        # Some are nearly forbidden by symmetry: scaled to the norm of the others, they would amplify their rounding.
        norms = untrained.norm(dim=1).clamp(min=0.1 * float(untrained.norm(dim=1).max()))
        return (math.sqrt(self.expansion.shape[1]) / norms).view(-1, 1, 1, 1, 1)


class ConditionedConv(nn.Module):
    """A steerable convolution whose filters depend on each particle's CTF; it commutes with rotating image and CTF.

    Args:
        group: symmetry group of the layer.
        in_fields: number and kind of the input's fields.
        out_fields: number and kind of the output's fields.
        kernel_size: odd side of the filters in pixels.
        stride: step of the filter in pixels, 1 or 2; with 2 the input must have an odd side.
        is_whole: whether the filter is as large as the map, and is evaluated at the central pixel only.
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
        self, maps: Float[Tensor, "batch in h w"], ctf_features: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch out h2 w2"]:
        """The filtered maps, zero beyond their edges.

        Raises:
            ValueError: stride 2 on maps of even side.
        """
        if self.stride == 2 and maps.shape[-1] % 2 == 0:
            raise ValueError(f"a map of {maps.shape[-1]} px under stride 2 loses equivariance: its side must be odd")
        kernels = self.basis(ctf_features)
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
        repeated = kernels[:, None].expand(-1, self.in_count, *kernels.shape[1:]).flatten(0, 3)
        groups = batch * self.in_count
        stacked = fields.reshape(1, -1, *fields.shape[-2:])
        filtered = F.conv2d(stacked, repeated, stride=self.stride, padding=self.kernel_size // 2, groups=groups)
        return filtered.view(batch, self.in_count, count, out, *filtered.shape[-2:])


def _expansion(group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, inner: FieldKind) -> Tensor:
    """Contribution of each component of a function on the group to each kernel, (E, out, in, component).

    Where input or output holds values on the group, the matrix units of one row or column suffice: elements permute it.
    """
    elements = group.elements(grid_exact=False, rotations=_SAMPLES)
    peak = torch.from_numpy(delta(group.name, inner))
    peaks = torch.stack([group.action(inner, g) @ peak for g in elements])
    outs = torch.stack([group.action(out_kind, g) for g in elements])
    ins = torch.stack([group.action(in_kind, g) for g in elements])
    if is_values(group.name, in_kind):
        ins = ins[:, :, :1]
    elif is_values(group.name, out_kind):
        outs = outs[:, :, :1]
    return torch.einsum("goa,gib,gc->aboic", outs, ins, peaks).flatten(0, 1) / len(elements)


def _position_features(circle: Fourier, size: int) -> Tensor:
    """Gaussian rings times circular harmonics at the filter's pixels, (component, ring, y, x)."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (offsets[:, None].square() + offsets.square()).sqrt()
    angle = torch.atan2(offsets[:, None].expand(size, size), offsets.expand(size, size))
    angles, inverse = angle.flatten().unique(return_inverse=True)
    waves = torch.stack([_wave(circle, float(a)) for a in angles])[inverse].T.view(-1, size, size)
    rings = torch.stack([torch.exp(-0.5 * ((radius - ring) / 0.6).square()) for ring in range(size // 2 + 1)])
    # A ring of radius r holds 2 r periods at most; at the centre the angle is undefined.
    frequency = torch.tensor([0, *(m for k in range(1, circle.frequency + 1) for m in (k, k))])
    fits = frequency[:, None] <= 2 * torch.arange(len(rings))
    fields = waves[:, None] * rings * fits[..., None, None]
    return torch.where((radius == 0) & (frequency > 0)[:, None, None, None], 0.0, fields).to(torch.get_default_dtype())


def _wave(circle: Fourier, angle_rad: float) -> Tensor:
    """Coefficients of the function on the circle that is concentrated in a direction, y downwards."""
    group, kind = plane_group("o2"), circle
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    rotation = group.action(kind, torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    mirror = group.action(kind, torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))
    # Each irrep has one direction that the mirror along x does not change.
    projector = (torch.eye(len(mirror), dtype=torch.float64) + mirror) / 2
    blocks = [slice(0, 1), *(slice(2 * k - 1, 2 * k + 1) for k in range(1, circle.frequency + 1))]
    invariant = torch.zeros(len(mirror), dtype=torch.float64)
    for block in blocks:
        column = projector[block, block].norm(dim=0).argmax()
        vector = projector[block, block][:, column]
        invariant[block] = vector / vector.norm()
    return rotation @ invariant


def _wave_columns(circle: Fourier) -> Tensor:
    """Matrix from (scalar, x, y of a vector that rotates twice as fast as the image) to a field on the circle."""
    size = 2 * circle.frequency + 1
    columns = torch.zeros(3, size, dtype=torch.float64)
    columns[0, 0] = 1.0
    if circle.frequency >= 2:
        columns[1, 3:5] = _wave(circle, 0.0)[3:5]
        columns[2, 3:5] = _wave(circle, math.pi / 4)[3:5]
    return columns.to(torch.get_default_dtype())
