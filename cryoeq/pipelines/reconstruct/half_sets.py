"""Half sets of a run: no image in both of them, none of them empty, and what could not be mended is told."""

from collections.abc import Generator, Iterator
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.half_sets import keep_copies_together, split_half_sets
from cryoeq.data.repeated_images import RepeatedImages, find_repeated_images
from cryoeq.domain.events import Event, Note
from cryoeq.errors import ParticleFileError
from cryoeq.io.particles import ParticleStack
from cryoeq.io.positions import position_numbers
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.runtime.random_streams import Stream, stream_generator

_UNEVEN = 0.1  # fraction of the particles


def split_particles(dataset: ParticleDataset, seed: int) -> Generator[Event, None, Int[Tensor, " particles"]]:
    """Random half sets of equal size, all copies of an image in one of them.

    Args:
        dataset: particles, each of which was read.
        seed: random seed of the run.

    Yields:
        A warning, where images are repeated.

    Returns:
        Half set of each particle, 1 or 2.

    Raises:
        ParticleFileError: all rows show one image.
    """
    repeated = find_repeated_images(dataset.images)
    if repeated.n_images > 0:
        if repeated.n_rows == len(dataset) and repeated.n_images == 1:
            found = f"all {len(dataset)} rows of the particle table show the same image"
            raise ParticleFileError(found, "Two different images are needed at least", "Check rlnImageName")
        yield Note(f"{_count(repeated)} All copies of an image are put into one half set.", "warning")
    return split_half_sets(len(dataset), stream_generator(seed, Stream.HALF_SETS), repeated.image)


def position_notes(stack: ParticleStack) -> Iterator[Note]:
    """Warning of particles that were picked and extracted more than once, so that their images share noise.

    Args:
        stack: particles with their table.

    Yields:
        One warning at most.
    """
    positions = position_numbers(stack.star)
    if positions is None:
        return
    image = find_repeated_images(stack.images).image
    n_images = int(image.max()) + 1
    is_picked_again = (positions * n_images + image).unique().div(n_images, rounding_mode="floor").bincount() > 1
    if bool(is_picked_again.any()):
        row = int(is_picked_again[positions].nonzero()[0])
        other = int(((positions == positions[row]) & (image != image[row])).nonzero()[0])
        yield Note(
            f"{int(is_picked_again.sum())} positions on a micrograph have more than one image, the first in rows "
            f"{row + 1} and {other + 1}: particles that were picked twice. Their noise is shared; where they are in "
            "both half sets, the FSC is too high. Remove them, for example with relion_star_handler "
            "--remove_duplicates.",
            "warning",
        )


def given_half_set_notes(half_set: Int[Tensor, " particles"] | None) -> Iterator[Note]:
    """Warnings of half sets in the particle file that are missing, empty or very uneven.

    Args:
        half_set: rlnRandomSubset, 1 or 2 for each particle; None where the file has none.

    Yields:
        One warning at most.
    """
    if half_set is None:
        yield Note("The particles have no rlnRandomSubset (alignments3D/split), so no half maps are made.", "warning")
        return
    total, sizes = len(half_set), [int((half_set == half).sum()) for half in (1, 2)]
    smaller = sizes.index(min(sizes)) + 1
    if min(sizes) == 0:
        yield Note(
            f"All {total} rows are in half set {3 - smaller} (rlnRandomSubset): no half maps are made, and the "
            "resolution stays unknown. Give the particles of a refinement with two half sets, or leave out "
            "--pose-inference known.",
            "warning",
        )
    elif min(sizes) < _UNEVEN * total:
        yield Note(
            f"The half sets are uneven (rlnRandomSubset): half set {smaller} holds {min(sizes)} of {total} rows "
            f"({min(sizes) / total:.1%}). The FSC is that of its noisy half map, not that of two equal halves.",
            "warning",
        )


def separate_copies(
    dataset: ParticleDataset, posed: PosedParticles, *, seed: int, is_known: bool
) -> Generator[Event, None, PosedParticles]:
    """Particles whose half sets share no image, with the number of repeated images among their metrics.

    All processes of a job call it together.

    Args:
        dataset: particles, each of which was read by the process that works on it.
        posed: particles with assigned poses.
        seed: random seed of the run.
        is_known: whether poses and half sets are those of the particle file.

    Yields:
        A warning, where images are repeated in the particle file of known poses.

    Returns:
        The particles; the same half sets where these share no image.
    """
    repeated = find_repeated_images(dataset.images)
    if repeated.n_images == 0:
        return posed
    half_set = posed.half_set
    n_divided = 0 if half_set is None else repeated.count(repeated.is_divided(half_set))
    metrics = replace(
        posed.metrics,
        repeated_images=repeated.n_images,
        repeated_rows=repeated.n_rows,
        repeated_across_halves=n_divided,
    )
    if n_divided > 0:
        refined_on = ", on which the given poses may have been refined" if is_known else ""
        metrics = replace(metrics, dependent_halves=f"the half sets shared {n_divided} images{refined_on}")
    if is_known:
        yield Note(f"{_count(repeated)}{_fate(n_divided, half_set)}", "warning")
        if half_set is not None:
            half_set = keep_copies_together(half_set, repeated.image, stream_generator(seed, Stream.HALF_SETS))
    return replace(posed, half_set=half_set, metrics=metrics)


def independence_notes(metrics: ReconstructionMetrics, pixel_size_angstrom: float) -> Iterator[Note]:
    """That pixels limit the resolution; what makes half maps dependent the verdict says.

    Args:
        metrics: metrics of the run, with the resolution of the half maps.
        pixel_size_angstrom: pixel size of the maps.

    Yields:
        One note at most.
    """
    resolution, nyquist = metrics.half_map_resolution_angstrom, 2 * pixel_size_angstrom
    if not metrics.dependent_halves and resolution is not None and resolution < 1.001 * nyquist:
        yield Note(
            f"The half maps agree up to Nyquist ({nyquist:.3g} Å): the pixels limit the resolution, not the noise, "
            "unless the half sets are not independent."
        )


def _count(repeated: RepeatedImages) -> str:
    first, second = (row + 1 for row in repeated.first_pair)
    each = repeated.copies_of_each
    times = "" if each is None else f", each {each} times (as after symmetry expansion, or where tables were joined)"
    return (
        f"{repeated.n_images} images appear in more than one row of the particle table, {repeated.n_rows} of "
        f"{len(repeated.image)} rows in all{times}; the first is in rows {first} and {second}."
    )


def _fate(n_divided: int, half_set: Int[Tensor, " particles"] | None) -> str:
    if half_set is None:
        return ""
    if n_divided == 0:
        return " All copies of an image are in one half set (rlnRandomSubset)."
    return (
        f" {n_divided} of them are in both half sets (rlnRandomSubset), so that noise would agree with itself: these "
        "images are split anew, all copies of an image in one half set. Remove the copies, and refine again."
    )
