"""Sheaf layers commute with changes of basis and with permutations of vertices, and stay finite on empty input."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cryoeq.screening.local_homology_sheaf import CellularSheaf, LocalHomologySheaf
from cryoeq.screening.sheaf_layers import SheafAttention, SheafConvolution, stalk_norms
from cryoeq.screening.simplicial import SimplicialComplex

LAYERS = [SheafConvolution, SheafAttention]


@pytest.fixture
def sheaf() -> CellularSheaf:
    """Degree 1 on a graph with two junctions, an end, a triangle and a vertex apart: stalks of 0 to 3 dimensions."""
    edges = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4], [4, 5], [5, 6], [4, 6], [6, 1], [2, 7]])
    return LocalHomologySheaf.from_complex(SimplicialComplex.from_simplices(9, edges), 1).sheaf


def rotations(dims: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix for each stalk, the identity on what is padding."""
    found = torch.eye(width, dtype=torch.float64).repeat(len(dims), 1, 1)
    for place, dim in enumerate(dims.tolist()):
        found[place, :dim, :dim] = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return found


def features(sheaf: CellularSheaf, channels: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(*sheaf.mask.shape, channels, generator=generator, dtype=torch.float64)
    return x * sheaf.mask[..., None]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_change_of_bases_rotates_the_output_with_it(
    layer: type[nn.Module], sheaf: CellularSheaf, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    net, x = layer(3, 4).double(), features(sheaf, 3, generator)
    at_vertices = rotations(sheaf.vertex_dims, x.shape[1], generator)
    edge_width = sheaf.restrictions.shape[2]
    at_edges = rotations(torch.full((len(sheaf.edges),), edge_width), edge_width, generator)
    maps = at_edges[:, None] @ sheaf.restrictions @ at_vertices[sheaf.edges].mT
    out, rotated = net(sheaf, x), net(replace(sheaf, restrictions=maps), at_vertices @ x)
    assert (out - x @ torch.ones(3, 4, dtype=torch.float64)).abs().max() > 0.1
    torch.testing.assert_close(rotated, at_vertices @ out)
    torch.testing.assert_close(stalk_norms(rotated), stalk_norms(out))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_numbering_of_vertices_and_directions_of_edges_do_not_matter(
    layer: type[nn.Module], sheaf: CellularSheaf, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    net, x = layer(3, 4).double(), features(sheaf, 3, generator)
    names = torch.randperm(len(x), generator=generator)
    order = torch.randperm(len(sheaf.edges), generator=generator)
    again = CellularSheaf(
        names[sheaf.edges][order].flip(1), sheaf.restrictions[order].flip(1), sheaf.vertex_dims[names.argsort()]
    )
    torch.testing.assert_close(net(again, x[names.argsort()])[names], net(sheaf, x))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_finite_also_without_edges_or_features(layer: type[nn.Module], sheaf: CellularSheaf) -> None:
    net = layer(3, 4).double()
    x = torch.zeros(*sheaf.mask.shape, 3, dtype=torch.float64)
    stalk_norms(net(sheaf, x)).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_section_of_equal_degrees_stays_under_diffusion(surfaces: dict[str, Tensor]) -> None:
    """On the octahedron, whose vertices have four edges each, the global section is a fixed point."""
    sheaf = LocalHomologySheaf.from_complex(SimplicialComplex.from_simplices(6, surfaces["sphere"]), 2).sheaf
    values, vectors = torch.linalg.eigh(torch.from_numpy(sheaf.laplacian_matrix().toarray()))
    section = vectors[:, :1].view(6, 1, 1)
    assert values[0] < 1e-12 < values[1]
    net = SheafConvolution(1, 1).double()
    ratio = net(sheaf, section) / section
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
