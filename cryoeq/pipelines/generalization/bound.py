"""How far an encoder can be trusted on images that it has not learnt from: a bound by its norms, and measurements.

The encoder of a hybrid run learnt in its last course from renderings of one map, each with a pose that is known exactly
and none shown twice. Others of the same kind measure what the bound is about. What such a bound cannot tell is whether
the map is right, nor whether particles look like renderings: for that, held-out particles are posed too, and compared
with the poses that the run gave them in the end.

Where particles are shifted, an encoder looks at each at many trial shifts. The bound is about one look, at the trial
nearest to the shift; whether the right look is preferred is not part of it, but it is of what held-out particles show.
"""

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
from cryoeq.io.optics import optics_index, read_ctf, read_optics, star_pixel_size
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
class _Trial:
    """An encoder, and when its poses are wrong."""

    taught: PoseEstimator
    net: FoldedNet
    terms: NormTerms
    wrong_rad: float

    @torch.no_grad()
    def margins(self, rendering: SyntheticProjections) -> Float[Tensor, " count"]:
        """By how much of its largest conceivable length the output may move before the pose is wrong."""
        encoder, encoder_input = self.taught.encoder, self.taught.encoder_input
        nearest = encoder_input.nearest_offsets(rendering.shifts_px)
        images = encoder_input.shifted_images(rendering.ctf_multiplied, nearest[:, None])
        vectors, logits = encoder_outputs(encoder, images)
        found = rotation_from_rows(vectors)
        angles = rotation_angle_rad(found, rendering.rotations[:, None].expand_as(found))
        lengths = encoder_inputs(encoder, self.net, images).norm(dim=1)
        return pose_margins(vectors, logits, angles, self.wrong_rad) / (lengths * self.terms.spectral_norm)


def bound_run(config: EvaluateConfig, folder: Path, device: torch.device) -> Generator[Event, None, dict[str, object]]:
    """The bound of a run's encoder, its terms, and the gaps that are measured.

    Args:
        config: the resolved settings.
        folder: of a hybrid run.
        device: where to compute.

    Returns:
        All figures, for JSON.

    Raises:
        CheckpointError: there is no encoder, or its lessons were not recorded.
        ConfigError: the bound does not cover this kind of encoder.
    """
    taught, record = load_encoder(folder, device), _load_record(folder, device)
    try:
        net = fold_encoder(taught.encoder)
    except ValueError as error:
        found = f"{folder} holds {error}"
        expected = "the bound is derived for dense trunks of c1, c2, c4, d1, d2 and d4 with a head of rows"
        raise ConfigError(
            found, expected, "Bound the encoder of a run with the default encoder.design.trunk"
        ) from error
    terms = norm_terms({layer.name: layer.blocks(net.group) for layer in net.layers})
    trial = _Trial(taught, net, terms, config.wrong_deg * torch.pi / 180)
    simulator = record.simulator(taught, _read_ctf(folder) if taught.has_ctf else None)
    learnt = yield from _try_on(trial, record.training_projections(simulator), record.count, "training projections")
    others = yield from _try_on(
        trial, record.held_out_projections(simulator, config.renderings), config.renderings, "held-out projections"
    )
    held_out = HeldOutBound(len(others), int((others <= 0).sum()) / len(others), config.delta)
    bound = generalization_bound(terms, learnt, held_out, delta=config.delta)
    particles = yield from _try_on_particles(trial, record, folder, config)
    yield from _tell(bound, particles, folder, config)
    results = _as_json(bound, particles, config)
    if config.output is not None:
        path = make_folder(config.output) / "bound.json"
        write_json(path, results)
        yield Note(f"Bound and its terms: {path}")
    return results


def _load_record(folder: Path, device: torch.device) -> TrainingRecord:
    path = folder / ENCODER_FILE if folder.is_dir() else folder
    record = TrainingRecord.from_checkpoint(load_checkpoint(path, device), device)
    if record is None or record.steps == 0:
        raise CheckpointError(
            f"{path} does not tell what its encoder was trained on",
            "the bound needs the training record of a hybrid run with hybrid.final_training_steps > 0",
            "Run the reconstruction again",
        )
    return record


def _read_ctf(folder: Path) -> CtfParameters:
    star = read_star(_run_of(folder).path("run_data.star"))
    index = optics_index(star)
    return read_ctf(star, read_optics(star, star_pixel_size(star)), index)


def _run_of(folder: Path) -> RunFolder:
    return RunFolder(folder if folder.is_dir() else folder.parent)


def _try_on(
    trial: _Trial, renderings: Iterator[SyntheticProjections], total: int, stage: str
) -> Generator[Event, None, Float[Tensor, " renderings"]]:
    parts, done = [], 0
    for rendering in renderings:
        parts.append(trial.margins(rendering).cpu())
        done += len(parts[-1])
        yield Progress(stage, done, total)
    return torch.cat(parts)


@dataclass(frozen=True)
class ParticleRisks:
    """Shares of particles that one forward pass poses otherwise than the run did in the end.

    Args:
        held_out: those that the run never searched before its end, and whose CTFs no lesson has.
        searched_count: the others.
        searched_risk: their share.
    """

    held_out: HeldOutBound
    searched_count: int
    searched_risk: float

    @property
    def measured_gap(self) -> float:
        """Of held-out particles and the others."""
        return self.held_out.risk - self.searched_risk


def _try_on_particles(
    trial: _Trial, record: TrainingRecord, folder: Path, config: EvaluateConfig
) -> Generator[Event, None, ParticleRisks | None]:
    """None where the run held none out, or the images are not there."""
    run = _run_of(folder)
    try:
        final = star_poses(read_star(run.path("run_data.star"))).rotations
        is_held_out = torch.isin(torch.arange(len(final)), record.searched.cpu(), invert=True)
        if not is_held_out.any():
            return None
        dataset = _open_particles(run, trial.taught, len(final))
        parts = []
        for batch in dataset.batches(_BATCH):
            found = trial.taught.pose(batch.to(record.sigma.device))[0].rotations.cpu()
            parts.append(rotation_angle_rad(found, final[batch.indices]) >= trial.wrong_rad)
            yield Progress("particles", int(batch.indices[-1]) + 1, len(dataset))
    except CryoEqError as error:
        yield Note(f"Particles are not tried: their files are not where or what they were. {error}", "warning")
        return None
    is_wrong = torch.cat(parts)
    held_out, searched = is_wrong[is_held_out].float(), is_wrong[~is_held_out].float()
    twin = HeldOutBound(len(held_out), float(held_out.mean()), config.delta)
    return ParticleRisks(twin, len(searched), float(searched.mean()))


def _open_particles(run: RunFolder, taught: PoseEstimator, count: int) -> ParticleDataset:
    job = read_reconstruction_job(run, "Give the whole folder of the run")
    box = read_map(run.path("run_class001.mrc")).box_size_px
    return open_particles(job, None, count=count, box_size_px=box, max_box_px=taught.box_size_px)[1]


def _tell(
    bound: GeneralizationBound, particles: ParticleRisks | None, folder: Path, config: EvaluateConfig
) -> Iterator[Event]:
    twin = bound.held_out
    rows = {
        "a pose is wrong": f"beyond {config.wrong_deg:g}°",
        "its lessons": f"{bound.risk:.2%} of {bound.count:,} renderings wrong",
        "held-out renderings": f"{twin.risk:.2%} of {twin.count:,} wrong; measured gap {bound.measured_gap:+.2%}",
        "held-out bound": f"risk below {twin.value:.2%} (Hoeffding, confidence {1 - twin.delta:.0%})",
        "norm-based bound": f"risk below {bound.value:.4g} (PAC-Bayes, confidence {1 - bound.delta:.0%})",
        "  of which": f"{bound.margin_risk:.2%} have a margin of {bound.margin:.2g} or less; slack {bound.slack:.4g}",
        "  complexity": f"{bound.terms.complexity:.3g}, divergence {bound.divergence:.3g} nats",
    }
    if particles is not None:
        held = particles.held_out
        rows["held-out particles"] = (
            f"{held.risk:.2%} of {held.count:,} posed otherwise than in the end; of the others "
            f"{particles.searched_risk:.2%}; gap {particles.measured_gap:+.2%}, Hoeffding {held.value:.2%}"
        )
    yield Report(f"The encoder of {folder} on images that it has not seen", rows)
    yield Report("Terms of the norm-based bound", _term_rows(bound.terms))
    if bound.is_vacuous:
        yield Note(
            "The norm-based bound is vacuous: a risk is never above 100 %, so any network satisfies it. It would say "
            f"something from {bound.examples_needed:.2g} lessons on. Judge this encoder by the "
            "held-out bound.",
            "warning",
        )
    yield Note("All this is about renderings of the run's map. Whether that map is right it cannot tell.")


def _term_rows(terms: NormTerms) -> dict[str, str]:
    total = sum(layer.stable_rank for layer in terms.layers)
    rows = {}
    for layer in terms.layers:
        rows[layer.name] = (
            f"norm {layer.spectral_norm:.3g}, noise {layer.noise:.0f} s, stable rank {layer.stable_rank:.1f} "
            f"({layer.stable_rank / total:.0%} of all)"
        )
        for irrep in layer.irreps:
            rows[f"  {layer.name}, irrep {irrep.irrep}"] = (
                f"{irrep.in_multiplicity} to {irrep.out_multiplicity} copies of dimension {irrep.dim}, "
                f"{irrep.constituents} coefficient{'s' if irrep.constituents > 1 else ''} each; norm "
                f"{irrep.spectral_norm:.2f} of the layer's, stable rank {irrep.stable_rank:.1f}"
            )
    return rows


def _as_json(bound: GeneralizationBound, particles: ParticleRisks | None, config: EvaluateConfig) -> dict[str, object]:
    twin = bound.held_out
    figures: dict[str, object] = {
        "run": str(config.bound),
        "wrong_deg": config.wrong_deg,
        "delta": config.delta,
        "lessons": {"count": bound.count, "risk": bound.risk},
        "held_out": asdict(twin) | {"slack": twin.slack, "value": twin.value},
        "measured_gap": bound.measured_gap,
        "norm_based": {
            "value": bound.value,
            "is_vacuous": bound.is_vacuous,
            "margin": bound.margin,
            "margin_risk": bound.margin_risk,
            "slack": bound.slack,
            "divergence": bound.divergence,
            "complexity": bound.terms.complexity,
            "layers": asdict(bound.terms)["layers"],
        },
    }
    if particles is not None:
        figures["particles"] = asdict(particles) | {
            "held_out_bound": particles.held_out.value,
            "measured_gap": particles.measured_gap,
        }
    return figures
