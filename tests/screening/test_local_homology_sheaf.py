"""The local homology sheaf: exact dimensions on spaces whose homology is known, and gudhi's on others."""

import gudhi
import pytest
import torch
from torch import Tensor

from cryoeq.screening.local_homology_sheaf import LocalHomologySheaf, harmonic_stalks
from cryoeq.screening.simplicial import SimplicialComplex

A_LARGE_PRIME = 10007  # gudhi counts over a finite field; of this order no torsion of a small complex lies


def surface(triangles: Tensor) -> SimplicialComplex:
    return SimplicialComplex.from_simplices(int(triangles.max()) + 1, triangles)


def graph(*edges: tuple[int, int]) -> SimplicialComplex:
    rows = torch.tensor(edges)
    return SimplicialComplex.from_simplices(int(rows.max()) + 1, rows)


def betti(complex_: SimplicialComplex, degree: int) -> int:
    tree = gudhi.SimplexTree()
    for rows in complex_.simplices:
        for row in rows.tolist():
            tree.insert(row)
    tree.compute_persistence(homology_coeff_field=A_LARGE_PRIME, persistence_dim_max=True)
    return dict(enumerate(tree.betti_numbers())).get(degree, 0)


def relabelled(complex_: SimplicialComplex, generator: torch.Generator) -> SimplicialComplex:
    """Other numbers for the vertices, another order of the simplices, other orientations."""
    names = torch.randperm(complex_.n_vertices, generator=generator)
    rows = [complex_.simplices[0]]
    for simplices in complex_.simplices[1:]:
        renumbered = names[simplices].gather(1, torch.rand(simplices.shape, generator=generator).argsort(1))
        rows.append(renumbered[torch.randperm(len(renumbered), generator=generator)])
    return SimplicialComplex(tuple(rows))


@pytest.mark.parametrize(
    ("name", "sections", "inside"),
    [
        ("sphere", 1, 1), ("torus", 1, 1), ("projective plane", 0, 0), ("klein bottle", 0, 0),
        ("disc", 0, 1), ("annulus", 0, 1), ("moebius band", 0, 0),
    ],
)  # fmt: skip
def test_sections_distinguish_closed_and_orientable_surfaces(
    name: str, sections: int, inside: int, surfaces: dict[str, Tensor]
) -> None:
    sheaf = LocalHomologySheaf.from_complex(surface(surfaces[name]), 2)
    assert sheaf.sheaf.n_sections() == sections
    assert sheaf.interior.n_sections() == inside


@pytest.mark.parametrize("name", ["sphere", "torus", "projective plane", "klein bottle"])
def test_every_stalk_of_a_closed_surface_is_a_line(name: str, surfaces: dict[str, Tensor]) -> None:
    sheaf = LocalHomologySheaf.from_complex(surface(surfaces[name]), 2)
    assert (sheaf.vertices.dims == 1).all()
    assert (sheaf.edges.dims == 1).all()


@pytest.mark.parametrize("name", ["disc", "annulus", "moebius band"])
def test_stalks_vanish_at_the_boundary_and_nowhere_else(name: str, surfaces: dict[str, Tensor]) -> None:
    complex_ = surface(surfaces[name])
    sheaf = LocalHomologySheaf.from_complex(complex_, 2)
    triangles_at_edge = torch.bincount(complex_.faces(2, 1).flatten())
    is_boundary = torch.zeros(complex_.n_vertices, dtype=torch.bool)
    is_boundary[complex_.simplices[1][triangles_at_edge == 1].flatten()] = True
    assert is_boundary.any()
    assert not is_boundary.all()
    assert torch.equal(sheaf.vertices.dims, (~is_boundary).long())


def test_stalks_of_a_path_a_star_and_a_point() -> None:
    path, star = graph((0, 1), (1, 2)), graph((0, 1), (0, 2), (0, 3))
    assert LocalHomologySheaf.from_complex(path, 1).vertices.dims.tolist() == [0, 1, 0]
    assert LocalHomologySheaf.from_complex(star, 1).vertices.dims.tolist() == [2, 0, 0, 0]
    alone = SimplicialComplex.from_simplices(4, torch.tensor([[0, 1], [1, 2]]))
    assert LocalHomologySheaf.from_complex(alone, 1).vertices.dims.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("degree", [1, 2])
def test_sections_of_the_highest_degree_are_the_cycles_that_gudhi_counts(degree: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tops = torch.stack([torch.randperm(7, generator=generator)[: degree + 1] for _ in range(12 * degree)])
    complex_ = SimplicialComplex.from_simplices(7, tops)
    assert betti(complex_, degree) > 0
    assert LocalHomologySheaf.from_complex(complex_, degree).sheaf.n_sections() == betti(complex_, degree)


@pytest.mark.parametrize("degree", [1, 2])
def test_stalks_are_the_shifted_homology_of_the_link_by_gudhi(degree: int, generator: torch.Generator) -> None:
    tops = torch.stack([torch.randperm(8, generator=generator)[: degree + 2] for _ in range(5 * degree)])
    complex_ = SimplicialComplex.from_simplices(8, tops)
    dims = harmonic_stalks(complex_, 0, degree).dims
    assert dims.max() > 0
    for vertex in range(8):
        tree = gudhi.SimplexTree()
        for rows in complex_.simplices[1:]:
            for row in rows[(rows == vertex).any(1)].tolist():
                tree.insert([other for other in row if other != vertex])
        tree.compute_persistence(homology_coeff_field=A_LARGE_PRIME, persistence_dim_max=True)
        reduced = dict(enumerate(tree.betti_numbers())).get(degree - 1, 0) - (degree == 1)
        assert dims[vertex] == reduced


@pytest.mark.parametrize(("name", "degree"), [("klein bottle", 2), ("annulus", 2), ("random", 2), ("pinched", 1)])
def test_the_spectrum_depends_on_neither_numbering_nor_orientations(
    name: str, degree: int, surfaces: dict[str, Tensor], generator: torch.Generator
) -> None:
    sparse, dense = (torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(n)]) for n in (7, 24))
    complex_ = surface({**surfaces, "pinched": sparse, "random": dense}[name])
    spectrum = LocalHomologySheaf.from_complex(complex_, degree).sheaf.spectrum()
    again = LocalHomologySheaf.from_complex(relabelled(complex_, generator), degree).sheaf.spectrum()
    assert len(spectrum) > 0
    torch.testing.assert_close(again, spectrum, atol=1e-10, rtol=0)


def test_restricting_is_a_map_of_chain_complexes(generator: torch.Generator) -> None:
    """A cycle of a vertex' star, cut down to an edge's star, is a cycle there."""
    complex_ = relabelled(
        surface(torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(24)])), generator
    )
    sheaf = LocalHomologySheaf.from_complex(complex_, 2)
    at_ends = sheaf.vertices.members[complex_.simplices[1]]
    shared = (sheaf.edges.members[:, None, :, None] == at_ends[:, :, None]) & (at_ends >= 0)[:, :, None]
    cut = shared.double() @ sheaf.vertices.basis[complex_.simplices[1]]
    assert cut.abs().sum() > 0
    assert (complex_.relative_boundary(1, 2)[:, None] @ cut).abs().max() < 1e-12


def test_the_matrix_and_the_map_are_one(surfaces: dict[str, Tensor], generator: torch.Generator) -> None:
    sheaf = LocalHomologySheaf.from_complex(surface(surfaces["annulus"]), 2).sheaf
    x = torch.randn(*sheaf.mask.shape, 3, dtype=torch.float64, generator=generator) * sheaf.mask[..., None]
    by_map = sheaf.laplacian(x)[sheaf.mask]
    torch.testing.assert_close(torch.from_numpy(sheaf.laplacian_matrix() @ x[sheaf.mask].numpy()), by_map)
