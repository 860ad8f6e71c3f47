"""Generalization of the encoder of a hybrid run: held-out bound, PAC-Bayes bound, and error rates on particles.

In its last training stage the encoder was trained on synthetic projections of one map, each with a known pose and none
used twice. Other projections of the same distribution give the held-out (Hoeffding) bound and the generalization gap.
No bound shows whether the map is right, nor whether particles are like its projections: for that, held-out particles
are posed too, and compared with the final poses of the run.

Where particles are shifted, the encoder evaluates each image at many offsets. The bounds are for one evaluation, at the
offset nearest to the shift; the choice of the offset is not part of them, but it is part of the error rates on
particles.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.optics import CtfParameters
from cryoeq.errors import CheckpointError, ConfigError, CryoEqError
from cryoeq.generalization.folded_layers import FoldedNet, encoder_inputs, encoder_outputs, fold_encoder
from cryoeq.generalization.pac_bayes import (
    GeneralizationBound,
    HeldOutBound,
    NormTerms,
    generalization_bound,
    norm_terms,
    pose_margins,
)
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.mrc import read_map
from cryoeq.io.optics import read_ctf, read_optics, star_pixel_size, used_optics
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import write_json
from cryoeq.models.pose_head import rotation_from_rows
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.infer import load_encoder
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.training.synthetic.pose_estimator import ENCODER_FILE, PoseEstimator
from cryoeq.training.synthetic.projections import SyntheticProjections
from cryoeq.training.synthetic.training_record import TrainingRecord

_BATCH = 512


@dataclass(frozen=True)
class EncoderEvaluation:
    """An encoder with its folded network, and the error above which a pose is wrong.

    Args:
        estimator: trained encoder with its preprocessing.
        net: folded network of the encoder.
        terms: norms of its weights.
        threshold_rad: rotation error above which a pose is wrong.
    """

    estimator: PoseEstimator
    net: FoldedNet
    terms: NormTerms
    threshold_rad: float

    @torch.no_grad()
    def margins(self, projections: SyntheticProjections) -> Float[Tensor, " count"]:
        """Smallest change of the output that makes a pose wrong, as a fraction of the largest possible output."""
        encoder, encoder_input = self.estimator.encoder, self.estimator.encoder_input
        nearest = encoder_input.nearest_offsets(projections.shifts_px)
        images = encoder_input.shifted_images(projections.ctf_multiplied, nearest[:, None])
        vectors, logits = encoder_outputs(encoder, images)
        rotations = rotation_from_rows(vectors)
        angles = rotation_angle_rad(rotations, projections.rotations[:, None].expand_as(rotations))
        lengths = encoder_inputs(encoder, self.net, images).norm(dim=1)
        return pose_margins(vectors, logits, angles, self.threshold_rad) / (lengths * self.terms.spectral_norm)


@dataclass(frozen=True)
class ParticleErrorRates:
    """Fractions of particles whose pose by one forward pass differs from the final pose of the run.

    Args:
        held_out: bound on particles that were not posed before the final iteration and whose CTFs were not used in
            training.
        searched_count: number of the other particles.
        searched_error_rate: fraction of the other particles.
    """

    held_out: HeldOutBound
    searched_count: int
    searched_error_rate: float

    @property
    def measured_gap(self) -> float:
        """Error rate on held-out particles minus that on the others."""
        return self.held_out.error_rate - self.searched_error_rate


def bound_run(config: EvaluateConfig, folder: Path, device: torch.device) -> Generator[Event, None, dict[str, object]]:
    """Bound the error rate of a run's encoder on new images, and report the terms of the bound.

    Args:
        config: resolved settings.
        folder: folder of a hybrid run, or its ``encoder.pt``.
        device: device of the computation.

    Returns:
        The content of ``bound.json``.

    Raises:
        CheckpointError: there is no encoder, or no record of its training.
        ConfigError: the bound does not cover this kind of encoder.
    """
    estimator, record = load_encoder(folder, device), _load_record(folder, device)
    try:
        net = fold_encoder(estimator.encoder)
    except ValueError as error:
        found = f"{folder} holds {error}"
        expected = "the bound is derived for dense trunks of c1, c2, c4, d1, d2 and d4"
        raise ConfigError(
            found, expected, "Bound the encoder of a run with the default encoder.design.trunk"
        ) from error
    terms = norm_terms({layer.name: layer.blocks(net.group) for layer in net.layers})
    evaluation = EncoderEvaluation(estimator, net, terms, config.error_threshold_deg * torch.pi / 180)
    simulator = record.simulator(estimator, _read_ctf(folder) if estimator.has_ctf else None)
    training = yield from evaluate_margins(
        evaluation, record.training_projections(simulator), record.count, "training projections"
    )
    count = config.held_out_projections
    others = yield from evaluate_margins(
        evaluation, record.held_out_projections(simulator, count), count, "held-out projections"
    )
    held_out = HeldOutBound(len(others), int((others <= 0).sum()) / len(others), config.delta)
    bound = generalization_bound(terms, training, held_out, delta=config.delta)
    particles = yield from _evaluate_particles(evaluation, record, folder, config)
    yield from _report(bound, particles, folder, config)
    results = _as_json(bound, particles, config)
    if config.output is not None:
        path = make_folder(config.output) / "bound.json"
        write_json(path, results)
        yield Note(f"Bounds and their terms: {path}")
    return results


def _load_record(folder: Path, device: torch.device) -> TrainingRecord:
    path = folder / ENCODER_FILE if folder.is_dir() else folder
    record = TrainingRecord.from_checkpoint(load_checkpoint(path, device), device)
    if record is None or record.steps == 0:
        raise CheckpointError(
            f"{path} holds no record of the training of its encoder",
            "the bound needs that of a hybrid run with hybrid.final_training_steps > 0",
            "Run the reconstruction again",
        )
    return record


def _read_ctf(folder: Path) -> CtfParameters:
    star, index = used_optics(read_star(_run_of(folder).path("run_data.star")))
    return read_ctf(star, read_optics(star, star_pixel_size(star)), index)


def _run_of(folder: Path) -> RunFolder:
    return RunFolder(folder if folder.is_dir() else folder.parent)


def evaluate_margins(
    evaluation: EncoderEvaluation, batches: Iterator[SyntheticProjections], count: int, stage: str
) -> Generator[Event, None, Float[Tensor, " projections"]]:
    """Margins of an encoder on synthetic projections.

    Args:
        evaluation: the encoder.
        batches: the projections, batch by batch.
        count: number of projections.
        stage: name of the stage in progress events.
    """
    margins, done = [], 0
    for projections in batches:
        margins.append(evaluation.margins(projections).cpu())
        done += len(margins[-1])
        yield Progress(stage, done, count)
    return torch.cat(margins)


def _evaluate_particles(
    evaluation: EncoderEvaluation, record: TrainingRecord, folder: Path, config: EvaluateConfig
) -> Generator[Event, None, ParticleErrorRates | None]:
    """Error rates on particles; None where the run held none out, or their images are missing."""
    run = _run_of(folder)
    try:
        final = star_poses(read_star(run.path("run_data.star"))).rotations
        is_held_out = torch.isin(torch.arange(len(final)), record.searched.cpu(), invert=True)
        if not is_held_out.any():
            return None
        dataset = _open_particles(run, evaluation.estimator, len(final))
        batches = []
        for batch in dataset.batches(_BATCH):
            rotations = evaluation.estimator.pose(batch.to(record.sigma.device))[0].rotations.cpu()
            batches.append(rotation_angle_rad(rotations, final[batch.indices]) >= evaluation.threshold_rad)
            yield Progress("particles", int(batch.indices[-1]) + 1, len(dataset))
    except CryoEqError as error:
        yield Note(f"Particle images not found or changed; particle statistics skipped. {error}", "warning")
        return None
    is_wrong = torch.cat(batches)
    rates = [float(is_wrong[rows].float().mean()) for rows in (is_held_out, ~is_held_out)]
    held_out = HeldOutBound(int(is_held_out.sum()), rates[0], config.delta)
    return ParticleErrorRates(held_out, int((~is_held_out).sum()), rates[1])


def _open_particles(run: RunFolder, estimator: PoseEstimator, count: int) -> ParticleDataset:
    job = read_reconstruction_job(run, "Give the whole folder of the run")
    box = read_map(run.path("run_class001.mrc")).box_size_px
    return open_particles(job, None, count=count, box_size_px=box, max_box_px=estimator.box_size_px)[1]


def _report(
    bound: GeneralizationBound, particles: ParticleErrorRates | None, folder: Path, config: EvaluateConfig
) -> Iterator[Event]:
    held_out = bound.held_out
    rows = {
        "Held-out bound (Hoeffding)": f"error rate below {held_out.value:.2%} (confidence {1 - held_out.delta:.0%})",
        "Held-out projections": f"{held_out.error_rate:.2%} of {held_out.count:,} wrong",
        "Training projections": f"{bound.error_rate:.2%} of {bound.count:,} wrong",
        "Generalization gap": f"{bound.measured_gap:+.2%}",
        "Error threshold": f"{config.error_threshold_deg:g}°",
    }
    if particles is not None:
        on_particles = particles.held_out
        rows["Held-out particles"] = (
            f"{on_particles.error_rate:.2%} of {on_particles.count:,} differ from their final poses, bound "
            f"{on_particles.value:.2%} (Hoeffding)"
        )
        rows["Other particles"] = (
            f"{particles.searched_error_rate:.2%} of {particles.searched_count:,}; gap {particles.measured_gap:+.2%}"
        )
    yield Report(f"Encoder of {folder} on images that it was not trained on", rows)
    yield Report("Norm-based bound (PAC-Bayes)", _norm_rows(bound))
    if bound.is_vacuous:
        needed = bound.examples_needed
        yield Note(
            "The norm-based bound is vacuous: an error rate is never above 100 %, so any network satisfies it. "
            + ("" if math.isinf(needed) else f"It would need {needed:.2g} training projections. ")
            + "Rely on the held-out bound.",
            "warning",
        )
    yield Note("These bounds are for synthetic projections of the run's map; they do not show whether it is right.")


def _norm_rows(bound: GeneralizationBound) -> dict[str, str]:
    rows = {
        "Norm-based bound": f"error rate below {bound.value:.4g} (confidence {1 - bound.delta:.0%})",
        "Margin": f"{bound.margin_error_rate:.2%} of the training projections have {bound.margin:.2g} or less",
        "Slack": f"{bound.slack:.4g}",
        "Divergence": f"{bound.divergence:.3g} nats (complexity {bound.terms.complexity:.3g})",
    }
    total = sum(layer.stable_rank for layer in bound.terms.layers)
    for layer in bound.terms.layers:
        rows[layer.name] = (
            f"norm {layer.spectral_norm:.3g}, noise {layer.noise:.0f} s, stable rank {layer.stable_rank:.1f} "
            f"({layer.stable_rank / total:.0%} of the sum)"
        )
        for irrep in layer.irreps:
            rows[f"  {layer.name}, irrep {irrep.irrep}"] = (
                f"dimension {irrep.dim}, multiplicity {irrep.in_multiplicity} to {irrep.out_multiplicity}, "
                f"{irrep.constituents} coefficient{'s' if irrep.constituents > 1 else ''} each; relative norm "
                f"{irrep.spectral_norm:.2f}, stable rank {irrep.stable_rank:.1f}"
            )
    return rows


def _as_json(
    bound: GeneralizationBound, particles: ParticleErrorRates | None, config: EvaluateConfig
) -> dict[str, object]:
    held_out = bound.held_out
    results: dict[str, object] = {
        "run": str(config.bound),
        "error_threshold_deg": config.error_threshold_deg,
        "delta": config.delta,
        "training": {"count": bound.count, "error_rate": bound.error_rate},
        "held_out": asdict(held_out) | {"slack": held_out.slack, "value": held_out.value},
        "measured_gap": bound.measured_gap,
        "norm_based": {
            "value": bound.value,
            "is_vacuous": bound.is_vacuous,
            "margin": bound.margin,
            "margin_error_rate": bound.margin_error_rate,
            "slack": bound.slack,
            "divergence": bound.divergence,
            "complexity": bound.terms.complexity,
            "layers": asdict(bound.terms)["layers"],
        },
    }
    if particles is not None:
        results["particles"] = asdict(particles) | {
            "held_out_bound": particles.held_out.value,
            "measured_gap": particles.measured_gap,
        }
    return results
