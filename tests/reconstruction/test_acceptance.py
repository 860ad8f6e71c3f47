"""Mixed hands: seen in maps of any structure, and not in what is all but round."""

import pytest
import torch
from torch import Tensor

from cryoeq.domain.pose import PoseSet
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import fft_map, ifft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.maps.alignment import mirror_map, rotate_map
from cryoeq.maps.symmetry import MIXED_HANDS_SCORE
from cryoeq.reconstruction.acceptance import MirrorSymmetry, _require_independent_detail, mirror_symmetry
from cryoeq.reconstruction.state import ConsensusMap, HalfSetMaps, ParticlePoses, RefinementState
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

N, SHELL, PIXEL_ANGSTROM = 32, 10, 5.0
ASIDE_PX = torch.tensor([1.5, -1.0, 2.0])


def handedness_of(values: Tensor, symmetry: str = "C1", shell: int = SHELL) -> MirrorSymmetry:
    particles = ParticlePoses.unknown(PoseSet.identity(1, N))
    reference = ConsensusMap(low_pass(values, shell))
    state = RefinementState(reference, torch.tensor([1]), particles, torch.ones(N // 2 + 1), shell, 1)
    return mirror_symmetry(state, PIXEL_ANGSTROM, shell, symmetry)


def hollow_sphere() -> Tensor:
    return soft_sphere(N, 11.0, 2.0) - soft_sphere(N, 7.0, 2.0)


def chiral() -> Tensor:
    return sample_atoms(chiral_phantom(50.0), N, PIXEL_ANGSTROM).values


@pytest.mark.parametrize("detail", [0.05, 0.3])
def test_a_shell_is_not_of_mixed_hands(detail: float) -> None:
    """Whatever poses reproduce it, and whatever noise it carries: of that both hands would have to be alike."""
    shell = hollow_sphere()
    noise = low_pass(torch.randn(N, N, N, generator=torch.Generator().manual_seed(1)), SHELL)
    found = handedness_of(shell + detail * shell.std() / noise.std() * noise)
    assert not found.is_mixed
    assert found.is_round or found.score < MIXED_HANDS_SCORE


def test_an_octahedral_map_is_of_mixed_hands_where_its_outer_shells_are() -> None:
    """The inner ones are those of its mirror image anyway."""
    aside = rotate_map(chiral(), torch.eye(3), torch.tensor([6.0, 3.0, 2.0])) * soft_sphere(N, 14.0, 2.0)
    copies = [rotate_map(aside, element, torch.zeros(3)) for element in symmetry_rotations("O").float()]
    octahedral = torch.stack(copies).mean(0)
    assert not handedness_of(octahedral, "O").is_mixed
    assert handedness_of(low_pass(octahedral, 4), "O", 4).score == 0.0, "too few shells to tell"
    assert handedness_of(octahedral + ifft_map(fft_map(octahedral).conj()), "O").is_mixed


@pytest.mark.parametrize(("shift_px", "roundness"), [(torch.zeros(3), 0.0), (ASIDE_PX, 1.0)])
def test_both_hands_in_one_map_are_seen_wherever_it_lies(shift_px: Tensor, roundness: float) -> None:
    """Also beside a round part as strong as they are."""
    shell = roundness * hollow_sphere() * (chiral().std() / hollow_sphere().std())
    mixed, one = (
        rotate_map(values + shell, torch.eye(3), shift_px) for values in (chiral() + mirror_map(chiral()), chiral())
    )
    assert not handedness_of(one).is_mixed
    found = handedness_of(mixed)
    assert found.is_mixed
    assert not found.is_round


@pytest.mark.parametrize("last_shared", [True, False])
def test_half_maps_of_a_polyhedral_group_must_share_what_is_not_round(last_shared: bool) -> None:
    """Their first reference they share anyway, and round parts agree whatever the poses."""
    shared, noise = low_pass(chiral(), 8), torch.Generator().manual_seed(3)
    detail = [0.01 * torch.randn(N, N, N, generator=noise) for _ in range(2)]
    halves = [shared + hollow_sphere() + (chiral() - shared if last_shared else one) for one in detail]
    particles = ParticlePoses.unknown(PoseSet.identity(1, N))
    maps = HalfSetMaps(low_pass(halves[0], 12), low_pass(halves[1], 12))
    state = RefinementState(maps, torch.tensor([1]), particles, torch.ones(N // 2 + 1), 12, 1)
    if last_shared:
        _require_independent_detail(state, 9)
    else:
        with pytest.raises(DivergedError, match="without what is round"):
            _require_independent_detail(state, 9)
