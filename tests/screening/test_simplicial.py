"""Complexes: a boundary has no boundary, stars hold what they should, cliques are all found."""

from itertools import combinations

import pytest
import torch

from cryoeq.screening.simplicial import SimplicialComplex, clique_complex


def scrambled(complex_: SimplicialComplex, generator: torch.Generator) -> SimplicialComplex:
    """The same complex, its simplices in another order, each with its vertices in another order."""
    rows = [complex_.simplices[0]]
    for simplices in complex_.simplices[1:]:
        order = torch.rand(simplices.shape, generator=generator).argsort(1)
        rows.append(simplices.gather(1, order)[torch.randperm(len(simplices), generator=generator)])
    return SimplicialComplex(tuple(rows))


def matrix(complex_: SimplicialComplex, k: int) -> torch.Tensor:
    index, sign = complex_.boundary(k)
    columns = torch.arange(len(index))[:, None].expand_as(index)
    empty = torch.zeros(complex_.count(k - 1), complex_.count(k), dtype=torch.float64)
    return empty.index_put((index, columns), sign, accumulate=True)


@pytest.mark.parametrize("k", [1, 2])
def test_a_boundary_has_no_boundary_whatever_the_orientations(k: int, generator: torch.Generator) -> None:
    tetrahedra = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(12)])
    complex_ = scrambled(SimplicialComplex.from_simplices(9, tetrahedra), generator)
    upper = matrix(complex_, k + 1)
    assert upper.abs().sum() > 0
    assert (matrix(complex_, k) @ upper).abs().max() == 0


def test_a_relative_boundary_has_no_boundary_and_is_part_of_the_whole(generator: torch.Generator) -> None:
    tetrahedra = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(12)])
    complex_ = scrambled(SimplicialComplex.from_simplices(9, tetrahedra), generator)
    for centre_dim in (0, 1):
        inner = complex_.relative_boundary(centre_dim, 2) @ complex_.relative_boundary(centre_dim, 3)
        assert inner.abs().max() == 0
        rows, columns = complex_.star(centre_dim, 1), complex_.star(centre_dim, 2)
        whole = matrix(complex_, 2)
        for centre in range(complex_.count(centre_dim)):
            own_rows, own = rows[centre][rows[centre] >= 0], columns[centre][columns[centre] >= 0]
            part = complex_.relative_boundary(centre_dim, 2)[centre][: len(own_rows), : len(own)]
            torch.testing.assert_close(part, whole[own_rows][:, own])


def test_a_star_holds_all_simplices_through_its_centre(generator: torch.Generator) -> None:
    complex_ = scrambled(
        SimplicialComplex.from_simplices(7, torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 5, 6]])), generator
    )
    star = complex_.star(0, 2)
    for vertex in range(7):
        found = {frozenset(complex_.simplices[2][i].tolist()) for i in star[vertex].tolist() if i >= 0}
        expected = {frozenset(row) for row in complex_.simplices[2].tolist() if vertex in row}
        assert found == expected


def test_the_clique_complex_holds_all_cliques_and_nothing_else(generator: torch.Generator) -> None:
    n = 12
    pairs = torch.tensor(list(combinations(range(n), 2)))
    edges = pairs[torch.rand(len(pairs), generator=generator) < 0.5]
    joined = {frozenset(edge) for edge in edges.tolist()}
    complex_ = clique_complex(n, torch.cat([edges.flip(1), edges[::2]]), 3)
    for k in (1, 2, 3):
        expected = {
            frozenset(rows)
            for rows in combinations(range(n), k + 1)
            if all(frozenset(pair) in joined for pair in combinations(rows, 2))
        }
        assert {frozenset(row) for row in complex_.simplices[k].tolist()} == expected
        assert len(complex_.simplices[k]) == len(expected)


def test_a_simplex_that_holds_a_vertex_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="one vertex twice"):
        SimplicialComplex.from_simplices(3, torch.tensor([[0, 1, 1]]))
