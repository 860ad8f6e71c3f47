"""Generalization of the network of a hybrid run: held-out bound, PAC-Bayes bound, and error rates on particles.

The network of a half set was trained on synthetic projections of its half map, each of a known view and none used
twice. Other projections of the same distribution give the held-out (Hoeffding) bound and the generalization gap. No
bound shows whether the map is right, nor whether particles are like its projections: for that, particles of the other
half set, which neither map nor network has seen, are told too, and compared with the final poses of the run.

A prediction is the most probable view, up to its sign. Where particles are shifted, the network evaluates each image at
many offsets. The bounds are for one evaluation, at the offset nearest to the shift; the choice of the offset is not
part of them, but it is part of the error rates on particles.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.errors import CheckpointError, ConfigError, CryoEqError
from cryoeq.generalization.folded_layers import FoldedNet, fold_network, network_inputs
from cryoeq.generalization.pac_bayes import (
    GeneralizationBound,
    HeldOutBound,
    NormTerms,
    generalization_bound,
    norm_terms,
    view_margins,
)
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_half_set, star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import write_json
from cryoeq.models.view_head import nearness
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.infer import load_views
from cryoeq.pipelines.infer_views import transforms_of
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.training.views.encoder import small_volume
from cryoeq.training.views.network_projections import Projections
from cryoeq.training.views.network_views import NetworkViews
from cryoeq.training.views.stored_views import StoredViews

_ADVICE = "Run the reconstruction with --pose-inference hybrid --set hybrid.posterior=network"
_BATCH = 512
_HALF = 1  # half set whose network is bounded


@dataclass(frozen=True)
class NetworkEvaluation:
    """A network with its folded form, and the error above which a view is wrong.

    Args:
        views: trained network with its preprocessing.
        net: its folded form.
        terms: norms of its weights.
        threshold_rad: angle to the true view above which one is wrong.
        symmetry: rotations of the map's point group.
    """

    views: NetworkViews
    net: FoldedNet
    terms: NormTerms
    threshold_rad: float
    symmetry: Float[Tensor, "order 3 3"]

    def right_views(self, directions: Float[Tensor, "count 3"]) -> Bool[Tensor, "count views"]:
        """Whether each view is near enough to the true ones."""
        near = nearness(directions, self.views.network.directions, self.symmetry)
        return near > math.cos(self.threshold_rad) ** 2

    @torch.no_grad()
    def margins(self, projections: Projections) -> Float[Tensor, " count"]:
        """Smallest change of the output that makes a view wrong, as a fraction of the largest possible output."""
        network, given = self.views.network, self.views.network_input
        nearest = given.nearest_offsets(projections.shifts_px)
        images = given.shifted_images(projections.ctf_multiplied, nearest[:, None])
        lengths = network_inputs(network, self.net, images).norm(dim=1)
        margins = view_margins(network(images, projections.ctf_features), self.right_views(projections.directions))
        return margins / (lengths * self.terms.spectral_norm)


@dataclass(frozen=True)
class ParticleErrorRates:
    """Fractions of particles whose most probable view is not that of their final pose.

    Args:
        held_out: bound on the particles of the other half set, which neither half map nor network has seen.
        own_count: number of particles of the network's half set.
        own_error_rate: fraction of these.
    """

    held_out: HeldOutBound
    own_count: int
    own_error_rate: float

    @property
    def measured_gap(self) -> float:
        """Error rate on the other half set minus that on the network's own."""
        return self.held_out.error_rate - self.own_error_rate


def bound_run(config: EvaluateConfig, folder: Path, device: torch.device) -> Generator[Event, None, dict[str, object]]:
    """Bound the error rate of a run's network on new images, and report the terms of the bound.

    Args:
        config: resolved settings.
        folder: folder of a hybrid run, or its ``encoder.pt``.
        device: device of the computation.

    Returns:
        The content of ``bound.json``.

    Raises:
        CheckpointError: there is no encoder, or none with a network.
        ConfigError: the bound does not cover this kind of network.
    """
    stored = load_views(folder, device, missing=_ADVICE, older=_ADVICE)
    views, symmetry = _network_of(stored, folder), stored.classes[0].settings.symmetry.to(device)
    try:
        net = fold_network(views.network)
    except ValueError as error:
        found = f"{folder} holds {error}"
        expected = "the bound is derived for dense trunks of c1, c2, c4, d1, d2 and d4"
        raise ConfigError(
            found, expected, "Bound the network of a run with the default encoder.design.trunk"
        ) from error
    terms = norm_terms({layer.name: layer.blocks(net.group) for layer in net.layers})
    evaluation = NetworkEvaluation(views, net, terms, math.radians(config.error_threshold_deg), symmetry)
    source = views.source
    trained_on = (projections for projections, _ in source.training_projections(views.network_input))
    training = yield from evaluate_margins(evaluation, trained_on, source.count, "training projections")
    count = config.held_out_projections
    others = yield from evaluate_margins(evaluation, source.held_out_projections(count), count, "held-out projections")
    held_out = HeldOutBound(len(others), int((others <= 0).sum()) / len(others), config.delta)
    bound = generalization_bound(terms, training, held_out, delta=config.delta)
    particles = yield from _evaluate_particles(evaluation, stored, folder, config)
    yield from _report(bound, particles, folder, config)
    results = _as_json(bound, particles, config)
    if config.output is not None:
        path = make_folder(config.output) / "bound.json"
        write_json(path, results)
        yield Note(f"Bounds and their terms: {path}")
    return results


def _network_of(stored: StoredViews, folder: Path) -> NetworkViews:
    """The network of the first class and half set."""
    of_class = stored.classes[0]
    half = of_class.halves[_HALF - 1]
    if half.network is None:
        raise CheckpointError(
            f"{folder}: its encoder compares slices of the half map, and has no network to bound",
            "the bound is one of networks",
            _ADVICE,
        )
    return NetworkViews.from_state(half.network, small_volume(half.volume))


def _run_of(folder: Path) -> RunFolder:
    return RunFolder(folder if folder.is_dir() else folder.parent)


def evaluate_margins(
    evaluation: NetworkEvaluation, batches: Iterator[Projections], count: int, stage: str
) -> Generator[Event, None, Float[Tensor, " projections"]]:
    """Margins of a network on synthetic projections.

    Args:
        evaluation: the network.
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
    evaluation: NetworkEvaluation, stored: StoredViews, folder: Path, config: EvaluateConfig
) -> Generator[Event, None, ParticleErrorRates | None]:
    """Error rates on particles; None where their images are missing."""
    run, views = _run_of(folder), evaluation.views
    try:
        star = read_star(run.path("run_data.star"))
        final, half_set = star_poses(star).rotations[:, 2], star_half_set(star)
        if half_set is None:
            return None
        dataset = _open_particles(run, stored, len(final))
        batches = []
        for batch in dataset.batches(_BATCH):
            particles = transforms_of(batch.to(evaluation.symmetry.device), dataset.pixel_size_angstrom)
            small = particles.within(views.network_input.radius, views.network_input.box_size_px)
            found = views.logits(small).logsumexp(2).argmax(1)
            is_right = evaluation.right_views(final[batch.indices].to(found.device))
            batches.append(~is_right.gather(1, found[:, None]).squeeze(1).cpu())
            yield Progress("particles", int(batch.indices[-1]) + 1, len(dataset))
    except CryoEqError as error:
        yield Note(f"Particle images not found or changed; particle statistics skipped. {error}", "warning")
        return None
    is_wrong, is_own = torch.cat(batches), half_set == _HALF
    rates = [float(is_wrong[rows].float().mean()) for rows in (~is_own, is_own)]
    return ParticleErrorRates(HeldOutBound(int((~is_own).sum()), rates[0], config.delta), int(is_own.sum()), rates[1])


def _open_particles(run: RunFolder, stored: StoredViews, count: int) -> ParticleDataset:
    job = read_reconstruction_job(run, "Give the whole folder of the run")
    box = read_map(run.path("run_class001.mrc")).box_size_px
    return open_particles(job, None, count=count, box_size_px=box, max_box_px=stored.box_size_px)[1]


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
        rows["Particles of half set 2"] = (
            f"views of {on_particles.error_rate:.2%} of {on_particles.count:,} differ from their final ones, bound "
            f"{on_particles.value:.2%} (Hoeffding)"
        )
        rows["Particles of half set 1"] = (
            f"{particles.own_error_rate:.2%} of {particles.own_count:,}; gap {particles.measured_gap:+.2%}"
        )
    yield Report(f"Network of half set 1 of {folder} on images that it was not trained on", rows)
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
