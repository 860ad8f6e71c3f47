"""Scores of classes against a truth of several molecules, and what the data allow, for ``classes.py``.

The limit is a classification of the same images by the true maps at the true poses: nothing is searched for. Log-
likelihoods up to a shell, noise as the particles leave it, the shares of the structures known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from recorded_runs import CRYOEQ, Record, measure
from scoring import pose_figures, symmetry_frame
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.io.labels import CLASS_NUMBER, JUNK_PROBABILITY
from cryoeq.io.mrc import read_map
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.pipelines.evaluate import match_rows
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms

FOUND_DEG = 10.0  # median rotation error
_CHUNK = 300
_COUNTS = ("good", "kept", "good_kept", "junk_kept", "good_in_right_class")
_SHARES = ("share_of_good_in_right_class", "junk_share_of_kept", "junk_roc_auc")


@dataclass(frozen=True)
class TrueClass:
    """A structure of a truth.

    Args:
        volume: its map.
        symmetry: its point group, Cn or Dn, whatever the direction of its axes.
    """

    volume: Volume
    symmetry: str


def score_run(predicted: Path, truth: Path, structures: Sequence[TrueClass], *, log: Path) -> Record:
    """Figures of ``cryoeq evaluate``, pose errors modulo the symmetry of each structure.

    Args:
        predicted: run folder, or star file with classes and poses.
        truth: ``truth.star``.
        structures: in the order of their numbers in the truth.
        log: file for the output of the command.

    Raises:
        RuntimeError: the command failed.
    """
    answer = log.with_suffix(".json")
    command = [CRYOEQ, "evaluate", str(predicted), str(truth), "--by-class", "--json", str(answer)]
    if measure(command, log=log).exit_code:
        raise RuntimeError(f"cryoeq evaluate failed; see {log}")
    found = read_json(answer)
    scores: Record = {name: found[name] for name in _COUNTS}
    scores |= {name: round(found[name], 4) for name in _SHARES if name in found}
    scores |= {name: found[name] for name in ("confusion", "matched", "junk_by_kind")}
    if "junk_calibration" in found:
        scores["junk_calibration"] = [
            {name: round(value, 3) for name, value in each.items()} for each in found["junk_calibration"]
        ]
    star = predicted / "run_data.star" if predicted.is_dir() else predicted
    scores["classes"] = [_class_scores(each, star, truth, structures) for each in found["classes"]]
    return scores


def _class_scores(found: dict[str, Any], star: Path, truth: Path, structures: Sequence[TrueClass]) -> Record:
    structure = structures[found["true_class"] - 1]
    scores = {name: found[name] for name in ("class", "true_class", "is_matched", "images")}
    if structure.symmetry == "C1":
        figures = {name: found[name] for name in ("rotation_deg", "shift_px")}
    else:
        figures = _symmetric_errors(star, truth, found["class"], found["true_class"], structure)
    names = ("median", "mean", "share_below_10", "share_below_30")
    return scores | {
        what: {name: round(figures[what][name], 3) for name in names if name in figures[what]} for what in figures
    }


def _symmetric_errors(
    star_file: Path, truth_file: Path, number: int, true_number: int, structure: TrueClass
) -> dict[str, dict[str, float]]:
    """Pose errors of the kept particles of a class that show a symmetric structure."""
    star, truth = read_star(star_file), read_star(truth_file)
    rows = torch.from_numpy(match_rows(star, truth))
    true_classes = torch.from_numpy(truth.floats(CLASS_NUMBER))[rows]
    is_both = (torch.from_numpy(star.floats(CLASS_NUMBER)) == number) & (true_classes == true_number)
    is_both &= torch.from_numpy(star.floats(JUNK_PROBABILITY, default=0.0)) < JUNK_CUT
    true_poses = star_poses(truth)[rows[is_both]]
    turned = true_poses.rotations @ symmetry_frame(structure.volume, structure.symmetry)
    against = Poses(turned, true_poses.shifts_angstrom)
    return pose_figures(
        star_poses(star)[is_both.nonzero().squeeze(1)], against, star_pixel_size(truth), structure.symmetry
    )


def structures_found(scores: Record) -> int:
    """How many true structures have a class of their own.

    Their median rotation error is below 10 degrees, the class holds more than half of the structure's particles, and
    they are more than half of those in the class.

    Args:
        scores: by ``score_run``.
    """
    confusion = scores["confusion"]
    counts = torch.tensor(confusion["kept"])
    left_out = torch.tensor(confusion["left_out"])
    totals = counts.sum(0) + left_out
    found = 0
    for each in scores["classes"]:
        row = confusion["classes"].index(each["class"])
        column = confusion["true_classes"].index(each["true_class"])
        own = int(counts[row, column])
        is_own = 2 * own > int(totals[column]) and 2 * own > int(counts[row].sum())
        found += each["is_matched"] and is_own and each["rotation_deg"]["median"] < FOUND_DEG
    return found


def limit_of_data(truth: Path, volumes: Sequence[Volume], shells: Sequence[int]) -> Record:
    """Share of the particles that the true maps at the true poses put into the right class.

    Args:
        truth: star file with poses and classes; class 0 is junk and is not scored.
        volumes: map of each class, in order.
        shells: up to which images are compared; beyond the last shell of the images, that.
    """
    config = ReconstructConfig(particles=truth, output=truth.with_name("limit"))
    stack = build_stack(config, with_poses=True)
    if stack.table.poses is None:
        raise ValueError(f"{truth} has no poses")
    dataset = build_dataset(config, stack, None, reads_once=True)
    particles = result_of(load_transforms(dataset, torch.device("cpu")))
    n = particles.plane.box_size_px
    poses = PoseSet.from_angstrom(stack.table.poses, stack.table.pixel_size_angstrom, n)
    true = torch.from_numpy(read_star(truth).floats(CLASS_NUMBER)).long()
    padded = [prepare_slices(volume.values.float()) for volume in volumes]
    good = (true > 0).nonzero().squeeze(1)
    particles, poses, own = particles.rows(good), poses.rows(good), true[good] - 1
    shares = torch.bincount(own, minlength=len(volumes)) / len(own)
    scale = _scale(particles, poses, padded, own)
    padded = [each * scale for each in padded]
    precision = noise_precision(padded, particles, shares.float())
    figures = {}
    for shell in shells:
        subset = particles.within(min(shell, n // 2 - 1), n)
        terms = torch.stack([_log_likelihood(subset, poses, each, precision) for each in padded], 1)
        right = (terms + shares.log()).argmax(1) == own
        figures[str(min(shell, n // 2 - 1))] = round(float(right.double().mean()), 4)
    return {"right_to_shell": figures, "images": len(own)}


def _terms(
    particles: ParticleTransforms, poses: PoseSet, padded: Tensor, weights: Float[Tensor, " points"]
) -> tuple[Float[Tensor, " particles"], Float[Tensor, " particles"]]:
    """Products of images and projections, and power of the projections."""
    products, powers = [], []
    for rows in torch.arange(len(particles)).split(_CHUNK):
        batch, some = particles.rows(rows), poses.rows(rows)
        slices = extract_slices(padded, some.rotations.float(), particles.plane)
        products.append((batch.centred(some.shifts_px.float()) * slices.conj()).real @ weights)
        powers.append((batch.ctf_squared * slices.abs().square()) @ weights)
    return torch.cat(products), torch.cat(powers)


def _scale(
    particles: ParticleTransforms, poses: PoseSet, padded: Sequence[Tensor], own: Int[Tensor, " particles"]
) -> float:
    """Factor of all maps that fits the images best."""
    product = power = 0.0
    for number, each in enumerate(padded):
        rows = (own == number).nonzero().squeeze(1)
        products, powers = _terms(particles.rows(rows), poses.rows(rows), each, particles.plane.weights)
        product, power = product + float(products.sum()), power + float(powers.sum())
    return product / power


def _log_likelihood(
    particles: ParticleTransforms, poses: PoseSet, padded: Tensor, precision: Float[Tensor, " points"]
) -> Float[Tensor, " particles"]:
    products, powers = _terms(particles, poses, padded, particles.plane.weights * precision[: len(particles.plane)])
    return products - powers / 2


def read_structures(folder: Path, names: Sequence[str], symmetries: Sequence[str]) -> list[TrueClass]:
    """True maps of a set, on the grid of its images.

    Args:
        folder: of ``truth.star``.
        names: files of the maps in it.
        symmetries: point group of each.
    """
    pixel_size = star_pixel_size(read_star(folder / "truth.star"))
    return [
        TrueClass(read_map(folder / name, angpix=pixel_size), symmetry)
        for name, symmetry in zip(names, symmetries, strict=True)
    ]
