"""Laws of every steerable layer, f(g.I) = rho(g) f(I) above all; a new block is one line of ``BLOCKS``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from cryoeq.equivariance import (
    GROUP_NAMES,
    AdaptiveSampler,
    BlockDesign,
    ConditionedConv,
    FieldActivation,
    FieldKind,
    Fourier,
    ImplicitBasis,
    Irrep,
    IrrepActivation,
    Irreps,
    PlaneGroup,
    Product,
    Quotient,
    Restricted,
    SteerableBlock,
    SteerableConv,
    UniformSampler,
    plane_group,
    steerable_kernels,
)
from cryoeq.equivariance.groups import permute_pixels

FINITE = tuple(name for name in GROUP_NAMES if name not in ("so2", "o2"))
SIZE = 9


@dataclass(frozen=True)
class Block:
    """One implementation: the groups it serves, the fields it makes, and the block itself."""

    name: str
    groups: tuple[str, ...]
    kind: FieldKind
    build: Callable[[PlaneGroup], SteerableBlock]


def scalar_to(kind: FieldKind, activation: Callable[[PlaneGroup, FieldKind], nn.Module]) -> Block:
    """An ordinary block on images, with two fields."""
    return Block(
        "", (), kind,
        lambda group: SteerableBlock(
            SteerableConv(group, (2, "scalar"), (FIELDS, kind), 3), activation(group, kind)
        ),
    )  # fmt: skip


def on_values(group: PlaneGroup, kind: FieldKind) -> nn.Module:
    return FieldActivation(group, FIELDS, kind=kind)


def by_norm(group: PlaneGroup, kind: FieldKind) -> nn.Module:
    return IrrepActivation(group, FIELDS, kind, gate="norm")


def by_gate(group: PlaneGroup, kind: FieldKind) -> nn.Module:
    return IrrepActivation(group, FIELDS, kind, gate="gated")


def line(name: str, groups: tuple[str, ...], block: Block) -> Block:
    return Block(name, groups, block.kind, block.build)


FIELDS = 3
EVEN = ("c2", "c4", "c8", "c16", "d2", "d4", "d8", "d16")
MIRRORED = ("d2", "d4", "d8", "d16")
BLOCKS = (
    line("hidden, pointwise", GROUP_NAMES, scalar_to("hidden", on_values)),
    line("trivial, pointwise", GROUP_NAMES, scalar_to("scalar", on_values)),
    line("quotient, pointwise", EVEN, scalar_to(Quotient("c2"), on_values)),
    line("mirror quotient, pointwise", MIRRORED, scalar_to(Quotient("d1"), on_values)),
    line("band-limited regular, Fourier", GROUP_NAMES, scalar_to(Fourier(1), on_values)),
    line("band-limited quotient, Fourier", ("d4", "d16", "o2"), scalar_to(Fourier(2, "d1"), on_values)),
    line("irreps, norm", GROUP_NAMES, scalar_to(Irreps(2), by_norm)),
    line("irreps, gated", GROUP_NAMES, scalar_to(Irreps(2), by_gate)),
    line("hidden, gated", GROUP_NAMES, scalar_to("hidden", by_gate)),
    line(
        "hidden, implicit kernels",
        GROUP_NAMES,
        Block("", (), "hidden", lambda g: BlockDesign(g, "implicit").block((2, "scalar"), FIELDS, 3)),
    ),
    line("vectors, norm", ("c4", "d4", "so2", "o2"), scalar_to("vector", by_norm)),
)
CASES = [
    pytest.param(block, name, id=f"{block.name}, {name}") for block in BLOCKS for name in block.groups
]  # fmt: skip


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def act(group: PlaneGroup, kind: FieldKind, g: Tensor, maps: Tensor) -> Tensor:
    """The transformed map of fields: pixels move, components mix; channels are (component, field)."""
    matrix = group.action(kind, g).to(maps)
    by_component = permute_pixels(maps, g).unflatten(1, (len(matrix), -1))
    return torch.einsum("ab,nbfhw->nafhw", matrix, by_component).flatten(1, 2)


def largest_error(block: Block, name: str, generator: torch.Generator) -> float:
    """Relative, over all elements that the grid serves exactly, in training."""
    group = plane_group(name)
    torch.manual_seed(0)
    layer = block.build(group)
    maps = torch.randn(2, 2, SIZE, SIZE, generator=generator).to(torch.get_default_dtype())
    reference = layer(maps).detach()
    assert reference.abs().max() > 0.1, "a layer of zeros obeys every law"
    errors = [
        (layer(act(group, "scalar", g, maps)).detach() - act(group, block.kind, g, reference)).abs().max()
        for g in group.elements()
    ]
    return float(torch.stack(errors).max() / reference.abs().max())


@pytest.mark.parametrize(("block", "name"), CASES)
def test_the_block_turns_with_its_input(block: Block, name: str, generator: torch.Generator) -> None:
    assert largest_error(block, name, generator) < 5e-6


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("block", "name"), CASES)
def test_the_block_turns_exactly_in_double_precision(block: Block, name: str, generator: torch.Generator) -> None:
    assert largest_error(block, name, generator) < 1e-9


@pytest.mark.parametrize(("block", "name"), [case for case in CASES if case.values[1] in ("c1", "d4", "o2")])
def test_a_fresh_block_with_the_same_state_gives_the_same(
    block: Block, name: str, generator: torch.Generator
) -> None:  # fmt: skip
    maps = torch.randn(2, 2, SIZE, SIZE, generator=generator)
    layer = block.build(plane_group(name))
    layer(maps)
    fresh = block.build(plane_group(name))
    fresh.load_state_dict(layer.state_dict(), strict=True)
    torch.testing.assert_close(fresh.eval()(maps), layer.eval()(maps), atol=0, rtol=0)


@pytest.mark.parametrize(("block", "name"), [case for case in CASES if case.values[1] in ("c1", "d4", "o2")])
def test_every_parameter_of_the_block_learns(block: Block, name: str, generator: torch.Generator) -> None:
    layer = block.build(plane_group(name))
    loss = layer(torch.randn(4, 2, SIZE, SIZE, generator=generator)).square().mean()
    (loss + layer(torch.randn(4, 2, SIZE, SIZE, generator=generator)).sum()).backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.numel() == 0 or parameter.grad.abs().max() > 0, key


PAIRS: tuple[tuple[FieldKind, FieldKind], ...] = (
    ("scalar", "hidden"),
    ("hidden", "hidden"),
    ("hidden", "vector"),
    ("vector", Irreps(2)),
    (Irreps(1), "determinant"),
    (Fourier(1), "scalar"),
    ("scalar", Product(Irrep(1), "vector")),
)


@pytest.mark.parametrize(
    ("name", "pair"),
    [pytest.param(name, pair, id=f"{name}, {pair}") for name in GROUP_NAMES for pair in PAIRS],
)
def test_kernels_obey_the_constraint(name: str, pair: tuple[FieldKind, FieldKind]) -> None:
    """K(gx) = rho_out(g) K(x) rho_in(g)^-1 at every pixel, for the elements that map pixels to pixels."""
    group = plane_group(name)
    kernels = steerable_kernels(group, *pair, 5).double()
    for g in group.elements():
        matrices = [group.action(kind, g) for kind in pair]
        rotated = torch.einsum("ab,kbchw,dc->kadhw", matrices[1], permute_pixels(kernels, g), matrices[0])
        torch.testing.assert_close(rotated, kernels, atol=1e-6, rtol=0)


HIGHEST = {1: (0,), 3: (0, 2), 5: (0, 2, 2)}
"""Highest harmonic of each ring, by side of the filter."""


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(
    ("name", "in_kind", "out_kind"),
    [
        *((name, "scalar", "hidden") for name in GROUP_NAMES),
        *((name, "hidden", "hidden") for name in ("c2", "c4", "c8", "d1", "d2", "d4", "d8", "d16", "so2", "o2")),
        *(("so2", Irrep(m), Irrep(n)) for m, n in ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 0))),
        *(("o2", Irrep(m), Irrep(n)) for m, n in ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))),
        *(("o2", Irrep(0), "determinant"), ("o2", "vector", "determinant"), ("d4", Irrep(2, True), "vector")),
        *(("d4", Quotient("d1"), "hidden"), ("d8", Irreps(2), "vector"), ("c16", Fourier(2), Irreps(1))),
        *(("d4", Restricted("o2", "hidden"), "vector"), ("c8", Restricted("so2", Irrep(3)), "scalar")),
    ],
    ids=str,
)  # fmt: skip
def test_number_of_kernels_is_that_of_the_theory(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> None:
    """Per ring, how often the trivial representation is in (harmonics of the ring) x in x out, by characters."""
    group = plane_group(name)
    kernels = steerable_kernels(group, in_kind, out_kind, size)
    elements = group.elements(grid_exact=False, rotations=32)
    fields = [torch.stack([group.action(kind, g).trace() for g in elements]) for kind in (in_kind, out_kind)]
    angles = torch.atan2(elements[:, 1, 0], elements[:, 0, 0])
    is_mirror = torch.linalg.det(elements) < 0
    expected = 0.0
    for highest in HIGHEST[size]:
        waves = 1 + sum((2 * (m * angles).cos() for m in range(1, highest + 1)), torch.zeros_like(angles))
        expected += float((torch.where(is_mirror, 1.0, waves) * fields[0] * fields[1]).mean())
    assert len(kernels) == pytest.approx(expected, abs=1e-4)
    assert torch.linalg.matrix_rank(kernels.flatten(1).double(), rtol=1e-5) == len(kernels)


@pytest.mark.parametrize("pair", [("scalar", "hidden"), ("hidden", "hidden"), ("hidden", "vector")], ids=str)
@pytest.mark.parametrize(("name", "smaller"), [("d4", "c4"), ("d4", "d1"), ("c8", "c4"), ("o2", "so2"), ("so2", "c4")])
def test_a_smaller_group_has_all_kernels_of_a_larger_one(name: str, smaller: str, pair: tuple[str, str]) -> None:
    """Restriction: what commutes with all elements commutes with some of them."""
    kernels = steerable_kernels(plane_group(name), pair[0], pair[1], 3).double()
    more = steerable_kernels(
        plane_group(smaller), Restricted(name, pair[0]), Restricted(name, pair[1]), 3
    ).double()  # fmt: skip
    assert len(more) > len(kernels)
    rank = int(torch.linalg.matrix_rank(torch.cat([more, kernels]).flatten(1), rtol=1e-4))
    assert rank == int(torch.linalg.matrix_rank(more.flatten(1), rtol=1e-4)) == len(more)


@pytest.mark.parametrize(("name", "smaller"), [("d8", "d4"), ("d4", "c4"), ("o2", "d4"), ("so2", "c4"), ("d16", "c16")])
def test_a_net_whose_group_is_restricted_at_depth_turns_with_the_smaller_group(
    name: str, smaller: str, generator: torch.Generator
) -> None:
    """And with no more than that, once the second layer is there."""
    large, small = plane_group(name), plane_group(smaller)
    torch.manual_seed(0)
    first = SteerableBlock(SteerableConv(large, (1, "scalar"), (4, "hidden"), 3), FieldActivation(large, 4))
    second = SteerableConv(small, (4, Restricted(name, "hidden")), (2, "vector"), 3)
    images = torch.randn(2, 1, SIZE, SIZE, generator=generator)
    reference = second(first(images)).detach()
    for g in small.elements():
        rotated = second(first(permute_pixels(images, g)))
        torch.testing.assert_close(rotated, act(small, "vector", g, reference), atol=1e-5, rtol=1e-5)
    if large.has_mirrors and not small.has_mirrors:
        mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        rotated = second(first(permute_pixels(images, mirror)))
        assert (rotated.detach() - act(large, "vector", mirror, reference)).abs().max() > 0.1 * reference.abs().max()


@pytest.mark.parametrize("kind", ["hidden", "scalar", Irreps(1), Fourier(1)], ids=str)
def test_c1_is_a_plain_convolution(kind: FieldKind, generator: torch.Generator) -> None:
    group = plane_group("c1")
    conv = SteerableConv(group, (3, kind), (4, kind), 3, bias=True)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    assert sum(p.numel() for p in conv.parameters()) == sum(p.numel() for p in plain.parameters())
    plain.weight.data, plain.bias.data = conv.weight.data.view_as(plain.weight), conv.bias.data.view(-1)
    maps = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    torch.testing.assert_close(conv(maps), plain(maps), atol=1e-6, rtol=1e-5)


def test_fields_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="c3 is no subgroup of d4"):
        plane_group("d4").dim(Quotient("c3"))
    with pytest.raises(ValueError, match="infinitely many elements"):
        plane_group("so2").dim("regular")
    with pytest.raises(ValueError, match="is no function"):
        FieldActivation(plane_group("d4"), 1, kind="vector")
    with pytest.raises(ValueError, match="no invariant component"):
        IrrepActivation(plane_group("d4"), 1, "vector", gate="gated")
    with pytest.raises(ValueError, match="is no element of c4"):
        plane_group("c4").action("hidden", plane_group("c8").elements(grid_exact=False)[1])


IMPLICIT_PAIRS: tuple[tuple[FieldKind, FieldKind], ...] = (
    ("scalar", "hidden"),
    ("hidden", "hidden"),
    ("hidden", "vector"),
    ("vector", "scalar"),
)


def rotated_features(g: Tensor, ctf_features: Tensor) -> Tensor:
    """The scalar stays; the vector is that of a line: it rotates twice as fast, and a mirror x -> -x takes a to -a."""
    tensor = torch.stack([ctf_features[:, 1:], ctf_features[:, 1:].flip(1) * torch.tensor([1.0, -1.0])], 1)
    moved = g.to(ctf_features) @ tensor @ g.to(ctf_features).T
    return torch.stack([ctf_features[:, 0], moved[:, 0, 0], moved[:, 0, 1]], 1)


@pytest.mark.parametrize("pair", IMPLICIT_PAIRS, ids=str)
@pytest.mark.parametrize("name", GROUP_NAMES)
def test_implicit_kernels_obey_the_constraint_with_their_ctf_features(
    name: str, pair: tuple[FieldKind, FieldKind], generator: torch.Generator
) -> None:
    """K(gx, gz) = rho_out(g) K(x, z) rho_in(g)^-1, the same in training and evaluation."""
    group = plane_group(name)
    torch.manual_seed(0)
    basis = ImplicitBasis(group, *pair, 5, conditioned=True)
    ctf_features = torch.randn(2, 3, generator=generator)
    kernels = basis(ctf_features).detach()
    assert (kernels[0] - kernels[1]).abs().max() > 0.01 * kernels.abs().max()
    for g in group.elements():
        matrices = [group.action(kind, g).float() for kind in pair]
        rotated = torch.einsum("ab,zkbchw,dc->zkadhw", matrices[1], permute_pixels(kernels, g), matrices[0])
        found = basis(rotated_features(g, ctf_features)).detach()
        torch.testing.assert_close(found, rotated, atol=1e-5 * float(kernels.abs().max()), rtol=0)
    torch.testing.assert_close(basis.eval()(ctf_features), kernels, atol=0, rtol=0)


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("name", ["c1", "c4", "d4", "so2"])
def test_a_conditioned_convolution_filters_each_image_with_its_own_kernels(
    name: str, is_whole: bool, generator: torch.Generator
) -> None:
    group = plane_group(name)
    torch.manual_seed(0)
    conv = ConditionedConv(group, (2, "scalar"), (3, "hidden"), SIZE if is_whole else 5, is_whole=is_whole)
    maps = torch.randn(2, 2, SIZE, SIZE, generator=generator)
    ctf_features = torch.randn(2, 3, generator=generator)
    found = conv(maps, ctf_features)
    for index in range(2):
        kernels = conv.basis(ctf_features)[index]
        filters = torch.einsum("cfn,noiyx->ocifyx", conv.weight, kernels).flatten(2, 3).flatten(0, 1)
        padding = 0 if is_whole else 2
        expected = nn.functional.conv2d(maps[index : index + 1], filters, padding=padding)
        torch.testing.assert_close(found[index : index + 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("name", ["so2", "o2"])
def test_adaptive_samples_are_exact_at_any_number(name: str, samples: int, generator: torch.Generator) -> None:
    """At every angle, not only those of a grid."""
    assert sampling_error(AdaptiveSampler(plane_group(name), (1, WIDE), samples, kind=WIDE), name, generator) < 1e-9


@pytest.mark.parametrize(("samples", "expected"), [(9, 0.157), (18, 0.0088), (36, 0.00084)])
def test_error_of_a_uniform_grid_falls_as_samples_grow(
    samples: int, expected: float, generator: torch.Generator
) -> None:
    """For so2 up to frequency 4 and ELU, on functions of variance 1."""
    error = sampling_error(UniformSampler(plane_group("so2"), samples, kind=WIDE), "so2", generator)
    assert error == pytest.approx(expected, rel=0.1)


WIDE = Fourier(4)


def sampling_error(sampler: nn.Module, name: str, generator: torch.Generator) -> float:
    """Mean over random functions and elements of |f(g.I) - rho(g) f(I)| / |f(I)|, for ELU on the samples."""
    group = plane_group(name)
    functions = (
        torch.randn(200, group.dim(WIDE), 1, 1, generator=generator, dtype=torch.get_default_dtype())
        / group.dim(WIDE) ** 0.5
    )

    def activate(maps: Tensor) -> Tensor:
        frames = sampler(maps)
        values = nn.functional.elu(torch.einsum("nschw,nchw->nshw", frames.synthesis, maps))
        return torch.einsum("ncshw,nshw->nchw", frames.analysis, values).detach()

    errors = []
    for angle in 2 * torch.pi * (torch.arange(50, dtype=torch.float64) * 0.618034).frac():
        g = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        if group.has_mirrors:
            g = g @ torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        matrix = group.action(WIDE, g).to(functions)
        expected = torch.einsum("ab,nbhw->nahw", matrix, activate(functions))
        found = activate(torch.einsum("ab,nbhw->nahw", matrix, functions))
        errors.append(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).mean())
    return float(torch.stack(errors).mean())


def test_a_uniform_sampler_is_the_activation_of_its_own_grid(generator: torch.Generator) -> None:
    group = plane_group("so2")
    activation = FieldActivation(group, 3, samples=8).eval()
    maps = torch.randn(2, 3 * group.dim("hidden"), 5, 5, generator=generator)
    frames = UniformSampler(group, 8)(maps)
    torch.testing.assert_close(activation(maps, frames), activation(maps), atol=1e-5, rtol=1e-4)


def test_frames_are_pooled_where_strides_leave_pixels(generator: torch.Generator) -> None:
    sampler = AdaptiveSampler(plane_group("so2"), (3, "hidden"), 2)
    frames = sampler(torch.randn(1, 3 * plane_group("so2").dim("hidden"), 9, 9, generator=generator))
    torch.testing.assert_close(frames.at(5).synthesis, frames.synthesis[..., ::2, ::2], atol=0, rtol=0)
    torch.testing.assert_close(frames.at(1).synthesis, frames.synthesis[..., 4:5, 4:5], atol=0, rtol=0)
    assert frames.at(9) is frames
    gradient = torch.autograd.grad(frames.synthesis[..., 0].sum(), sampler.branch.weight)[0]
    assert gradient.abs().max() > 0
