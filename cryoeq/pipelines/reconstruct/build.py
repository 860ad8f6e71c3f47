"""The composition root of ``cryoeq reconstruct``: from settings to objects."""

from dataclasses import replace

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.data.repeated_images import DigestedImages
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.io.particles import ParticleStack, read_particles
from cryoeq.pipelines.reconstruct.particle_diameter import mask_radius, shift_sigma_px
from cryoeq.reconstruction.expectation import EStep
from cryoeq.reconstruction.initial_model import InitialModelSettings
from cryoeq.reconstruction.multi_start import EStepFactory, exhaustive_e_steps
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementSettings

_DEFAULT_WORKING_BOX_PX = {"search": 64, "hybrid": 64, "amortized": 32, "refine": 64}

MIN_SHELL = 3
"""First and last shell of a refinement at least: with fewer there is no map."""


def takes_poses(config: ReconstructConfig) -> bool:
    """Whether the poses of the particle file count: as they are, or to start a refinement from."""
    return config.pose_inference == "known" or (config.pose_inference == "refine" and config.refine.local)


def build_stack(config: ReconstructConfig, *, with_poses: bool) -> ParticleStack:
    """The particles of the input file, with its poses only where these are to be used; copies are found when read."""
    stack = read_particles(
        config.particles,
        angpix=config.input.angpix,
        datadir=config.input.datadir,
        with_poses=with_poses,
        ignore_ctf=not config.input.with_ctf,
    )
    return replace(stack, images=DigestedImages.of(stack.images))


def build_dataset(
    config: ReconstructConfig,
    stack: ParticleStack,
    working_box_px: int | None,
    *,
    sign: int | None = None,
    reads_once: bool = False,
) -> ParticleDataset:
    """The particles at a working box.

    Args:
        config: the settings.
        stack: the particles.
        working_box_px: box to Fourier-crop to; None keeps that of the images.
        sign: 1 or -1, contrast decided before; None takes that of the settings, or decides from the images.
        reads_once: whether each image is read once, so that none is kept in memory.
    """
    if sign is None:
        sign = CONTRAST_SIGNS[config.input.contrast]
    diameter = config.input.particle_diameter_angstrom
    if reads_once:
        return ParticleDataset.open(
            stack, working_box_px=working_box_px, sign=sign, cache_bytes=0, particle_diameter_angstrom=diameter
        )
    # At their own box images are read once or twice, for the maps; at the working box again and again.
    scratch = None if working_box_px is None else config.input.scratch_dir
    return ParticleDataset.open(
        stack, working_box_px=working_box_px, sign=sign, scratch=scratch, particle_diameter_angstrom=diameter
    )


def working_box(config: ReconstructConfig, stack: ParticleStack) -> int | None:
    """The box in which poses are inferred; None where they are given."""
    if config.pose_inference == "known":
        return None
    return searched_box(config.input.working_box_px, config.pose_inference, stack.table.box_size_px)


def searched_box(working_box_px: int | None, pose_inference: str, stored_px: int) -> int:
    """The box in which poses are inferred: that of the settings, or the usual one of a mode.

    Args:
        working_box_px: of the settings; None without.
        pose_inference: the mode.
        stored_px: box of the files.
    """
    return working_box_px or min(_DEFAULT_WORKING_BOX_PX[pose_inference], stored_px)


def last_shell(config: ReconstructConfig, box_size_px: int, side_angstrom: float) -> int:
    """The last shell that is refined: below Nyquist of the box, or that of ``--max-resolution``.

    Args:
        config: the settings.
        box_size_px: box of the files.
        side_angstrom: its side.
    """
    limit, nyquist = config.full_box.max_resolution_angstrom, box_size_px // 2 - 1
    return nyquist if limit is None else max(MIN_SHELL, min(nyquist, int(side_angstrom / limit)))


def initial_shell(ini_high_angstrom: float, side_angstrom: float, max_exhaustive_shell: int) -> int:
    """Shell of ``--ini-high``, within what is searched over all orientations.

    Args:
        ini_high_angstrom: resolution that was asked for.
        side_angstrom: side of the box.
        max_exhaustive_shell: last shell of searches over all orientations.
    """
    return max(MIN_SHELL, min(round(side_angstrom / ini_high_angstrom), max_exhaustive_shell))


def build_ab_initio_settings(
    config: ReconstructConfig, dataset: ParticleDataset, n_classes: int = 1
) -> AbInitioSettings:
    """Settings of the reconstruction, with what depends on the particles filled in."""
    search = config.search
    symmetry = search.symmetry if search.classes == 1 else "C1"  # of classes it is imposed on the maps that were found
    return AbInitioSettings(
        min_starts=search.multi_start.min,
        max_starts=max(search.multi_start.min, search.multi_start.max),
        initial_model=_initial_model_settings(config, dataset, n_classes),
        refinement=build_refinement_settings(config, dataset, symmetry),
        symmetry=symmetry,
        pixel_size_angstrom=dataset.pixel_size_angstrom,
        seed=config.seed,
    )


def _initial_model_settings(
    config: ReconstructConfig, dataset: ParticleDataset, n_classes: int
) -> InitialModelSettings:
    search, sigma = config.search, shift_sigma_px(config, dataset.box_size_px, dataset.pixel_size_angstrom)
    return InitialModelSettings(
        iterations=search.initial_model.iterations,
        batch_size=min(search.initial_model.batch_size * n_classes, len(dataset)),
        first_shell=search.initial_model.first_shell,
        last_shell=min(search.initial_model.last_shell, dataset.box_size_px // 2 - 1),
        n_offsets=search.offset_samples if sigma > 0 else 1,
        shift_sigma_px=sigma,
        mask_radius=mask_radius(config, dataset.box_size_px * dataset.pixel_size_angstrom),
        n_classes=n_classes,
    )


def build_e_steps(config: ReconstructConfig, settings: AbInitioSettings, device: torch.device) -> EStepFactory:
    """The E-steps from noise to the consensus: over all poses, or with proposals of a network for each.

    Args:
        config: the settings.
        settings: of the reconstruction.
        device: of the particles.
    """
    if config.search.e_step == "exhaustive":
        return exhaustive_e_steps
    from cryoeq.training.proposals.amortized_e_step import AmortizedEStep  # not above: networks
    from cryoeq.training.proposals.proposal_network import ProposalSettings

    given = config.search.amortized
    proposals = ProposalSettings(
        given.group, given.channels, given.likely_views, given.random_views, given.training_steps, given.batch_size,
        given.learning_rate,
    )  # fmt: skip
    last_shell = max(settings.initial_model.last_shell, settings.refinement.shared_shell)

    def with_proposals(number: int) -> EStep:
        return AmortizedEStep(proposals, last_shell, seed=config.seed, number=number, device=device)

    return with_proposals


def build_refinement_settings(config: ReconstructConfig, dataset: ParticleDataset, symmetry: str) -> RefinementSettings:
    """Settings of consensus, half-set and local refinement of some particles.

    Args:
        config: the settings.
        dataset: the particles, at the box of the refinement.
        symmetry: point group to impose.
    """
    search, sigma = config.search, shift_sigma_px(config, dataset.box_size_px, dataset.pixel_size_angstrom)
    last = dataset.box_size_px // 2 - 1
    max_exhaustive_shell = min(search.half_sets.max_exhaustive_shell, last)
    return RefinementSettings(
        consensus_shells=tuple(min(shell, last) for shell in search.consensus.shells),
        max_extra_iterations=search.consensus.max_extra_iterations,
        max_particles=search.consensus.max_particles,
        iterations=search.half_sets.iterations,
        max_exhaustive_shell=max_exhaustive_shell,
        local_iterations=search.local_refinement.iterations if last > max_exhaustive_shell else 0,
        n_offsets=search.offset_samples if sigma > 0 else 1,
        shift_sigma_px=sigma,
        mask_radius=mask_radius(config, dataset.box_size_px * dataset.pixel_size_angstrom),
        symmetry=symmetry_rotations(symmetry).float(),
        box_side_angstrom=dataset.box_size_px * dataset.pixel_size_angstrom,
    )
