"""Poses by search and encoder: an encoder trained on the consensus map replaces the later global searches.

The search goes up to the consensus map at low resolution, on all particles but those held out. The encoder is trained
on synthetic projections of that map; its pose candidates for every particle, refined locally, replace the global search
at all later resolutions. Particles whose candidates are of low confidence go back to the exhaustive search, held-out
ones excepted. Where the search reaches the last shell of the particles, an exhaustive pass takes seconds and gives
better maps than one pose of each particle does: there the run ends as a search does, from the encoder's poses.

The encoder sees the consensus map only, up to the radius at which the half sets part, as every first pose of a search
does. Beyond that radius the half maps share nothing: each half set is refined against its own map.

At the end the encoder is fine-tuned on the mean of the half maps, and poses the held-out particles by one forward pass.
How far that is from their final poses is reported. No synthetic projection has their CTFs, but they did add to the map.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.build_autoencoder import build_encoder, report_learnt_equivariance
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.held_out import hold_out, with_held_out
from cryoeq.pipelines.reconstruct.plan import plan_hybrid
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import posed_particles
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.acceptance import report_handedness, require_reproducible, shared_resolution_note
from cryoeq.reconstruction.global_realignment import refine_final_poses, search_poses_exhaustively
from cryoeq.reconstruction.half_set_refinement import (
    LOCAL_STAGE,
    final_iteration,
    refine_half_sets,
    refine_half_sets_locally,
    refine_locally,
)
from cryoeq.reconstruction.local_refinement import RefinedPoses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.reference import References
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, ParticlePoses, RefinementState, no_checkpoints
from cryoeq.runtime.compiling import compile_if_possible
from cryoeq.runtime.distributed import is_main_process
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.synthetic.candidate_selection import RankedPoses, propose_poses_for_all, rank_candidates
from cryoeq.training.synthetic.encoder_input import EncoderInput, best_hypotheses, encoder_box_px
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, TrainingStage, train_encoder
from cryoeq.training.synthetic.pose_estimator import ENCODER_FILE, PoseEstimator
from cryoeq.training.synthetic.projections import ProjectionSimulator
from cryoeq.training.synthetic.training_record import TrainingRecord

_POOR_ENCODER_DEG = 20.0
_INFERENCE_STAGE, _SEARCH_STAGE = "encoder inference", "exhaustive re-search"
CENTRED_STEPS, SHIFTED_STEPS = 800, 1400


@dataclass(frozen=True)
class HybridRun:
    """A hybrid run; its methods are the steps.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        particles: their CTF-multiplied transforms.
        settings: of the search.
        encoder: changed in place by training.
        held_out: particles that are never searched.
        searched: all others.
    """

    config: ReconstructConfig
    dataset: ParticleDataset
    particles: ParticleTransforms
    settings: AbInitioSettings
    encoder: PoseEncoder
    held_out: Int[Tensor, " held"]
    searched: Int[Tensor, " searched"]

    @property
    def last_shell(self) -> int:
        """The last shell of the particles."""
        return self.particles.plane.box_size_px // 2 - 1

    @property
    def encoder_shell(self) -> int:
        """Resolution of the encoder's input."""
        return min(self.config.hybrid.max_shell, self.last_shell)

    @property
    def is_searchable(self) -> bool:
        """Whether the exhaustive search reaches the last shell."""
        return self.settings.refinement.max_exhaustive_shell >= self.last_shell

    @property
    def shift_sigma_px(self) -> float:
        """Standard deviation of the offsets."""
        return self.settings.refinement.shift_sigma_px

    def train(
        self, volume: Float[Tensor, "n n n"], stage: TrainingStage
    ) -> Generator[Event, None, ProjectionSimulator]:
        """Train the encoder on projections of a map, with CTFs and noise of the searched particles.

        Args:
            volume: the map.
            stage: pretraining on the consensus map, or fine-tuning on the final one.
        """
        config, encoder, searched = self.config.hybrid, self.encoder, self.particles.rows(self.searched)
        encoder_input = EncoderInput.from_map(searched, volume, self.encoder_shell, self.shift_sigma_px)
        simulator = ProjectionSimulator.from_map(searched, volume, encoder_input, self.shift_sigma_px)
        steps = config.training_steps or (CENTRED_STEPS if encoder_input.is_centred else SHIFTED_STEPS)
        settings = EncoderTrainingSettings(
            steps, config.batch_size, config.learning_rate, config.concentration, config.initial_noise_scale
        )
        if stage is TrainingStage.PRETRAINING and encoder.n_template_filters:
            generator = stream_generator(self.config.seed, Stream.FILTERS)
            encoder.init_filters_from(simulator.clean_slices(encoder.n_template_filters, generator))
        if stage is TrainingStage.FINETUNING:
            settings = replace(
                settings,
                steps=config.final_training_steps,
                learning_rate=0.5 * config.learning_rate,
                initial_noise_scale=1.0,
            )
        yield from train_encoder(encoder, simulator, settings, seed=self.config.seed, stage=stage)
        yield from report_learnt_equivariance(encoder)
        return simulator

    def infer(self, state: RefinementState, encoder_input: EncoderInput) -> Generator[Event, None, RefinementState]:
        """Every particle's most likely candidate against the consensus map; poses of the search compete.

        Args:
            state: of all particles, with the consensus map.
            encoder_input: preprocessing of the encoder.
        """
        yield Progress(_INFERENCE_STAGE, 0, 1)
        proposals = propose_poses_for_all(self.encoder, self.particles, encoder_input)
        rows = torch.arange(len(self.particles), device=self.searched.device)
        candidates = PoseSet(proposals.rotations, proposals.shifts_px, self.particles.plane.box_size_px)
        ranked = self._rank(state, rows, candidates)
        yield Progress(_INFERENCE_STAGE, 1, 1, {"max_probability": float(ranked.confidence.mean())})
        state = _with_ranked(state, ranked, rows)
        is_doubtful = ranked.low_confidence(self.config.hybrid.min_confidence)
        doubtful = self.searched[is_doubtful[self.searched]]
        yield Note(
            f"Encoder poses accepted for {1 - len(doubtful) / max(1, len(self.searched)):.0%} of particles; "
            f"{len(doubtful)} re-aligned by exhaustive search."
        )
        return (yield from self.search_again(state, doubtful, TrainingStage.PRETRAINING))

    def search_again(
        self, state: RefinementState, rows: Int[Tensor, " rows"], stage: TrainingStage
    ) -> Generator[Event, None, RefinementState]:
        """Exhaustive search of some particles against a map that the half sets share; the better pose stays.

        Args:
            state: with the shared map.
            rows: the particles.
            stage: which search it is; each has random numbers of its own.
        """
        if len(rows) == 0:
            return state
        yield Progress(_SEARCH_STAGE, 0, len(rows))
        generator = stream_generator(self.config.seed, Stream.HELD_OUT, 1 + stage)
        reference = References(self.particles).of(state.reference.mean)
        refinement = self.settings.refinement
        found = search_poses_exhaustively(self.particles, rows, reference, refinement, generator)
        ranked = self._rank(state, rows, found.poses.each(lambda values: values[:, None]))
        yield Progress(_SEARCH_STAGE, len(rows), len(rows))
        return _with_ranked(state, ranked, rows)

    def refine_half_sets(self, state: RefinementState) -> Generator[Event, None, RefinementState]:
        """The independent half sets, over all orientations where the search reaches the last shell, else locally.

        Args:
            state: with the consensus map; its half sets part here.
        """
        particles, refinement, config = self.particles, self.settings.refinement, self.config
        if self.is_searchable:
            return (yield from refine_half_sets(state, particles, refinement, seed=config.seed))
        iterations = config.hybrid.local_iterations
        return (yield from refine_half_sets_locally(state, particles, refinement, iterations=iterations))

    def refine_all(self, halves: RefinementState) -> Generator[Event, None, tuple[RefinementState, RefinedPoses]]:
        """All particles against the mean map; those held out are searched too.

        Args:
            halves: the half sets at their end.
        """
        particles, refinement, seed = self.particles, self.settings.refinement, self.config.seed
        if self.is_searchable:
            final = yield from final_iteration(halves, particles, refinement, seed=seed)
            return final, (yield from refine_final_poses(final, particles, refinement, seed=seed))
        final = yield from self.search_again(halves.merged(), self.held_out, TrainingStage.FINETUNING)
        yield Progress(LOCAL_STAGE, 0, 1)
        refined = refine_locally(final, References(particles), self.last_shell, self.shift_sigma_px)
        yield Progress(LOCAL_STAGE, 1, 1)
        return final, refined

    def save(self, simulator: ProjectionSimulator, volume: Float[Tensor, "n n n"], run: RunFolder) -> None:
        """Write all that posing other particles needs, and the record of the last training stage.

        Args:
            simulator: of the training projections.
            volume: their map.
            run: the run folder.
        """
        dataset, config = self.dataset, self.config.hybrid
        estimator = PoseEstimator(
            self.encoder,
            simulator.encoder_input,
            self.encoder_shell,
            dataset.box_size_px,
            dataset.pixel_size_angstrom,
            has_ctf=dataset.table.ctf is not None,
            particle_diameter_angstrom=self.config.input.particle_diameter_angstrom,
        )
        record = TrainingRecord(
            volume=volume,
            sigma=simulator.sigma,
            searched=self.searched,
            shift_sigma_px=simulator.shift_sigma_px,
            seed=self.config.seed,
            stage=TrainingStage.FINETUNING,
            steps=config.final_training_steps,
            batch_size=config.batch_size // simulator.encoder_input.offsets_per_projection,
        )
        save_checkpoint(run.path(ENCODER_FILE), {**estimator.to_state(), "training": record.to_state()})

    def _rank(self, state: RefinementState, rows: Int[Tensor, " rows"], candidates: PoseSet) -> RankedPoses:
        """The most likely of the present pose and others, against the shared map at low resolution."""
        subset = self.particles.within(self.encoder_shell, self.particles.plane.box_size_px).rows(rows)
        present = state.poses.rows(rows)
        rotations = torch.cat([present.rotations[:, None], candidates.rotations], 1)
        shifts = torch.cat([present.shifts_px[:, None], candidates.shifts_px], 1)
        reference = References(self.particles).of(state.reference.mean)
        poses = PoseSet(rotations, shifts, present.box_size_px)
        return rank_candidates(subset, reference, poses, shift_sigma_px=self.shift_sigma_px)


def search_with_encoder(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    run: RunFolder,
    device: torch.device,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, PosedParticles]:
    """Find the structure from noise, and an encoder that poses particles by one forward pass.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        run: where ``encoder.pt`` goes.
        device: where to compute.
        checkpoint: saves finished steps of the search.

    Raises:
        DivergedError: nothing was found.
    """
    settings, last_shell = build_ab_initio_settings(config, dataset), dataset.box_size_px // 2 - 1
    yield plan_hybrid(settings.refinement, is_searchable=settings.refinement.max_exhaustive_shell >= last_shell)
    particles = yield from load_transforms(dataset, device)
    half_set = (yield from split_particles(dataset, config.seed)).to(device)
    held_out, searched = hold_out(config, dataset, device)
    consensus = yield from reconstruct_ab_initio(
        particles.rows(searched), half_set[searched], settings, checkpoint=checkpoint
    )
    hybrid = HybridRun(config, dataset, particles, settings, _build(config, dataset, device), held_out, searched)
    yield from compile_if_possible(hybrid.encoder, is_requested=config.encoder.compiled)
    simulator = yield from hybrid.train(consensus.reference.mean, TrainingStage.PRETRAINING)
    state = yield from hybrid.infer(with_held_out(consensus, searched, half_set), simulator.encoder_input)
    halves = yield from hybrid.refine_half_sets(state)
    yield from require_reproducible(particles.rows(searched), consensus, halves, settings)
    mean_map = halves.reference.mean
    simulator = yield from hybrid.train(mean_map, TrainingStage.FINETUNING)
    encoder_poses = torch.zeros(0, 3, 3, device=device)
    if len(held_out) > 0:
        proposals = propose_poses_for_all(hybrid.encoder, particles.rows(held_out), simulator.encoder_input)
        encoder_poses, _ = best_hypotheses(proposals)
    if is_main_process():
        hybrid.save(simulator, mean_map, run)
    final, refined = yield from hybrid.refine_all(halves)
    yield shared_resolution_note(settings.refinement)
    yield from report_handedness(final, dataset.pixel_size_angstrom, config.search.symmetry)
    exhaustive_shell = settings.refinement.max_exhaustive_shell if hybrid.is_searchable else 0
    posed = posed_particles(dataset, halves, final, refined, exhaustive_shell=exhaustive_shell)
    return (yield from _report_held_out(hybrid, posed, encoder_poses, refined))


def _build(config: ReconstructConfig, dataset: ParticleDataset, device: torch.device) -> PoseEncoder:
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        shell = min(config.hybrid.max_shell, dataset.box_size_px // 2 - 1)
        return build_encoder(config, encoder_box_px(shell)).to(device)


def _with_ranked(state: RefinementState, ranked: RankedPoses, rows: Int[Tensor, " rows"]) -> RefinementState:
    particles = ParticlePoses(ranked.refined.poses, ranked.confidence, ranked.refined.log_likelihood)
    return replace(state, particles=state.particles.with_rows(rows, particles))


def _report_held_out(
    hybrid: HybridRun, posed: PosedParticles, encoder_poses: Float[Tensor, "held 3 3"], refined: RefinedPoses
) -> Generator[Event, None, PosedParticles]:
    """How far the forward pass of held-out particles is from their final poses."""
    metrics = posed.metrics
    if not hybrid.is_searchable:  # there is no log-likelihood of all particles: that would take a search of all
        metrics = replace(metrics, log_evidence=None)
    if len(encoder_poses) > 0:
        error_rad = rotation_angle_rad(encoder_poses, refined.poses.rotations[hybrid.held_out]).median()
        error_deg = math.degrees(float(error_rad))
        metrics = replace(metrics, held_out_median_deg=error_deg)
        yield Note(
            f"Encoder, held-out particles ({len(encoder_poses)}): median rotation difference to final poses "
            f"{error_deg:.1f}°."
        )
        if error_deg > _POOR_ENCODER_DEG:
            yield Note(
                f"The encoder is poor: by itself it poses half of the particles that it has not seen more than "
                f"{_POOR_ENCODER_DEG:g}° away. The map does not suffer, since its poses were refined, but cryoeq infer "
                "with encoder.pt would. Train it longer: --set hybrid.training_steps=VALUE.",
                "warning",
            )
    return replace(posed, metrics=metrics)
