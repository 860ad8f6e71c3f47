"""``cryoeq evaluate``: pose errors against a truth, and a bound on the error of an encoder on new images."""

import math
import posixpath
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import SAME_PIXEL_SIZE
from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.evaluation.poses import MIN_IMAGES, PoseErrors, PoseGauge, compare_poses, summarise_errors
from cryoeq.io.labels import CLASS_NUMBER, IMAGE_NAME, JUNK_KIND, JUNK_PROBABILITY
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import pose_notes, read_table, star_poses
from cryoeq.io.star import StarTable
from cryoeq.io.text import write_json
from cryoeq.outputs.folder import make_folder
from cryoeq.pipelines.class_choice import metrics_of_table, table_of
from cryoeq.runtime.device import choose_device

_HANDS = {
    "same": "that of the truth",
    "mirrored": "the other one (the map is the mirror image)",
    "undecided": "undecided: the two halves of the images disagree",
}


def evaluate(config: EvaluateConfig) -> Iterator[Event]:
    """Compare the poses of two star files, or bound the error of an encoder, and write the results.

    Yields:
        Notes on the input and on the result, and reports.

    Raises:
        ConfigError: a star file is missing.
        CheckpointError: there is no encoder to bound.
        ParticleFileError: a file is damaged, or the two do not describe the same images.
    """
    device = choose_device(config.device)
    results: dict[str, object] = {}
    if config.bound is not None:
        from cryoeq.pipelines.generalization.bound import bound_run  # not above: brings networks

        results |= {"bound": (yield from bound_run(config, config.bound, device))}
    if config.predicted is not None and config.truth is not None:
        results |= yield from _compare(config, config.predicted, config.truth, device)
    elif config.bound is None or config.predicted is not None:
        found = "nothing to compare" if config.predicted is None else f"{config.predicted} alone"
        expected = "PRED.star and TRUTH.star are compared; --bound RUN needs neither"
        raise ConfigError(found, expected, "Give both star files, or --bound RUN")
    if config.json_file is not None:
        write_json(config.json_file, results)
        yield Note(f"Results: {config.json_file}")


def _compare(
    config: EvaluateConfig, predicted_path: Path, truth_path: Path, device: torch.device
) -> Generator[Event, None, dict[str, object]]:
    predicted_path = table_of(predicted_path)
    predicted, truth = read_table(predicted_path), read_table(truth_path)
    yield from (Note(note, "warning") for star in (predicted, truth) for note in pose_notes(star))
    rows = match_rows(predicted, truth)
    if len(rows) < len(truth):
        yield Note(
            f"{len(truth) - len(rows)} of {len(truth)} images of {truth_path} have no predicted pose.", "warning"
        )
    pixel_size = star_pixel_size(truth, angpix=config.pixel_size_angstrom)
    if config.pixel_size_angstrom is None:
        yield from _pixel_size_warnings(predicted, truth)
    poses = (
        star_poses(predicted, angpix=config.pixel_size_angstrom).to(device),
        star_poses(truth, angpix=config.pixel_size_angstrom)[torch.from_numpy(rows)].to(device),
    )
    title = f"{predicted_path.name} against {truth_path.name}"
    is_by_class = metrics_of_table(predicted_path).n_classes > 1 if config.by_class is None else config.by_class
    if is_by_class:
        from cryoeq.pipelines.evaluate_classes import score_classes  # not above, because of scipy

        found = yield from score_classes(config, (predicted, truth), rows, poses)
        classes = []
        for each in found.classes:
            of = f"class {each.number}, which shows true class {each.true_number}"
            figures = yield from _report(config, each.errors, pixel_size, f"Pose errors of {of}")
            identity = {"class": each.number, "true_class": each.true_number, "is_matched": each.is_matched}
            classes.append(identity | figures)
            yield from _plot(config, each.errors, f"{title}, {of}", f"_class{each.number:03d}")
        results = {**_head(config), "images": len(rows), **found.results, "classes": classes}
    else:
        errors = yield from _errors_of_particles(config, *poses, _true_classes(truth, rows))
        figures = yield from _report(config, errors, pixel_size, f"Pose errors of {len(errors.rotation_rad)} images")
        results = _head(config) | figures
        if JUNK_PROBABILITY in predicted.particles and JUNK_KIND in truth.particles:
            from cryoeq.pipelines.evaluate_junk import junk_report, score_junk  # not above, because of scipy

            junk = score_junk(config, (predicted, truth), rows)
            yield junk_report(junk, len(rows))
            results |= {"junk": junk}
        yield from _plot(config, errors, title, "")
    if config.output is not None:
        path = make_folder(config.output) / "pose_errors.json"
        write_json(path, results)
        yield Note(f"Results: {path}")
    return results


def _report(
    config: EvaluateConfig, errors: PoseErrors, pixel_size_angstrom: float, title: str
) -> Generator[Event, None, dict[str, object]]:
    """Tell pose errors; the same as figures for JSON."""
    summary = summarise_errors(errors, pixel_size_angstrom)
    yield from _warnings(errors)
    yield Report(title, _rows(summary, errors, config.symmetry))
    return _as_json(errors, summary)


def _plot(config: EvaluateConfig, errors: PoseErrors, title: str, ending: str) -> Iterator[Note]:
    """Draw the histogram of pose errors where asked for, the ending put behind the name of the file."""
    for path in _targets(config.plot_file, config.output, "pose_errors.png"):
        from cryoeq.outputs.evaluation_plots import plot_pose_errors  # not above, because of matplotlib

        file = path.with_stem(f"{path.stem}{ending}")
        plot_pose_errors(file, errors, title=title)
        yield Note(f"Histogram of errors: {file}")


def _true_classes(truth: StarTable, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Int[Tensor, " images"]:
    """Class of each image: 0 for junk; all others are 1, but in a simulated truth, whose classes are molecules."""
    classes = torch.from_numpy(truth.floats(CLASS_NUMBER, default=1.0)[rows]).long().clamp(min=0)
    return classes if JUNK_KIND in truth.particles else classes.clamp(max=1)


def _errors_of_particles(
    config: EvaluateConfig, predicted: Poses, truth: Poses, classes: Int[Tensor, " images"]
) -> Generator[Event, None, PoseErrors]:
    """Errors over the particles of the molecule that the map shows: the one whose particles have the least error.

    Each molecule has a frame of its own, so that the poses of the others mean nothing; and junk has no pose.
    """
    if n_junk := int((classes == 0).sum()):
        yield Note(f"{n_junk} of {len(classes)} images are no particles ({CLASS_NUMBER} 0 in the truth): not scored.")
    counts = torch.bincount(classes)
    numbers = [number for number in range(1, len(counts)) if counts[number] >= MIN_IMAGES]
    if len(numbers) <= 1:
        chosen = (classes == (numbers[0] if numbers else 1)).nonzero().squeeze(1)
        return _errors(config, predicted, truth, chosen)
    found = {number: _errors(config, predicted, truth, (classes == number).nonzero().squeeze(1)) for number in numbers}
    medians = {number: math.degrees(float(errors.rotation_rad.median())) for number, errors in found.items()}
    shown = min(medians, key=lambda number: medians[number])
    each = ", ".join(f"{number}: {medians[number]:.3g}° ({counts[number]})" for number in numbers)
    yield Note(
        f"Median rotation errors by class (and images): {each}. The map shows class {shown}: it alone is scored."
    )
    return found[shown]


def _errors(config: EvaluateConfig, predicted: Poses, truth: Poses, rows: Int[Tensor, " rows"]) -> PoseErrors:
    rows = rows.to(truth.rotations.device)
    generator = torch.Generator().manual_seed(config.seed)
    return compare_poses(predicted[rows], truth[rows], symmetry=config.symmetry, generator=generator)


def match_rows(predicted: StarTable, truth: StarTable) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Row of the truth for each row of the prediction: by image name where both have it, else by position.

    Args:
        predicted: star file of the predicted poses.
        truth: star file of the true poses; it may have more images, in another order.

    Raises:
        ParticleFileError: a name appears twice or is not in the truth, or the numbers of rows differ.
    """
    if IMAGE_NAME not in predicted.particles or IMAGE_NAME not in truth.particles:
        if len(predicted) != len(truth):
            raise ParticleFileError(
                f"{predicted.path} has {len(predicted)} rows, {truth.path} has {len(truth)}",
                f"Without {IMAGE_NAME} in both files their rows are matched by position",
                f"Compare star files of the same images, or add {IMAGE_NAME}",
            )
        return np.arange(len(truth))
    row_of = _row_of_names(truth)
    _row_of_names(predicted)
    names = _image_keys(predicted)
    unknown = next((row for row, name in enumerate(names) if name not in row_of), None)
    if unknown is not None:
        image = predicted.particles[IMAGE_NAME][unknown]
        raise ParticleFileError(
            f"{predicted.path}, row {unknown + 1}: image {image} is not in {truth.path}",
            f"Rows are matched by {IMAGE_NAME}",
            "Compare star files of the same images, with the same paths to their stacks",
        )
    return np.array([row_of[name] for name in names])


def _image_keys(star: StarTable) -> list[str]:
    """Names of the images without what means nothing: zeros before the number, ``./`` in the path."""
    split = (name.rpartition("@") for name in star.particles[IMAGE_NAME].tolist())
    return [f"{number.lstrip('0')}{at}{posixpath.normpath(path)}" for number, at, path in split]


def _row_of_names(star: StarTable) -> dict[str, int]:
    names = _image_keys(star)
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) < len(names):
        row = next(row for row, name in enumerate(names) if row_of[name] != row)
        raise ParticleFileError(
            f"{star.path}, row {row + 1}: image {star.particles[IMAGE_NAME][row]} appears twice",
            f"Rows are matched by {IMAGE_NAME}",
            "Remove the duplicates",
        )
    return row_of


def _pixel_size_warnings(predicted: StarTable, truth: StarTable) -> Iterator[Note]:
    """A warning where both tables give the same images different pixel sizes."""
    try:
        ours, theirs = star_pixel_size(predicted), star_pixel_size(truth)
    except ParticleFileError:  # a table of poses alone needs none
        return
    if not math.isclose(ours, theirs, rel_tol=SAME_PIXEL_SIZE):
        yield Note(
            f"The pixel sizes of {predicted.path} and {truth.path} differ: {ours:.6g} and {theirs:.6g} Å. Shifts are "
            "compared in Å, as each file has them; give the true pixel size with --angpix if one is wrong.",
            "warning",
        )


def _warnings(errors: PoseErrors) -> Iterator[Note]:
    if errors.hand == "undecided":
        yield Note("The two random halves of the images found different hands.", "warning")
    if all(gauge.cost > 0.9 * gauge.other_hand_cost for gauge in errors.gauges):
        yield Note("Neither hand fits clearly better than the other: most of these poses may be wrong.", "warning")


def _rows(summary: Mapping[str, Mapping[str, float]], errors: PoseErrors, symmetry: str) -> dict[str, str]:
    labels = {"rotation_deg": "Rotation", "view_direction_deg": "View direction", "in_plane_deg": "In plane"}
    rows = {}
    for key, label in labels.items():
        statistics = summary[key]
        fractions = ", ".join(f"{statistics[f'share_below_{limit}']:.1%} < {limit}°" for limit in (5, 10, 30))
        rows[label] = f"{_statistics_text(statistics, '°')}; {fractions}"
    rows["Shift (px)"] = _statistics_text(summary["shift_px"], " px")
    rows["Shift (Å)"] = _statistics_text(summary["shift_angstrom"], " Å")
    rows["Hand"] = _HANDS[errors.hand]
    rows["Symmetry"] = symmetry
    rows["Scored"] = "each half of the images in the frame fitted on the other half"
    return rows


def _statistics_text(statistics: Mapping[str, float], unit: str) -> str:
    median, mean, high = (f"{statistics[name]:.3g}{unit}" for name in ("median", "mean", "percentile_90"))
    return f"median {median}, mean {mean}, 90% below {high}"


def _head(config: EvaluateConfig) -> dict[str, object]:
    return {
        "predicted": str(config.predicted),
        "truth": str(config.truth),
        "symmetry": config.symmetry,
        "seed": config.seed,
    }


def _as_json(errors: PoseErrors, summary: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    return {
        "images": len(errors.rotation_rad),
        "hand": errors.hand,
        **summary,
        "frames": [_gauge_as_json(gauge) for gauge in errors.gauges],
    }


def _gauge_as_json(gauge: PoseGauge) -> dict[str, object]:
    return {
        "rotation": gauge.rotation.tolist(),
        "is_mirrored": gauge.is_mirrored,
        "shift_angstrom": gauge.shift_angstrom.tolist(),
        "cost": gauge.cost,
        "other_hand_cost": gauge.other_hand_cost,
    }


def _targets(file: Path | None, folder: Path | None, name: str) -> list[Path]:
    return [path for path in (file, make_folder(folder) / name if folder else None) if path is not None]
