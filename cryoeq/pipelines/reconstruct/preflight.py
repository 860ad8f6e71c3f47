"""What can be known before a run begins: settings that do not fit the particles, too few of them, too little memory.

Nothing is written before these checks, so that what they refuse leaves no folder behind.
"""

import os
from collections.abc import Iterator

import torch

from cryoeq.config.reconstruct import LEAST_PARTICLES_OF_CLASS, MOST_CLASSES, ReconstructConfig
from cryoeq.data.dataset import CACHE_BYTES, checked_box
from cryoeq.domain.events import Note
from cryoeq.domain.particles import ParticleTable
from cryoeq.errors import ConfigError, InsufficientMemoryError, ParticleFileError
from cryoeq.io.particles import ParticleStack, star_half_set
from cryoeq.pipelines.reconstruct.build import last_shell, takes_poses, working_box
from cryoeq.pipelines.reconstruct.particle_diameter import mask_radius, shift_sigma_px
from cryoeq.reconstruction.ctf_refinement import needed_resolution_angstrom
from cryoeq.reconstruction.known_poses import holds_all_sums
from cryoeq.reconstruction.memory import (
    COMPILER_BYTES,
    SearchSize,
    encoder_memory,
    full_box_memory,
    reconstruction_memory,
    search_memory,
)
from cryoeq.runtime.memory_limits import MemoryLimit, memory_limits
from cryoeq.runtime.torchrun import torchrun_environment

_LEAST_OF_BOX = (
    0.2  # particle diameter: a smaller one leaves a mask of a few voxels at the resolution of the first maps
)
_BYTES_PER_EXAMPLE = 8 * 480  # of a view encoder's training: 96 coarse and 384 fine views, and a copy of both
_COPIES_FOR_VIEWS = 2.35  # of the transforms, a tenth of them held out, while view encoders are trained
_TOLERANCE = 1.2  # by which a prediction may be too high: a run that might fit is not refused
_ADVICE = {
    "transforms of all particles": "Search in a smaller box (-D/--box), or with fewer particles",
    "poses and offsets": "Give a smaller --shift-sigma, or fewer threads (-j/--threads)",
    "maps": "Search in a smaller box (-D/--box)",
    "maps at full size": "Rescale the particles to fewer pixels, as with relion_image_handler --rescale_angpix",
    "images": "Search in a smaller box (-D/--box)",
    "encoder": "Give smaller batches (--set training.batch_size) or fewer projections (--set hybrid.projections), or "
    "a smaller box",
    "figures": "Use a machine with more memory",
    "compiler": "Use a machine with more memory",
}


def check_run(config: ReconstructConfig, stack: ParticleStack, device: torch.device) -> Iterator[Note]:
    """Refuse what cannot work; notes on what is doubtful, and on the memory that will be needed.

    Args:
        config: settings of the run.
        stack: the particles, of which no pixel has been read.
        device: device of the computation.

    Raises:
        ConfigError: the working box, the particle diameter, the offsets or a CTF refinement do not fit the images, or
            the job has more processes than it may have.
        ParticleFileError: poses or half sets are missing, or a CTF that can be refined, or there are too few
            particles.
        InsufficientMemoryError: the run needs more memory than there is.
    """
    table = stack.table
    checked_box(working_box(config, stack), table.box_size_px)
    _check_diameter(config, table)
    if takes_poses(config):
        _require_poses(config, stack)
    if config.pose_inference != "known":
        _check_shift(config, table)
        _require_particles(config, stack)
    if config.pose_inference == "refine" and config.refine.keep_half_sets:
        _require_half_sets(config, stack)
    if config.pose_inference == "search" and config.search.e_step == "amortized":
        _require_one_process()
    if config.full_box.ctf_refinement and config.pose_inference not in {"known", "amortized"}:
        yield from _check_ctf(config, table)
    yield _check_memory(config, stack, device)


def _require_one_process() -> None:
    if (processes := torchrun_environment().size) > 1:
        raise ConfigError(
            f"search.e_step=amortized in a job of {processes} processes",
            "its network learns from all particles of an iteration, in one process",
            "Start cryoeq without torchrun, or leave search.e_step out",
        )


def _require_poses(config: ReconstructConfig, stack: ParticleStack) -> None:
    if stack.table.poses is None:
        is_known = config.pose_inference == "known"
        raise ParticleFileError(
            f"{stack.star.path or 'the star file'}: no poses",
            f"{'--pose-inference known' if is_known else '--local'} needs rlnAngleRot, rlnAngleTilt and rlnAnglePsi",
            "Leave the option out to infer them" if is_known else "Give a map to start from (--ref) in its place",
        )


def _require_half_sets(config: ReconstructConfig, stack: ParticleStack) -> None:
    given = star_half_set(stack.star)
    if given is None or len(given.unique()) < 2:
        raise ParticleFileError(
            f"{config.particles} does not name two half sets",
            "--keep-half-sets takes those of rlnRandomSubset, 1 and 2",
            "Leave the option out to split the particles at random",
        )


def _check_diameter(config: ReconstructConfig, table: ParticleTable) -> None:
    diameter, side = config.input.particle_diameter_angstrom, table.box_size_px * table.pixel_size_angstrom
    if diameter is None or _LEAST_OF_BOX * side <= diameter <= side:
        return
    share, other = ("more than", "larger") if diameter > side else (f"less than {_LEAST_OF_BOX:g} of", "smaller")
    raise ConfigError(
        f"--particle-diameter {diameter:g} Å is {share} the box, which is {side:.4g} Å wide",
        f"a diameter from {_LEAST_OF_BOX * side:.4g} to {side:.4g} Å was expected",
        f"Check the unit (Å) and the pixel size, or extract the particles again in a {other} box",
    )


def _check_ctf(config: ReconstructConfig, table: ParticleTable) -> Iterator[Note]:
    """Whether there is a CTF that can be refined."""
    ctf = table.ctf
    if ctf is None:
        ignored = "" if config.input.with_ctf else ", as --no-ctf leaves it unread"
        raise ParticleFileError(
            f"{config.particles}: no CTF to refine{ignored}",
            "--ctf-refinement needs the stated defocus of each particle",
            "Leave the option out, or give particles with their CTF",
        )
    if bool(ctf.is_premultiplied.any()):
        raise ParticleFileError(
            f"{config.particles}: the images were multiplied by the stated CTF, which cannot be undone",
            "--ctf-refinement needs images that were not",
            "Leave the option out, or extract the particles again without premultiplication",
        )
    side, needed = table.box_size_px * table.pixel_size_angstrom, needed_resolution_angstrom(ctf)
    if (finest := side / last_shell(config, table.box_size_px, side)) > needed:
        limit = config.full_box.max_resolution_angstrom
        raise ConfigError(
            f"--ctf-refinement with maps of {finest:.1f} Å at best{', by --max-resolution' if limit else ''}",
            f"errors of the defocus hardly change the images there; {needed:.1f} Å is needed",
            "Leave --ctf-refinement out" + (", or give a finer --max-resolution" if limit else ""),
        )
    if table.micrograph_index is None:
        yield Note(
            "The file names no micrographs: errors of defocus and astigmatism that its particles share are those of "
            "an optics group.",
            "warning",
        )
    if bool(ctf.is_phase_flipped.any()):
        yield Note(
            "The images were multiplied by the sign of the stated CTF, which this run goes on to use. A table has no "
            "place for two CTFs: programs that read run_data.star will take the sign of the refined one. Particles "
            "whose phases were not flipped are better for --ctf-refinement.",
            "warning",
        )


def _check_shift(config: ReconstructConfig, table: ParticleTable) -> None:
    sigma, side = config.input.shift_sigma_angstrom, table.box_size_px * table.pixel_size_angstrom
    if sigma is not None and sigma > side / 2:
        raise ConfigError(
            f"--shift-sigma {sigma:g} Å is more than half the box, which is {side:.4g} Å wide",
            f"the standard deviation of the offsets must be at most {side / 2:.4g} Å, and is a few per cent of the box "
            "in most data",
            "Check the unit (Å) and the pixel size",
        )


def _require_particles(config: ReconstructConfig, stack: ParticleStack) -> None:
    """Two half sets, in a search of several processes some particles for each, and some for each class."""
    count, processes = len(stack.table), torchrun_environment().size
    needed = 2 * processes
    if count < needed:
        among = f" with {processes} processes" if processes > 1 else ""
        raise ParticleFileError(
            f"{config.particles} holds too few particles: {count}",
            f"{_named(config)}{among} needs {needed} at least, and thousands for a good map",
            "Give more particles" if processes == 1 else "Give more particles, or start fewer processes",
        )
    if (asked := config.search.classes) == 1:
        return
    least = 1 if asked == "auto" else asked
    if count < (needed := least * LEAST_PARTICLES_OF_CLASS):
        raise ParticleFileError(
            f"{config.particles} holds too few particles for --classes {asked}: {count}",
            f"{needed} are needed at least, {LEAST_PARTICLES_OF_CLASS} in each class, and thousands for good maps",
            "Give more particles" if least == 1 else "Give more particles, or run with fewer --classes",
        )


def _named(config: ReconstructConfig) -> str:
    return "cryoeq refine" if config.pose_inference == "refine" else f"--pose-inference {config.pose_inference}"


def affordable_shell(config: ReconstructConfig, table: ParticleTable, device: torch.device) -> int:
    """The last shell that the refinement at the full box may reach: that of the settings, or what memory holds.

    Args:
        config: settings of the run.
        table: the particles.
        device: device of the computation.
    """
    box = table.box_size_px
    last, found = last_shell(config, box, box * table.pixel_size_angstrom), _tightest_limit(device)
    if found is None:
        return last
    limit, processes = found
    room = limit.limit / processes - limit.in_use
    fitting = (shell for shell in range(last, 0, -1) if sum(full_box_memory(len(table), box, shell).values()) <= room)
    return next(fitting, 1)


def _tightest_limit(device: torch.device) -> tuple[MemoryLimit, int] | None:
    """The limit on memory, and the number of processes that share it; None where there is none."""
    limits = memory_limits() if device.type == "cpu" else [_of_gpu(device)]
    if not limits:
        return None
    return limits[0], _processes_of_machine() if limits[0].is_shared and device.type == "cpu" else 1


def _check_memory(config: ReconstructConfig, stack: ParticleStack, device: torch.device) -> Note:
    """The memory that the run will need, beside what there is."""
    phases, found = _predict(config, stack, device), _tightest_limit(device)
    if found is None:
        return Note(f"Memory: about {_gigabytes(max(sum(parts.values()) for parts in phases))} will be needed.")
    (limit, processes), parts = found, max(phases, key=lambda parts: sum(parts.values()))
    needed = processes * (sum(parts.values()) + limit.in_use)
    among = f" by {processes} processes" if processes > 1 else ""
    if needed > _TOLERANCE * limit.limit:
        largest = max(parts, key=lambda name: parts[name])
        raise InsufficientMemoryError(
            f"this run would need about {_gigabytes(needed)} of memory{among}, most of it for {largest}: "
            f"{_gigabytes(processes * parts[largest])}",
            f"{limit.name.capitalize()} is {_gigabytes(limit.limit)}",
            _ADVICE[largest],
        )
    is_tight = needed > limit.limit
    text = f"Memory: about {_gigabytes(needed)} will be needed{among}; {limit.name} is {_gigabytes(limit.limit)}."
    return Note(text, "warning" if is_tight else "info")


def _predict(config: ReconstructConfig, stack: ParticleStack, device: torch.device) -> list[dict[str, int]]:
    """Bytes beyond what the process has now, by what they are for, in each phase of the run."""
    table = stack.table
    count, stored, mode = len(table), table.box_size_px, config.pose_inference
    box = working_box(config, stack) or stored
    sizes = [count] if table.half_set is None else table.half_set.bincount().tolist()
    sets = [size for size in sizes if size > 0]
    images = {"images": _cached(count, stored)}
    n_sums = 3 if mode != "known" and holds_all_sums(stored) else len(sets)
    final = images | {"maps at full size": reconstruction_memory(count, stored, max(sets), n_sums)}
    if mode == "known":
        return [final]
    if mode == "amortized":
        batch = config.training.batch_size if isinstance(config.training.batch_size, int) else 64
        encoder = {"encoder": encoder_memory(4 * batch, box, is_wide=False)}
        encoder["compiler"] = COMPILER_BYTES  # in the end all poses are tried for some particles
        return [{"images": _cached(count, box)} | encoder, final | encoder]
    search, last = config.search, box // 2 - 1
    if box == stored and search.half_sets.max_exhaustive_shell >= last:
        final = {}  # the search makes the maps
    side = stored * table.pixel_size_angstrom
    size = SearchSize(
        count,
        box,
        shift_sigma_px(config, box, side / box),
        min(search.half_sets.max_exhaustive_shell, last),
        mask_radius(config, side),
        (config.threads or torch.get_num_threads()) if device.type == "cpu" else 1,
        _most_classes(config),
    )
    parts = search_memory(size)
    if mode == "hybrid":
        hybrid = config.hybrid
        parts["encoder"] = (
            encoder_memory(hybrid.batch_size, 2 * (hybrid.max_shell + 1), is_wide=True)
            if hybrid.posterior == "network"
            else _BYTES_PER_EXAMPLE * hybrid.projections
        )
        # Those that are not held out, and one half set of these, are copied.
        parts["transforms of all particles"] = round(_COPIES_FOR_VIEWS * parts["transforms of all particles"])
    return [parts, final, *_full_box(config, stack, images, device)]


def _full_box(
    config: ReconstructConfig, stack: ParticleStack, images: dict[str, int], device: torch.device
) -> list[dict[str, int]]:
    """The refinement at the full box, where there is one; as if the half maps agreed up to its last shell.

    Of several classes, which are refined one after the other, as if one had all particles.
    """
    box, searched = stack.table.box_size_px, working_box(config, stack)
    if not config.full_box.iterations or (searched == box and config.pose_inference != "refine"):
        return []
    last = affordable_shell(config, stack.table, device)
    return [images | full_box_memory(len(stack.table), box, last)]


def _most_classes(config: ReconstructConfig) -> int:
    """Number of structures that are looked for, at most."""
    return MOST_CLASSES if config.search.classes == "auto" else config.search.classes


def _cached(count: int, box_px: int) -> int:
    """Bytes of images that are kept in memory."""
    size = 4 * count * box_px**2
    return size if size <= CACHE_BYTES else 0


def _of_gpu(device: torch.device) -> MemoryLimit:
    free, total = torch.cuda.mem_get_info(device)
    return MemoryLimit(f"the memory of {device}", total, total - free, is_shared=False)


def _processes_of_machine() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if torchrun_environment().size > 1 else 1


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
