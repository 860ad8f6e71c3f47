"""The weighted sheaf: bars equal gudhi's, gradients equal finite differences, numbering and signs do not matter."""

from dataclasses import replace

import gudhi
import pytest
import torch
from torch import Tensor

from cryoeq.screening.local_homology_sheaf import CellularSheaf, LocalHomologySheaf
from cryoeq.screening.persistent_sheaf import PersistentSheaf, flag_weights
from cryoeq.screening.simplicial import SimplicialComplex, clique_complex

HORIZON = 2.0


def neighbourhood(seed: int, n: int = 40, within: float = 0.8) -> tuple[SimplicialComplex, Tensor]:
    """The clique complex of points on the sphere that lie near each other, and the lengths of its edges."""
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = points / points.norm(dim=1, keepdim=True)
    distances = torch.cdist(points, points)
    edges = torch.triu(distances < within, 1).nonzero()
    complex_ = clique_complex(n, edges, 3)
    first, second = complex_.simplices[1].unbind(1)
    return complex_, distances[first, second]


def renamed(
    complex_: SimplicialComplex, lengths: Tensor, generator: torch.Generator
) -> tuple[SimplicialComplex, Tensor]:
    """Other names, orders and orientations; the lengths follow their edges."""
    names = torch.randperm(complex_.n_vertices, generator=generator)
    rows = [complex_.simplices[0]]
    for k, simplices in enumerate(complex_.simplices[1:], 1):
        order = torch.randperm(len(simplices), generator=generator)
        renumbered = names[simplices].gather(1, torch.rand(simplices.shape, generator=generator).argsort(1))
        rows.append(renumbered[order])
        lengths = lengths[order] if k == 1 else lengths
    return SimplicialComplex(tuple(rows)), lengths


def persistent(complex_: SimplicialComplex, lengths: Tensor, degree: int) -> PersistentSheaf:
    return PersistentSheaf.from_complex(complex_, degree, flag_weights(complex_, lengths), HORIZON)


@pytest.mark.parametrize("name", ["sphere", "torus", "projective plane", "klein bottle", "disc", "moebius band"])
def test_without_differences_of_weight_it_is_the_sheaf_itself(name: str, surfaces: dict[str, Tensor]) -> None:
    complex_ = SimplicialComplex.from_simplices(int(surfaces[name].max()) + 1, surfaces[name])
    weights = [torch.zeros(len(rows), dtype=torch.float64) for rows in complex_.simplices]
    weighted = PersistentSheaf.from_complex(complex_, 2, weights, 1.0).sheaf
    plain = LocalHomologySheaf.from_complex(complex_, 2).sheaf
    assert torch.equal(weighted.vertex_dims, plain.vertex_dims)
    assert weighted.n_sections() == plain.n_sections()
    assert set(weighted.restrictions.abs().unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("degree", [1, 2])
def test_bars_are_those_of_the_link_by_gudhi(degree: int) -> None:
    complex_, lengths = neighbourhood(1)
    weights = flag_weights(complex_, lengths)
    bars = PersistentSheaf.from_complex(complex_, degree, weights, HORIZON).vertices
    assert bars.mask.any(1).sum() > 8
    for vertex in range(0, complex_.n_vertices, 3):
        link = gudhi.SimplexTree()
        for rows, values in zip(complex_.simplices[1:], weights[1:], strict=True):
            for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                if vertex in row:
                    link.insert([other for other in row if other != vertex], value)
        link.compute_persistence(homology_coeff_field=10007, persistence_dim_max=True)
        expected = sorted((b, min(d, HORIZON)) for b, d in link.persistence_intervals_in_dimension(degree - 1) if d > b)
        if degree == 1 and expected:
            expected.remove(min(expected))  # reduced homology: the first component ends no class
        own = bars.mask[vertex]
        found = sorted(zip(bars.births[vertex][own].tolist(), bars.deaths[vertex][own].tolist(), strict=True))
        assert len(found) == len(expected)
        for own_bar, known in zip(found, expected, strict=True):
            assert own_bar == pytest.approx(known)


@pytest.mark.parametrize("degree", [1, 2])
def test_neither_numbering_nor_orientations_matter(degree: int, generator: torch.Generator) -> None:
    complex_, lengths = neighbourhood(2)
    spectrum = persistent(complex_, lengths, degree).sheaf.spectrum()
    again = persistent(*renamed(complex_, lengths, generator), degree).sheaf.spectrum()
    assert spectrum.max() > 0.1
    torch.testing.assert_close(again, spectrum, atol=1e-10, rtol=0)


@pytest.mark.parametrize("degree", [1, 2])
def test_gradients_are_those_of_finite_differences(degree: int) -> None:
    complex_, lengths = neighbourhood(1)
    generator = torch.Generator().manual_seed(0)

    def energy(edge_lengths: Tensor) -> Tensor:
        found = persistent(complex_, edge_lengths, degree)
        disagreement = found.sheaf.coboundary(found.vertices.births[..., None] + 0.3)
        return disagreement.square().sum() + found.vertices.lengths.square().sum()

    gradient = torch.autograd.grad(energy(lengths.requires_grad_()), lengths)[0]
    assert (gradient != 0).sum() > 20
    with torch.no_grad():
        for _ in range(2):
            step = 1e-7 * torch.randn(len(lengths), generator=generator, dtype=torch.float64)
            difference = energy(lengths + step) - energy(lengths - step)
            torch.testing.assert_close(difference, 2 * gradient @ step, rtol=1e-5, atol=1e-13)


def test_a_bar_fades_before_it_vanishes() -> None:
    """Vertex 0 and its third neighbour: the triangle that joins it to the second comes ever earlier.

    Vertex 0 has the bars 0.2 to 0.9 and 0.3 to ``last``, the edge to its second neighbour that from 0.2 to ``last``.
    """
    complex_ = SimplicialComplex.from_simplices(4, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    second = complex_.simplices[1].tolist().index([0, 2])

    def at(last: float) -> CellularSheaf:
        lengths = {(0, 1): 0.1, (0, 2): 0.2, (0, 3): 0.3, (1, 2): 0.9, (2, 3): last}
        in_order = [lengths[first, second] for first, second in complex_.simplices[1].tolist()]
        return persistent(complex_, torch.tensor(in_order, dtype=torch.float64), 1).sheaf

    for last in (0.8, 0.4, 0.301):
        found = at(last).restrictions[second, 0, 0].abs().tolist()
        assert found == pytest.approx([((last - 0.2) / 0.7) ** 0.5, ((last - 0.3) / (last - 0.2)) ** 0.5])
    assert int(at(0.3).vertex_dims[0]) == 1


def test_weights_that_fall_or_reach_the_horizon_are_refused() -> None:
    complex_ = SimplicialComplex.from_simplices(3, torch.tensor([[0, 1, 2]]))
    weights = [torch.zeros(3), torch.ones(3), torch.full((1,), 0.5)]
    with pytest.raises(ValueError, match="2-simplex weighs less"):
        PersistentSheaf.from_complex(complex_, 1, weights, 2.0)
    with pytest.raises(ValueError, match="horizon"):
        PersistentSheaf.from_complex(complex_, 1, [*weights[:2], torch.ones(1)], 1.0)


def flipped(sheaf: CellularSheaf, vertex_signs: Tensor, edge_signs: Tensor) -> CellularSheaf:
    maps = edge_signs[:, None, :, None] * sheaf.restrictions * vertex_signs[sheaf.edges][:, :, None]
    return replace(sheaf, restrictions=maps)


def test_signs_of_bars_change_no_eigenvalue(generator: torch.Generator) -> None:
    sheaf = persistent(*neighbourhood(4), 1).sheaf
    signs = [torch.randint(0, 2, shape, generator=generator).double() * 2 - 1
             for shape in (sheaf.mask.shape, sheaf.restrictions.shape[:1] + sheaf.restrictions.shape[2:3])]  # fmt: skip
    torch.testing.assert_close(flipped(sheaf, *signs).spectrum(), sheaf.spectrum(), atol=1e-10, rtol=0)
