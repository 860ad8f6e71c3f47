"""Poses by search, and view encoders that pose other particles as well.

The particles but those held out go through a search as without an encoder. Then each half set trains an encoder of its
own, on its half map and its particles. It poses the held-out particles of its half set, which the search has not seen;
how far that is from their final poses is reported. ``encoder.pt`` keeps both, for ``cryoeq infer``.

No synthetic projection has the CTFs of held-out particles, but they add to the final map.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.build_autoencoder import encoder_design, report_learnt_equivariance, widths_error
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.held_out import hold_out, with_held_out
from cryoeq.pipelines.reconstruct.plan import plan_hybrid
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import pose_all, refine_halves
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.acceptance import require_reproducible, shared_resolution_note
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.state import Checkpointer, ParticlePoses, RefinementSettings, RefinementState, no_checkpoints
from cryoeq.runtime.distributed import is_main_process
from cryoeq.training.views.encoder import ViewSettings, compared_shell
from cryoeq.training.views.network_training import NetworkSettings, build_network
from cryoeq.training.views.network_views import NetworkViews
from cryoeq.training.views.posing import InferredPoses, ViewPoser, errors_rad
from cryoeq.training.views.stored_views import StoredClass, StoredHalf, StoredViews, learn_half
from cryoeq.training.views.training import ViewTrainingSettings

ENCODER_FILE = "encoder.pt"
INFERENCE_STAGE = "encoder inference"
_FAR_DEG = 30.0


@dataclass(frozen=True)
class LearntHalves:
    """The encoders of both half sets.

    Args:
        stored: what the file keeps.
        posers: by half set.
    """

    stored: StoredClass
    posers: Mapping[int, ViewPoser]


def search_with_views(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    run: RunFolder,
    device: torch.device,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, PosedParticles]:
    """Find the structure from noise, and train encoders on its half maps.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        run: where ``encoder.pt`` goes.
        device: where to compute.
        checkpoint: saves finished steps of the search.

    Raises:
        DivergedError: nothing was found.
    """
    settings = build_ab_initio_settings(config, dataset)
    refinement = settings.refinement
    network_settings(config, dataset.box_size_px)
    yield plan_hybrid(refinement, has_network=config.hybrid.posterior == "network")
    particles = yield from load_transforms(dataset, device)
    half_set = (yield from split_particles(dataset, config.seed)).to(device)
    held_out, searched = hold_out(config, dataset, device)
    some = particles.rows(searched)
    consensus = yield from reconstruct_ab_initio(some, half_set[searched], settings, checkpoint=checkpoint)
    halves = yield from refine_halves(consensus, some, refinement, seed=config.seed, checkpoint=checkpoint)
    yield from require_reproducible(some, consensus, halves, settings)
    yield shared_resolution_note(refinement)
    learnt = yield from learn_views(config, some, halves, refinement)
    del some
    inferred = yield from _pose_held_out(learnt, particles, half_set, held_out)
    if is_main_process():
        stored = stored_views(config, dataset, (learnt.stored,))
        save_checkpoint(run.path(ENCODER_FILE), stored.to_state())
    whole = with_held_out(halves, searched, half_set)
    if inferred is not None:
        unknown = inferred.log_likelihood.new_zeros(len(held_out))
        known = ParticlePoses(inferred.poses, unknown, inferred.log_likelihood)
        whole = replace(whole, particles=whole.particles.with_rows(held_out, known))
    posed = yield from pose_all(config, dataset, particles, whole, refinement, checkpoint)
    return (yield from _report_held_out(config, dataset, posed, inferred, held_out, refinement))


def learn_views(
    config: ReconstructConfig, particles: ParticleTransforms, halves: RefinementState, refinement: RefinementSettings
) -> Generator[Event, None, LearntHalves]:
    """Train the encoder of each half set on its map and its particles.

    Args:
        config: settings of the run.
        particles: the particles of both half sets.
        halves: their maps, and poses against them.
        refinement: settings of the search.
    """
    settings = view_settings(refinement, particles.plane.box_size_px)
    training = training_settings(config)
    stored, posers = list[StoredHalf](), dict[int, ViewPoser]()
    for half, rows, volume in halves.halves():
        found, posers[half] = yield from learn_half(
            volume,
            particles.rows(rows),
            halves.poses.rows(rows),
            settings,
            training,
            seed=config.seed,
            number=half,
            network=network_settings(config, particles.plane.box_size_px),
        )
        stored.append(found)
        if isinstance(network := posers[half].encoder.network, NetworkViews):
            yield from report_learnt_equivariance(network.network)
    return LearntHalves(StoredClass((stored[0], stored[1]), settings), posers)


def training_settings(config: ReconstructConfig) -> ViewTrainingSettings:
    """How long heads are trained, and on how much."""
    steps = config.hybrid.training_steps or ViewTrainingSettings.steps
    return ViewTrainingSettings(config.hybrid.projections, steps)


def network_settings(config: ReconstructConfig, box_size_px: int) -> NetworkSettings | None:
    """The network that gives the posterior over views; None where slices of the half map do.

    Args:
        config: settings of the run.
        box_size_px: box of the search.

    Raises:
        ConfigError: its widths do not fit the box, its samples not the group, or its degree not the kernels.
    """
    if config.hybrid.posterior == "slices":
        return None
    encoder, hybrid = config.encoder, config.hybrid
    settings = NetworkSettings(
        encoder.group, encoder.channels, encoder.design.trunk, encoder_design(config), encoder.precision == "bf16",
        max_shell=hybrid.max_shell, steps=hybrid.training_steps or NetworkSettings.steps, batch_size=hybrid.batch_size,
        learning_rate=hybrid.learning_rate, initial_noise_scale=hybrid.initial_noise_scale,
    )  # fmt: skip
    radius = min(hybrid.max_shell, compared_shell(box_size_px))
    try:
        build_network(settings, radius, torch.eye(3))  # to fail before the search, not behind it
    except ValueError as error:
        raise widths_error(error) from error
    return settings


def view_settings(refinement: RefinementSettings, box_size_px: int) -> ViewSettings:
    """What encoders assume, as the search does.

    Args:
        refinement: settings of the search.
        box_size_px: the box in whose pixels its offsets are.
    """
    return ViewSettings(
        refinement.shift_sigma_px / box_size_px,
        refinement.mask_radius,
        refinement.symmetry,
        refinement.max_exhaustive_shell,
    )


def stored_views(config: ReconstructConfig, dataset: ParticleDataset, classes: tuple[StoredClass, ...]) -> StoredViews:
    """The encoders of a run, with what new particles must be like.

    Args:
        config: settings of the run.
        dataset: its particles, at the box where poses are inferred.
        classes: encoders of each class.
    """
    return StoredViews(
        classes,
        dataset.box_size_px,
        dataset.pixel_size_angstrom,
        dataset.table.ctf is not None,
        config.input.particle_diameter_angstrom,
    )


def _pose_held_out(
    learnt: LearntHalves,
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    held_out: Int[Tensor, " held"],
) -> Generator[Event, None, InferredPoses | None]:
    """Poses of the held-out particles by the encoder of their half set, refined; None where there are none."""
    if not len(held_out):
        return None
    yield Progress(INFERENCE_STAGE, 0, len(held_out))
    found, order = [], []
    for half, poser in learnt.posers.items():
        members = (half_set[held_out] == half).nonzero().squeeze(1)
        if len(members):
            found.append(poser.pose(particles.rows(held_out[members]), refines=True))
            order.append(members)
    yield Progress(INFERENCE_STAGE, len(held_out), len(held_out))
    return InferredPoses.cat(found).rows(torch.cat(order).argsort())


def _report_held_out(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    posed: PosedParticles,
    inferred: InferredPoses | None,
    held_out: Int[Tensor, " held"],
    refinement: RefinementSettings,
) -> Generator[Event, None, PosedParticles]:
    """How far the poses of held-out particles by the encoder are from their final ones."""
    if inferred is None:
        return posed
    final = PoseSet.from_angstrom(posed.poses, dataset.pixel_size_angstrom, dataset.box_size_px)
    ours = inferred.poses.each(torch.Tensor.cpu)
    error_deg = errors_rad(ours, final.rows(held_out.cpu()), refinement.symmetry.cpu()).rad2deg()
    median_deg = float(error_deg.median())
    yield Note(
        f"Encoder, held-out particles ({len(held_out)}): median rotation difference to final poses {median_deg:.1f}°; "
        f"{float((error_deg > _FAR_DEG).float().mean()):.1%} beyond 30°."
    )
    return replace(posed, metrics=replace(posed.metrics, held_out_median_deg=median_deg))
