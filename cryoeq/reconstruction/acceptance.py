"""Acceptance of a reconstruction: reproducibility, and handedness."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import fft_map, ifft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.pointgroup import is_polyhedral
from cryoeq.geometry.shells import fourier_shell_correlation, remove_round_part
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.symmetry import MIXED_HANDS_SCORE, MIXED_HANDS_WARNING, planar_symmetry_score
from cryoeq.reconstruction.multi_start import at_low_resolution, verify_with_another_start
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementSettings, RefinementState

_MIN_SHELL = 5  # up to which the half maps of a structure agree
_CENTRE_SHELL = 4  # up to which the centre of mass is that of the particle
_MIXED_FROM_SHELL = 9  # below, mixed handedness cannot be told from a round map


def require_reproducible(
    particles: ParticleTransforms, consensus: RefinementState, halves: RefinementState, settings: AbInitioSettings
) -> Generator[Event, None, None]:
    """Stop where nothing shows that the map is right: neither the half maps, nor another random start.

    Args:
        particles: CTF-multiplied transforms of all particles.
        consensus: state before the half sets were split.
        halves: state after half-set refinement.
        settings: settings of the reconstruction.

    Raises:
        DivergedError: there is no structure.
    """
    if halves.resolution_shell < _MIN_SHELL:
        raise DivergedError(
            f"no structure was found: the independent half maps agree to shell {halves.resolution_shell} only",
            f"Expected half maps that agree to shell {_MIN_SHELL} at least",
            "Try another --seed, or more or cleaner particles, and check CTF, contrast and pixel size",
        )
    # One shell more is what a mask makes of the shells that they share.
    shared = min(settings.refinement.shared_shell + 1, particles.plane.box_size_px // 2 - 2)
    if settings.min_starts == 1:
        return
    if settings.is_polyhedral:
        _require_independent_detail(halves, shared)
    elif halves.resolution_shell <= shared:
        small, low_resolution = at_low_resolution(particles, settings)
        yield from verify_with_another_start(small, consensus, low_resolution)


def _require_independent_detail(halves: RefinementState, shared_shell: int) -> None:
    """Stop where half maps of T, O or I share no more than their first reference.

    On the axes of such a group even images of noise lead all starts to one map (mean FSC 0.93), and any poses reproduce
    what is round. So half maps without their round part must agree where they are independent.
    """
    rests = [remove_round_part(halves.reference.of_half(half).cpu()) for half in (1, 2)]
    fsc = fourier_shell_correlation(*rests)
    found = replace(halves, fsc=torch.where(torch.arange(len(fsc)) <= shared_shell, 1.0, fsc)).resolution_shell
    if found <= shared_shell:
        raise DivergedError(
            f"no structure was found: without what is round in them, the half maps do not agree beyond shell "
            f"{shared_shell}, up to which they shared a reference",
            "Expected half maps that agree beyond it",
            "Check --sym; try another --seed, or more or cleaner particles",
        )


def shared_resolution_note(settings: RefinementSettings) -> Note:
    """Up to which resolution the half sets are not independent."""
    shared = settings.resolution_angstrom(settings.shared_shell)
    return Note(
        f"Both half sets start from one map, low-passed to {shared:.0f} Å; their FSC is independent (gold-standard) "
        "only at finer resolution."
    )


def report_handedness(
    state: RefinementState, pixel_size_angstrom: float, symmetry: str = "C1"
) -> Generator[Event, None, None]:
    """Report the handedness of the map, and warn where both hands may be mixed.

    Args:
        state: state after the final iteration.
        pixel_size_angstrom: pixel size of the map.
        symmetry: point group that was imposed.
    """
    found = mirror_symmetry(state, pixel_size_angstrom, state.resolution_shell, symmetry)
    if found.is_mixed:
        yield Note(
            f"The map has a mirror plane or an inversion centre (score {found.score:.2f}): {MIXED_HANDS_WARNING}. "
            "Run again with another --seed and compare.",
            "warning",
        )
    yield Note(
        "The hand of the map cannot be told from projections: its mirror image explains the particles equally well "
        "(--both-hands writes both)."
    )


@dataclass(frozen=True)
class MirrorSymmetry:
    """How near a map is to its own mirror image, and whether that is a sign of mixed handedness.

    Args:
        score: of the best mirror plane or inversion centre; 0 where the map reaches too few shells to tell.
        nonround_score: of the map without its rotational average; 0 where the whole map is of one hand.
    """

    score: float
    nonround_score: float

    @property
    def is_mixed(self) -> bool:
        """Whether both hands may be mixed: what is not round in the map is its own mirror image too."""
        return min(self.score, self.nonround_score) > MIXED_HANDS_SCORE

    @property
    def is_round(self) -> bool:
        """Whether the map is its own mirror image because it is all but round."""
        return self.score > MIXED_HANDS_SCORE >= self.nonround_score


def mirror_symmetry(
    state: RefinementState, pixel_size_angstrom: float, shell: int, symmetry: str = "C1"
) -> MirrorSymmetry:
    """Test a map for mixed handedness.

    In its first shells any map of T, O or I is its own mirror image. So its outer shells are tested; the mirror image
    has the same axes and the same centre.

    Args:
        state: state with the map to test.
        pixel_size_angstrom: pixel size of the map.
        shell: shell up to which the map is reliable.
        symmetry: point group that was imposed.
    """
    if shell < _MIXED_FROM_SHELL:
        return MirrorSymmetry(0.0, 0.0)
    volume = Volume(state.reference.of_half(1).cpu(), pixel_size_angstrom)
    if is_polyhedral(symmetry):
        values = remove_round_part(volume.values)
        inverted = ifft_map(fft_map(values).conj())
        score = float(fourier_shell_correlation(values, inverted)[shell // 2 : shell + 1].mean())
        return MirrorSymmetry(score, score)
    score = planar_symmetry_score(volume)
    if score <= MIXED_HANDS_SCORE:
        return MirrorSymmetry(score, 0.0)
    return MirrorSymmetry(score, planar_symmetry_score(_without_round_part(volume)))


def _without_round_part(volume: Volume) -> Volume:
    """The map less its rotational average about its centre of mass, which comes to the centre of the box."""
    values, n = volume.values, volume.box_size_px
    line = torch.arange(n, dtype=values.dtype) - n // 2
    mass = low_pass(values, _CENTRE_SHELL).clamp(min=0).square()
    moments = torch.stack([(mass.sum(axes) * line).sum() for axes in ((0, 1), (0, 2), (1, 2))])
    centred = rotate_map(values, torch.eye(3), -moments / mass.sum().clamp(min=torch.finfo(values.dtype).tiny))
    return replace(volume, values=remove_round_part(centred))
