"""The composition root: from settings to objects."""

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.io.particles import ParticleStack, read_particles
from cryoeq.training.basin import BasinSettings
from cryoeq.training.growth import GrowthSettings

_DEFAULT_WORKING_BOX_PX = {"search": 64, "hybrid": 64, "amortized": 32}
_DEFAULT_SHIFT = 0.05  # of the box


def build_stack(config: ReconstructConfig, *, with_poses: bool) -> ParticleStack:
    """The particles as the settings say, poses only where asked."""
    return read_particles(
        config.particles,
        angpix=config.input.angpix,
        datadir=config.input.datadir,
        with_poses=with_poses,
        ignore_ctf=not config.input.with_ctf,
    )


def build_dataset(config: ReconstructConfig, stack: ParticleStack, working_box_px: int | None) -> ParticleDataset:
    """The particles at a working box, contrast as the settings say."""
    sign = CONTRAST_SIGNS[config.input.contrast]
    # At their own box images are read once, for the maps; at the working box again and again.
    scratch = None if working_box_px is None else config.input.scratch_dir
    return ParticleDataset.open(stack, working_box_px=working_box_px, sign=sign, scratch=scratch)


def working_box(config: ReconstructConfig, stack: ParticleStack) -> int:
    """The box in which poses are inferred."""
    widest = _DEFAULT_WORKING_BOX_PX[config.pose_inference]
    return config.input.working_box_px or min(widest, stack.table.box_size_px)


def shift_sigma_px(config: ReconstructConfig, dataset: ParticleDataset) -> float:
    """Expected spread of the shifts per axis, in pixels of the dataset's box; 0 for particles that are centred."""
    told = config.input.shift_sigma_angstrom
    return _DEFAULT_SHIFT * dataset.box_size_px if told is None else told / dataset.pixel_size_angstrom


def build_basin_settings(config: ReconstructConfig, dataset: ParticleDataset) -> BasinSettings:
    """How each random start searches."""
    search, sigma = config.search, shift_sigma_px(config, dataset)
    return BasinSettings(
        iterations=search.start_iterations,
        batch_size=min(search.batch_size, len(dataset)),
        first_shell=search.first_shell,
        last_shell=min(search.start_shell, dataset.box_size_px // 2 - 1),
        n_shifts=search.trial_shifts if sigma > 0 else 1,
        shift_sigma_px=sigma,
        particle_radius=search.particle_radius,
    )


def build_growth_settings(config: ReconstructConfig, dataset: ParticleDataset) -> GrowthSettings:
    """How a first map is refined."""
    search, sigma = config.search, shift_sigma_px(config, dataset)
    last = dataset.box_size_px // 2 - 1
    return GrowthSettings(
        iterations=search.iterations,
        searched_shell=min(search.searched_shell, last),
        settled_shells=tuple(min(shell, last) for shell in search.settled_shells),
        further_iterations=search.further_iterations,
        settled_images=search.settled_images,
        n_shifts=search.trial_shifts if sigma > 0 else 1,
        shift_sigma_px=sigma,
        particle_radius=search.particle_radius,
        symmetry=symmetry_rotations(search.symmetry).float(),
    )
