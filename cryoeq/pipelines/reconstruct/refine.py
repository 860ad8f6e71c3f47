"""``cryoeq refine``: poses of half sets from a map that comes from elsewhere, as a search has them at its end."""

from collections.abc import Generator

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.half_sets import keep_copies_together
from cryoeq.data.repeated_images import find_repeated_images
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.particles import ParticleStack, star_half_set
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.point_group_search import score_in_place
from cryoeq.pipelines.reconstruct.build import MIN_SHELL, build_refinement_settings, initial_shell
from cryoeq.pipelines.reconstruct.half_sets import given_half_set_notes, split_particles
from cryoeq.pipelines.reconstruct.plan import plan_refinement
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import pose_from_consensus
from cryoeq.reconstruction.global_realignment import STAGE as REALIGNMENT_STAGE
from cryoeq.reconstruction.initial_reference import begin_from_reference
from cryoeq.reconstruction.known_poses import reconstruct_from_poses
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.state import Checkpointer, RefinementState
from cryoeq.runtime.random_streams import Stream, stream_generator

REFERENCE_STEP = "reference"
"""Name of the step after which the starting map is needed no more."""
_MIN_SYMMETRIC = 0.8  # correlation of a map with the average of its copies
_NO_SYMMETRY = 0.5  # score of a map about given axes: 0.9 and more of a symmetry, 0.33 and less without one
_SYMMETRY_SAMPLE = 2000  # particles whose map is scored
_SYMMETRY_STAGE = "checking the symmetry"


def pose_from_reference(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    stack: ParticleStack,
    start: Volume | None,
    device: torch.device,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """Poses of both half sets, from a map that is low-passed first, or from the star file.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        stack: the particles as read, with poses and half sets where these are asked for.
        start: the map; None for the poses of the star file, or where a checkpoint holds what was made of it.
        device: where to compute.
        checkpoint: saves finished steps.
    """
    settings, seed = build_refinement_settings(config, dataset, config.search.symmetry), config.seed
    side = settings.box_side_angstrom
    shell = initial_shell(config.refine.ini_high_angstrom, side, settings.max_exhaustive_shell)
    yield plan_refinement(settings, is_local=config.refine.local)
    if config.refine.local:
        yield from load_transforms(dataset, device, radius=MIN_SHELL)  # copies are told by pixels that were read
        half_set = yield from _half_sets(config, dataset, stack)
        yield from _require_symmetry(config, dataset, _given_poses(stack), device)
        if not config.refine.keep_half_sets:
            yield Note(
                f"The given poses count to {settings.resolution_angstrom(shell):.0f} Å at first. Were they refined "
                "with all particles together, some of their noise may be in both half sets; --keep-half-sets takes "
                "those of an independent refinement."
            )
        return PosedParticles(_given_poses(stack), half_set, _given_poses(stack), resolution_shell=shell)
    if start is not None:
        yield from _symmetry_notes(config, start, shell)
    particles = yield from load_transforms(dataset, device)
    half_set = (yield from _half_sets(config, dataset, stack)).to(device)

    def search() -> Generator[Event, None, RefinementState]:
        if start is None:
            raise ValueError("the map was asked for before")
        yield Progress(REALIGNMENT_STAGE, 0, 1)
        state = begin_from_reference(start.values, shell, particles, half_set, settings, seed=seed)
        yield Progress(REALIGNMENT_STAGE, 1, 1)
        return state

    state = yield from checkpoint(REFERENCE_STEP, search())
    yield Note(
        f"Both half sets start from the given map, low-passed to {settings.resolution_angstrom(shell):.0f} Å; their "
        "FSC is independent (gold-standard) only at finer resolution."
    )
    return (yield from pose_from_consensus(config, dataset, particles, state, settings, checkpoint))


def _given_poses(stack: ParticleStack) -> Poses:
    if stack.table.poses is None:
        raise ValueError("the poses were asked for before")
    return stack.table.poses


def _half_sets(
    config: ReconstructConfig, dataset: ParticleDataset, stack: ParticleStack
) -> Generator[Event, None, Int[Tensor, " particles"]]:
    """Half sets of the star file where they are asked for, else new random ones; they share no image."""
    if not config.refine.keep_half_sets:
        return (yield from split_particles(dataset, config.seed))
    given = star_half_set(stack.star)
    if given is None:
        raise ValueError("half sets were asked for before")
    yield from given_half_set_notes(given)
    image = find_repeated_images(dataset.images).image
    return keep_copies_together(given, image, stream_generator(config.seed, Stream.HALF_SETS))


def _require_symmetry(
    config: ReconstructConfig, dataset: ParticleDataset, poses: Poses, device: torch.device
) -> Generator[Event, None, None]:
    """Refuse poses whose map does not have the symmetry that is imposed, about the axes that are expected.

    Raises:
        ConfigError: it does not.
    """
    symmetry = config.search.symmetry
    if len(symmetry_rotations(symmetry)) == 1:
        return
    count = min(len(dataset), _SYMMETRY_SAMPLE)
    rows = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()
    half_set = torch.arange(len(dataset)) % 2 + 1
    half_set[rows] = torch.arange(count) % 2 + 1
    yield Progress(_SYMMETRY_STAGE, 0, 1)
    maps = reconstruct_from_poses(dataset, poses, half_set, device=device, rows=rows)
    found = None if maps.halves is None else score_in_place(maps.all, maps.halves, symmetry)
    yield Progress(_SYMMETRY_STAGE, 1, 1)
    if found is None or found.holds:
        return
    said = (
        f"the map of the given poses does not have the symmetry {symmetry} about the usual axes: its copies agree with "
        f"a score of {found.score:.2f} (1: as its half maps do, 0: random rotations)"
    )
    if found.score < _NO_SYMMETRY:
        raise ConfigError(
            said,
            "--local imposes it in the frame of the poses: an n-fold axis along z, in D groups a twofold along x",
            "Leave out --sym, or give the poses of a refinement with it (cryoeq refine --ref MAP --sym "
            f"{symmetry}, MAP turned to these axes by cryoeq symmetry)",
        )
    yield Note(f"{said[0].upper()}{said[1:]}. It is imposed all the same.", "warning")


def _symmetry_notes(config: ReconstructConfig, start: Volume, shell: int) -> Generator[Event, None, None]:
    """A warning where the map does not have the symmetry that is imposed, about the axes that are expected."""
    rotations = symmetry_rotations(config.search.symmetry)
    if len(rotations) == 1:
        return
    box = min(start.box_size_px, 4 * (shell + 1))
    small = low_pass(ifft_map(crop_centred(fft_map(start.values), box, 3)), shell)
    mean = sum((rotate_map(small, rotation, torch.zeros(3)) for rotation in rotations), torch.zeros_like(small))
    agreement = float(fourier_shell_correlation(small, mean)[2 : shell + 1].mean())
    if agreement < _MIN_SYMMETRIC:
        yield Note(
            f"The given map does not have the symmetry {config.search.symmetry} about the usual axes: it agrees with "
            f"the average of its copies with a correlation of {agreement:.2f} only. Rotate it to them first (cryoeq "
            "symmetry shows its axes), or leave out --sym.",
            "warning",
        )
