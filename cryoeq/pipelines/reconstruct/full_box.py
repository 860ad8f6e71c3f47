"""Refinement at the full box as the last part of a reconstruction: whether it pays, its settings, its particles."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.fsc import MaskConfig
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, without_notes
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.errors import MapFileError
from cryoeq.pipelines.reconstruct.build import build_refinement_settings, last_shell, takes_poses
from cryoeq.pipelines.reconstruct.checkpoints import decide
from cryoeq.pipelines.reconstruct.ctf import refine_ctf_and_poses
from cryoeq.pipelines.reconstruct.half_map_resolution import curves_in_automatic_mask
from cryoeq.pipelines.reconstruct.nonuniform import NonuniformReferences
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.preflight import affordable_shell
from cryoeq.reconstruction.full_box_refinement import FullBoxPoses, FullBoxSettings, refine_at_full_box
from cryoeq.reconstruction.maximization import SolventFinder, SolventMask
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.state import Checkpointer, State, Step

_FIRST_STEP = "full_box_0"  # of ``refine_at_full_box``: its first maps
# Share of the shells of the search's box that half maps agree to, from which on the full box may gain: within the mask
# they agree further than without, and their iterations have not ended. Real ribosomes agree to 20 of 32 shells in the
# search and to 36 of 40 within their mask after refinement at the full box: 14.3 and 11.9 Angstrom.
_LEAST_SHARE = 0.5
# The mask that flattens the solvent is tighter than that of the final curves: what noise it leaves is in every pose.
_TIGHT = MaskConfig(extension_angstrom=0.5, edge_angstrom=6.0)


def refine_where_it_gains(
    config: ReconstructConfig,
    searched: ParticleDataset,
    stored: ParticleDataset,
    posed: PosedParticles,
    device: torch.device,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """Poses refined at the full box, where half maps may agree beyond the box in which their particles were posed.

    ``cryoeq refine`` does so always.

    Args:
        config: settings of the run.
        searched: the particles at the box of the search.
        stored: the particles at the box of the files.
        posed: particles with poses and half sets.
        device: where to compute.
        checkpoint: saves finished iterations.
    """
    shell, side = posed.resolution_shell, stored.box_size_px * stored.pixel_size_angstrom
    is_asked, is_cropped = config.pose_inference == "refine", searched.box_size_px < stored.box_size_px
    if shell is None or not config.full_box.iterations or not (is_cropped or is_asked):
        yield from _unused_notes(config)
        return posed
    if not takes_poses(config) and (reason := _reason_against(config, side / max(1, shell), searched)):
        yield Note(f"No refinement at the full box: {reason}.")
        return posed

    def refine(
        dataset: ParticleDataset, posed: PosedParticles, name: str = ""
    ) -> Generator[Event, None, PosedParticles]:
        named = partial(_named, checkpoint, name)
        return refine_posed_particles(config, dataset, posed, device, named)

    posed = yield from refine(stored, posed)
    if config.full_box.ctf_refinement:
        posed = yield from refine_ctf_and_poses(stored, posed, refine, config.search.symmetry, device)
    return posed


@dataclass(frozen=True)
class ClassRows:
    """Particles of one class that its maps are made from.

    Args:
        rows: of all particles.
        symmetry: point group of the class.
        resolution_shell: shell up to which its half maps agree; None where that is not known.
    """

    rows: Int[Tensor, " _"]
    symmetry: str
    resolution_shell: int | None


def refine_classes_where_it_gains(
    config: ReconstructConfig,
    searched: ParticleDataset,
    stored: ParticleDataset,
    posed: PosedParticles,
    classes: Sequence[ClassRows],
    *,
    device: torch.device,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """Poses of several classes refined at the full box, each class alone, as ``refine_where_it_gains`` does.

    What is not for the maps of a class, as its junk, keeps its poses.

    Args:
        config: settings of the run.
        searched: the particles at the box of the search.
        stored: the particles at the box of the files.
        posed: all particles, each in the frame of its class.
        classes: the classes.
        device: where to compute.
        checkpoint: saves finished iterations.
    """
    if not config.full_box.iterations or searched.box_size_px == stored.box_size_px:
        yield from _unused_notes(config)
        return posed
    full_box = config.full_box.model_copy(update={"ctf_refinement": False})
    for number, part in enumerate(classes, 1):
        of_class = posed.rows(part.rows, part.resolution_shell)
        search = config.search.model_copy(update={"classes": 1, "symmetry": part.symmetry})
        steps = refine_where_it_gains(
            config.model_copy(update={"search": search, "full_box": full_box}),
            searched.rows(part.rows),
            stored.rows(part.rows),
            of_class,
            device,
            partial(_named, checkpoint, f"class{number}_"),
        )
        refined = yield from _of_class(number, steps)
        if refined is not of_class:
            posed = posed.with_rows(part.rows, refined)
    return posed


def _of_class(number: int, steps: Generator[Event, None, PosedParticles]) -> Generator[Event, None, PosedParticles]:
    """Steps whose notes name their class."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            posed: PosedParticles = end.value
            return posed
        yield replace(event, text=f"Class {number}: {event.text}") if isinstance(event, Note) else event


def _unused_notes(config: ReconstructConfig) -> Generator[Event, None, None]:
    """What was asked of the refinement at the full box, where there is none."""
    wanted = config.full_box
    asked = {
        "full_box.max_resolution_angstrom": wanted.max_resolution_angstrom is not None,
        "full_box.ctf_refinement": wanted.ctf_refinement,
        "full_box.non_uniform": wanted.non_uniform,
    }
    if names := [name for name, is_asked in asked.items() if is_asked]:
        reason = "the search used all stored pixels" if wanted.iterations else "full_box.iterations is 0"
        yield Note(
            f"Without effect, as there is no refinement at the full box ({reason}): {', '.join(names)}. cryoeq refine "
            f"{config.output / 'run_data.star'} --local --keep-half-sets makes one.",
            "warning",
        )


def _named(checkpoint: Checkpointer, prefix: str, name: str, step: Step[State]) -> Step[State]:
    return checkpoint(prefix + name, step)


def _reason_against(config: ReconstructConfig, reached_angstrom: float, searched: ParticleDataset) -> str | None:
    """Why a refinement at the full box gains nothing, a clause; None where it may."""
    limit, nyquist = config.full_box.max_resolution_angstrom, 2 * searched.pixel_size_angstrom
    agreed = f"the half maps agree to {reached_angstrom:.1f} Å"
    if limit is not None and reached_angstrom < limit:
        return f"{agreed} already, beyond --max-resolution {limit:g}"
    if config.pose_inference != "refine" and reached_angstrom > nyquist / _LEAST_SHARE:
        return f"{agreed} only, where the box of the search would hold {nyquist:.1f} Å"
    return None


def refine_posed_particles(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    posed: PosedParticles,
    device: torch.device,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """Poses refined at the full box, of the half sets and of all.

    Args:
        config: settings of the run.
        dataset: the particles at the box of the files.
        posed: particles with poses and half sets.
        device: where to compute.
        checkpoint: saves finished iterations.
    """
    if posed.half_set is None or posed.resolution_shell is None:
        raise ValueError("half sets were asked for before")
    box, pixel = dataset.box_size_px, dataset.pixel_size_angstrom
    nonuniform = NonuniformReferences(box * pixel) if config.full_box.non_uniform else None
    settings = full_box_settings(config, dataset, posed.resolution_shell)
    settings = replace(settings, filter_references=nonuniform)
    # What memory holds now may be less, or more, than when the run began.
    affordable = round(
        (yield from decide(checkpoint, "full_box_last_shell", partial(affordable_shell, config, dataset.table, device)))
    )
    if affordable < settings.last_shell:
        reached = settings.refinement.resolution_angstrom(affordable)
        yield Note(f"The refinement at the full box ends at {reached:.1f} Å: memory holds no more shells.", "warning")
        settings = replace(settings, last_shell=affordable, first_shell=min(settings.first_shell, affordable))
    half_poses = posed.poses if posed.half_poses is None else posed.half_poses
    poses = PoseSet.from_angstrom(half_poses, pixel, box).each(lambda values: values.float().to(device))

    def load(radius: int) -> Generator[Event, None, ParticleTransforms]:
        return without_notes(load_transforms(dataset, device, radius=radius))

    if nonuniform is not None:
        checkpoint = partial(_with_decision, checkpoint, nonuniform)
    found = yield from refine_at_full_box(poses, posed.half_set.to(device), load, settings, checkpoint=checkpoint)
    yield from _stop_notes(config, found, settings)
    if nonuniform is not None and (note := nonuniform.note()) is not None:
        yield note
    sigma = found.refined.rotation_sigma_rad.cpu()
    poses_of_all, poses_of_halves = (
        table.each(torch.Tensor.cpu).to_angstrom(pixel) for table in (found.refined.poses, found.half_poses)
    )
    metrics = replace(posed.metrics, median_rotation_sigma_deg=math.degrees(float(sigma.median())))
    return replace(
        posed,
        poses=poses_of_all,
        half_poses=poses_of_halves,
        rotation_sigma_rad=sigma,
        resolution_shell=found.resolution_shell,
        maps=None,
        metrics=metrics,
    )


def _with_decision(
    checkpoint: Checkpointer, nonuniform: NonuniformReferences, name: str, step: Step[State]
) -> Step[State]:
    """A step of the refinement, and the decision on the non-uniform filter that the first one takes."""
    state = yield from checkpoint(name, step)

    def gain() -> float:
        return math.nan if nonuniform.gain is None else nonuniform.gain

    if name == _FIRST_STEP:
        settled = yield from decide(checkpoint, "full_box_noise_gain", gain)
        nonuniform.gain = None if math.isnan(settled) else settled
    return state


def full_box_settings(config: ReconstructConfig, dataset: ParticleDataset, first_shell: int) -> FullBoxSettings:
    """Settings of the refinement of some particles.

    Args:
        config: settings of the run.
        dataset: the particles at the box of the files.
        first_shell: shell up to which their poses were found.
    """
    box, side = dataset.box_size_px, dataset.box_size_px * dataset.pixel_size_angstrom
    last = last_shell(config, box, side)
    return FullBoxSettings(
        build_refinement_settings(config, dataset, config.search.symmetry),
        box,
        min(first_shell, last),
        last,
        config.full_box.iterations,
        solvent_finder(side) if config.full_box.solvent_flattening else None,
        is_independent=not takes_poses(config) or config.refine.keep_half_sets,
    )


def solvent_finder(side_angstrom: float) -> SolventFinder:
    """Finder of an automatic mask as that of ``cryoeq fsc``, but tighter, on the grid of the half maps.

    Args:
        side_angstrom: side of the box.
    """

    def find(halves: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]) -> SolventMask | None:
        pixel = side_angstrom / len(halves[0])
        try:
            found = curves_in_automatic_mask(HalfMaps(*(Volume(half.cpu(), pixel) for half in halves)), _TIGHT)
        except MapFileError:  # no part of the map is denser than the rest
            return None
        return None if found.mask is None else SolventMask(found.mask.values, found.curves.final)

    return find


def _stop_notes(
    config: ReconstructConfig, found: FullBoxPoses, settings: FullBoxSettings
) -> Generator[Event, None, None]:
    """That a limit stopped the refinement, not the data."""
    if found.resolution_shell < settings.last_shell:
        return
    limit = config.full_box.max_resolution_angstrom
    reached = settings.refinement.resolution_angstrom(settings.last_shell)
    if limit is not None and limit > 2.0 * settings.refinement.box_side_angstrom / settings.box_size_px:
        yield Note(f"The half maps agree to {reached:.1f} Å, where --max-resolution {limit:g} stops the refinement.")
