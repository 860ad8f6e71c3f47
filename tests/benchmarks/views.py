"""Encoders of views: how well ``cryoeq infer`` poses new particles, at what cost, and what it says of strangers.

    OMP_NUM_THREADS=1 python tests/benchmarks/views.py --work DIR --sets base,6msm,box64 --seeds 0,1
    OMP_NUM_THREADS=1 python tests/benchmarks/views.py --work DIR --boxes 64,128
    OMP_NUM_THREADS=1 python tests/benchmarks/views.py --work DIR --real PARTICLES.star --seeds 0,1
    python tests/benchmarks/views.py --work DIR --no-runs --table FILE          the tables of what is recorded

With ``--sets``: a hybrid run of a set of ``ab_initio.py``, then new particles of another simulation of the same
molecule, which the run has never seen. ``bare``: the encoder's best view with its exact angle, mirror and offset;
``refined``: what the command does. ``search``: all poses and offsets up to shell 10, local refinement, all poses up to
shell 15 at the offset found, local refinement: the same particles against the same half maps. Strangers: particles of
another molecule in the same box and junk alone, posed by the same encoder; areas under the ROC curve of fit and
confidence, by particle and by groups of 20, as a micrograph holds.

With ``--real``: a hybrid run that holds out a fifth of the particles, whose poses by the encoder of their half set,
refined, are compared with their final poses in the map of all.

With ``--boxes``: the scenes of ``crossing.py``, the true map known, so that cost and accuracy can be read beside the
records there; CPU time of one thread, search and encoder in turn. Records are appended to ``views.json``.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ab_initio import listed, markdown_table, seed_list
from benchmark_sets import DATA, SETS, Simulated, prepare
from jaxtyping import Float
from pose_ways import open_scene, search, timed
from recorded_runs import CRYOEQ, Cost, Record, append_record, cost_record, find_record, measure, read_records
from scoring import read_truth
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.half_sets import split_half_sets
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.evaluation.poses import compare_poses, fit_gauge
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.io.checkpoint import load_checkpoint
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json, write_text
from cryoeq.pipelines.infer_views import NewPoses, ViewPosing
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.reconstruction.expectation import expectation_step
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.views.encoder import LAST_SHELL, ViewEncoder, ViewSettings
from cryoeq.training.views.posing import ViewPoser
from cryoeq.training.views.stored_views import StoredViews
from cryoeq.training.views.training import ViewTrainingSettings, train_views

RESULTS = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
NEW_COUNT, NEW_SEED, GROUP = 600, 2000, 20
STRANGERS = {"base": "6msm", "6msm": "base", "box64": "6msm"}
NEAR_DEG = 7.5


def new_particles(name: str, work: Path, **changes: object) -> Path:
    """Another simulation of a set's molecule.

    Args:
        name: of the set.
        work: folder of all sets.
        changes: of the recipe.
    """
    recipe = SETS[name]
    if not isinstance(recipe, Simulated):
        raise TypeError(f"{name} is not simulated")
    recipe = replace(recipe, count=NEW_COUNT, seed=NEW_SEED, **changes)  # type: ignore[arg-type]
    return prepare(f"{name}_new" if not changes else f"{name}_new_junk", work, recipe)


def infer(run: Path, folder: Path, output: Path, *more: str) -> tuple[Cost, Poses]:
    """Cost of the command, and the poses that it finds.

    Args:
        run: of the encoder.
        folder: of the new particles.
        output: star file.
        more: options.
    """
    command = [CRYOEQ, "infer", str(run), str(folder / "particles.star"), "-o", str(output), "--device", "cpu", *more]
    cost = measure(command, log=output.with_suffix(".log"))
    if cost.exit_code:
        raise RuntimeError(f"infer ended with {cost.exit_code}; see {output.with_suffix('.log')}")
    return cost, star_poses(read_star(output))


def figures(found: Poses, truth: Poses) -> Record:
    """Distribution of the errors, frame and hand removed."""
    error = compare_poses(found, truth).rotation_rad.rad2deg()
    values = {"median_deg": error.median(), "mean_deg": error.mean(), "beyond_30": (error > 30).double().mean()}
    return {name: round(float(value), 4) for name, value in values.items()}


def open_new(run: Path, folder: Path) -> tuple[ParticleTransforms, ViewPosing, Float[Tensor, " particles"], float]:
    """Transforms of new particles, posing by the run's encoders, their half sets, and the pixel size."""
    stored = StoredViews.from_state(load_checkpoint(run / "encoder.pt", CPU), CPU)
    config = ReconstructConfig(particles=folder / "particles.star", output=run)
    dataset = build_dataset(config, build_stack(config, with_poses=False), stored.box_size_px)
    particles = result_of(load_transforms(dataset, CPU))
    posing = ViewPosing.like(particles, stored, refines=True, min_confidence=0.0)
    half_set = split_half_sets(len(dataset), stream_generator(0, Stream.HALF_SETS))
    return particles, posing, half_set, dataset.pixel_size_angstrom


def search_small(poser: ViewPoser, particles: ParticleTransforms) -> tuple[PoseSet, float, float]:
    """Poses of a search against the poser's map; CPU seconds before local refinement, and in all."""
    encoder, box = poser.encoder, poser.encoder.box_size_px
    settings, reference = poser.search_settings(), encoder.reference
    small, sigma = particles.within(encoder.last_shell, box), settings.shift_sigma_px
    rows, generator = torch.arange(len(particles)), torch.Generator().manual_seed(0)
    coarse_s, coarse = timed(lambda: search_poses_exhaustively(small, rows, reference, settings, generator))
    coarse_shell = small.within(COARSE_SHELL, box)
    first_s, near = timed(lambda: refine_poses(coarse_shell, reference, coarse.poses, shift_sigma_px=sigma))
    harmonics = disk_harmonics(box, encoder.last_shell, support_radius(settings.mask_radius, box), CPU)
    likelihood = PoseLikelihood.build(reference, pose_grid(encoder.last_shell, generator, CPU), harmonics)
    offsets = near.poses.shifts_px[:, None]
    fine_s, fine = timed(lambda: result_of(expectation_step(small, likelihood, offsets, shift_sigma_px=sigma)))
    last_s, found = timed(lambda: refine_poses(small, reference, fine.posterior.poses, shift_sigma_px=sigma))
    before = coarse_s + fine_s
    return found.poses.in_box(particles.plane.box_size_px), before, before + first_s + last_s


def recall(views: Float[Tensor, "particles kept 3"], truth: Float[Tensor, "particles 3"]) -> float:
    """Share of the particles whose true view is near one of several."""
    nearest = (views * truth[:, None]).sum(-1).abs().amax(1).clamp(max=1).arccos().rad2deg()
    return round(float((nearest < NEAR_DEG).double().mean()), 4)


def views_of_search(poser: ViewPoser, particles: ParticleTransforms) -> Float[Tensor, "particles kept 3"]:
    """Its own best eight views, of its own grid at its last shell, at the offsets that it found."""
    encoder, box = poser.encoder, poser.encoder.box_size_px
    small = particles.within(encoder.last_shell, box)
    settings, generator = poser.search_settings(), torch.Generator().manual_seed(0)
    rows = torch.arange(len(particles))
    coarse = search_poses_exhaustively(small, rows, encoder.reference, settings, generator)
    near = refine_poses(
        small.within(COARSE_SHELL, box), encoder.reference, coarse.poses, shift_sigma_px=settings.shift_sigma_px
    )
    harmonics = disk_harmonics(box, encoder.last_shell, support_radius(settings.mask_radius, box), CPU)
    grid = pose_grid(encoder.last_shell, generator, CPU)
    likelihood, found = PoseLikelihood.build(encoder.reference, grid, harmonics), []
    for some in rows.split(16):
        terms = small.rows(some).at_offsets(near.poses.shifts_px[some, None], harmonics)
        poses = likelihood.log_likelihoods(terms)
        by_view = poses.view(len(poses), 2, len(grid.views), -1).logsumexp((0, 1))
        found.append(grid.views[by_view.topk(8, 0).indices.T][:, :, 2])
    return torch.cat(found)


def compare_new(run: Path, folder: Path, truth: Poses, final: Poses, run_truth: Poses) -> Record:
    """Encoder and search on the same new particles against the same half maps, in this process.

    Args:
        run: of the encoder.
        folder: of the new particles.
        truth: their true poses.
        final: the run's poses of its own particles.
        run_truth: true poses of these, which tell the frame of the run's map.
    """
    particles, posing, half_set, pixel = open_new(run, folder)
    gauge = fit_gauge(_double(final), _double(run_truth), torch.eye(3).double()[None], torch.Generator().manual_seed(0))
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0])) if gauge.is_mirrored else torch.eye(3)
    there = flip @ truth.rotations @ gauge.rotation.float().T @ flip
    bare, searched, eight, their_eight, seconds = [], [], [], [], {"encoder": 0.0, "search": 0.0, "search in all": 0.0}
    order = []
    for half in (1, 2):
        rows, poser = (half_set == half).nonzero().squeeze(1), posing.posers[0][half]
        some = particles.rows(rows)
        poser.encoder.pose(some.rows(torch.arange(min(16, len(some)))))  # what is compiled is read before
        passed_s, posed = timed(lambda some=some, poser=poser: poser.encoder.pose(some))  # type: ignore[misc]
        found, before_s, all_s = search_small(poser, some)
        seconds["encoder"] += passed_s
        seconds["search"] += before_s
        seconds["search in all"] += all_s
        bare.append(posed.best())
        searched.append(found)
        eight.append(recall(posed.directions, there[rows][:, 2]))
        their_eight.append(recall(views_of_search(poser, some), there[rows][:, 2]))
        order.append(rows)
    sorted_rows = torch.cat(order).argsort()
    poses = {name: PoseSet.cat(each).rows(sorted_rows).to_angstrom(pixel) for name, each in
             {"bare": bare, "search": searched}.items()}  # fmt: skip
    return {
        **{name: figures(each, truth) for name, each in poses.items()},
        "recall_8": round(sum(eight) / 2, 4), "search_recall_8": round(sum(their_eight) / 2, 4),
        "ms": {name: round(1000 * value / len(particles), 3) for name, value in seconds.items()},
    }  # fmt: skip


def _double(poses: Poses) -> Poses:
    return Poses(poses.rotations.double(), poses.shifts_angstrom.double())


def seen(run: Path, folder: Path) -> NewPoses:
    """What the run's encoders make of particles, none of which is searched again."""
    particles, posing, half_set, _ = open_new(run, folder)
    return posing.pose(particles, half_set)


def grouped(values: Float[Tensor, " particles"]) -> Float[Tensor, " groups"]:
    """Means of groups of particles, as of micrographs."""
    return values[: len(values) // GROUP * GROUP].view(-1, GROUP).mean(1)


def told_apart(own: Float[Tensor, " own"], strangers: Float[Tensor, " others"]) -> float:
    """Area under the ROC curve of lower values."""
    is_stranger = torch.cat([torch.zeros_like(own), torch.ones_like(strangers)]).bool()
    return round(float(roc_auc(-torch.cat([own, strangers]).double(), is_stranger)), 4)


def calibration(star: Path, truth: Poses) -> Record:
    """What the confidence says, and what is right to 10 degrees."""
    said = torch.from_numpy(read_star(star).floats("rlnMaxValueProbDistribution"))
    is_right = compare_poses(star_poses(read_star(star)), truth).rotation_rad.rad2deg() < 10
    bins = ((0.0, 0.5), (0.5, 0.9), (0.9, 1.001))
    chosen = [(said >= low) & (said < high) for low, high in bins]
    return {
        "said": [round(float(said[rows].mean()), 3) if bool(rows.any()) else None for rows in chosen],
        "right": [round(float(is_right[rows].double().mean()), 3) if bool(rows.any()) else None for rows in chosen],
        "count": [int(rows.sum()) for rows in chosen],
    }


def _hybrid(star: Path, run: Path) -> list[str]:
    return ["reconstruct", str(star), "-o", str(run), "--pose-inference", "hybrid", "--device", "cpu"]


def run_set(work: Path, records: Path, name: str, seed: int) -> None:
    """A hybrid run and all that is measured with its encoder, unless it was done before."""
    key = {"set": name, "mode": "views", "seed": seed, "options": []}
    if find_record(read_records(records), key) is not None:
        return
    folder, new, other = prepare(name, work, SETS[name]), new_particles(name, work), STRANGERS[name]
    run = work / f"{name}_views_{seed}"
    command = [*_hybrid(folder / "particles.star", run), "--seed", str(seed)]
    cost = measure([CRYOEQ, *command], log=work / f"{run.name}.log")
    if cost.exit_code:
        raise RuntimeError(f"the run ended with {cost.exit_code}; see {run.name}.log")
    truth, run_truth = read_truth(new).poses, read_truth(folder).poses
    final = star_poses(read_star(run / "run_data.star"))
    refined_cost, refined = infer(run, new, work / f"{run.name}_refined.star")
    bare_cost, _ = infer(run, new, work / f"{run.name}_bare.star", "--no-refine")
    stranger = _in_box_of(name, other, work)
    junk = new_particles(name, work, simulation=("--junk", "0.99"))
    own = seen(run, new)
    found = {
        "run": figures(final, run_truth),
        "held_out_median_deg": read_json(run / "job.json")["results"]["held_out_median_deg"],
        "new": compare_new(run, new, truth, final, run_truth) | {"refined": figures(refined, truth)},
        "calibration": calibration(work / f"{run.name}_refined.star", truth),
        "infer_cpu_ms": {"refined": _per_image(refined_cost), "bare": _per_image(bare_cost)},
        "auc": {
            kind: {
                "fit": told_apart(own.fit, theirs.fit),
                "confidence": told_apart(own.confidence, theirs.confidence),
                "fit of groups": told_apart(grouped(own.fit), grouped(theirs.fit)),
                "confidence of groups": told_apart(grouped(own.confidence), grouped(theirs.confidence)),
            }
            for kind, theirs in ((other, seen(run, stranger)), ("junk", seen(run, junk)))
        },
    }
    append_record(records, {**key, **cost_record(cost, [["cryoeq", *command]], {"DIR": work, "DATA": DATA}), **found})
    print(f"{name}, seed {seed}: {found}", flush=True)


def run_real(work: Path, records: Path, star: Path, seed: int) -> None:
    """Experimental particles, a fifth of them held out, unless it was done before.

    Args:
        work: folder of runs.
        records: the JSON file.
        star: the particles; the name of their folder is that of the set.
        seed: of the run.
    """
    key = {"set": star.parent.name, "mode": "views", "seed": seed, "options": ["hybrid.held_out=0.2"]}
    if find_record(read_records(records), key) is not None:
        return
    run = work / f"{key['set']}_views_{seed}"
    command = [*_hybrid(star, run), "--seed", str(seed), "--set", "hybrid.held_out=0.2"]
    cost = measure([CRYOEQ, *command], log=work / f"{run.name}.log")
    if cost.exit_code:
        raise RuntimeError(f"the run ended with {cost.exit_code}; see {run.name}.log")
    said = [line for line in (run / "run.log").read_text().splitlines() if "beyond 30°" in line]
    median = read_json(run / "job.json")["results"]["held_out_median_deg"]
    found = {"held_out_median_deg": round(median, 3), "said": said[-1], "training_s": _training_s(run)}
    append_record(
        records, {**key, **cost_record(cost, [["cryoeq", *command]], {"DIR": work, "DATA": star.parent}), **found}
    )
    print(f"{key['set']}, seed {seed}: {found}", flush=True)


def _in_box_of(name: str, other: str, work: Path) -> Path:
    """Particles of another molecule in images of the same number of pixels; their size is taken for that of the set."""
    ours, theirs = SETS[name], SETS[other]
    if not (isinstance(ours, Simulated) and isinstance(theirs, Simulated)):
        raise TypeError("both sets are simulated")
    recipe = replace(theirs, box_px=ours.box_px, count=NEW_COUNT, seed=NEW_SEED)
    return prepare(f"{other}_new_{ours.box_px}", work, recipe)


def _per_image(cost: Cost) -> float:
    return round(1000 * cost.cpu_s / NEW_COUNT, 2)


def _training_s(run: Path) -> float:
    """Wall time between the first and the last line of training in the log."""
    lines = [line for line in (run / "run.log").read_text().splitlines() if "view encoder" in line]
    moments = [time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) for line in (lines[0], lines[-1])]
    return moments[1] - moments[0]


def run_box(work: Path, records: Path, box_px: int) -> None:
    """Cost and errors beside ``crossing.py``, the true map known, unless it was done before."""
    key = {"set": f"crossing{box_px}", "mode": "views", "seed": 0, "options": []}
    if find_record(read_records(records), key) is not None:
        return
    folder = prepare(key["set"], work, Simulated(box_px=box_px, count=300))
    config = ReconstructConfig(particles=folder / "particles.star", output=work / "none")
    scene, truth = open_scene(folder, config)
    sigma = scene.shift_sigma_px / box_px
    encoder = ViewEncoder.build(
        scene.volume, scene.particles, ViewSettings(sigma, 0.42, torch.eye(3)[None], LAST_SHELL)
    )
    training = train_views(encoder, scene.particles, None, ViewTrainingSettings(), seed=0, number=1)
    trained_s, _ = timed(lambda: result_of(training))
    poser = ViewPoser(encoder, Reference.prepare(scene.volume, scene.particles))
    small, count = scene.small(), len(scene.particles)
    encoder.pose(scene.particles.rows(torch.arange(16)))
    passed_s, posed = timed(lambda: encoder.pose(scene.particles))
    steps, searched = search(small, config)
    refined_s, refined = timed(lambda: poser.pose(scene.particles, refines=True))
    before = sum(steps[name].image_s for name in ("all poses and shifts, shell 10", "all poses, shell 15"))
    pixel = 1.0
    found = {
        "ms": {
            "encoder": round(1000 * passed_s / count, 3), "encoder, refined": round(1000 * refined_s / count, 3),
            "search, with one refinement": round(1000 * before, 3),
        },
        "training_s": round(trained_s, 1),
        "recall_8": recall(posed.directions, truth.rotations[:, 2]),
        "search_recall_8": recall(views_of_search(poser, scene.particles), truth.rotations[:, 2]),
        "search, ms": dict(zip(("before", "all"), (round(1000 * each / count, 3) for each in
                                                   search_small(poser, scene.particles)[1:]), strict=True)),
        "bare": figures(posed.best().to_angstrom(pixel), truth.to_angstrom(pixel)),
        "refined": figures(refined.poses.to_angstrom(pixel), truth.to_angstrom(pixel)),
        "search": figures(searched.to_angstrom(pixel), truth.to_angstrom(pixel)),
    }  # fmt: skip
    append_record(records, {**key, **cost_record(Cost(), [], {"DIR": work, "DATA": DATA}), **found})
    print(f"{box_px} px: {found}", flush=True)


def set_rows(record: Record) -> list[str]:
    """Cells of a run."""
    new, auc = record["new"], record["auc"]
    shares = [f"{new[way]['median_deg']:.1f}° {100 * new[way]['beyond_30']:.1f} %" for way in
              ("bare", "refined", "search")]  # fmt: skip
    ms = new["ms"]
    return [
        f"`{record['set']}`", str(record["seed"]), *shares,
        f"{record['run']['median_deg']:.1f}° {100 * record['run']['beyond_30']:.1f} %",
        f"{new['recall_8']:.3f} / {new['search_recall_8']:.3f}",
        f"{ms['encoder']:.1f} / {ms['search']:.1f}", f"{record['infer_cpu_ms']['refined']:.0f}",
        " ".join(f"{each['fit']:.2f}/{each['confidence']:.2f}" for each in auc.values()),
        " ".join(f"{each['fit of groups']:.3f}/{each['confidence of groups']:.3f}" for each in auc.values()),
    ]  # fmt: skip


def table(records: Sequence[Record]) -> str:
    """The tables of all records."""
    sets = [record for record in records if "auc" in record]
    boxes = [record for record in records if record["set"].startswith("crossing")]
    head = [
        "set", "seed", "bare", "refined", "search, same half map", "the run's own, final", "recall@8: ours / search's",
        "ms before refinement: ours / search's", "whole command, CPU ms",
        "AUC by fit/confidence: other, junk", "the same by 20",
    ]  # fmt: skip
    rows = [
        [
            record["set"].removeprefix("crossing"), *(f"{record[way]['median_deg']:.1f}°" for way in
                                                      ("bare", "refined", "search")),
            f"{record['recall_8']:.3f} / {record['search_recall_8']:.3f}",
            f"{record['ms']['encoder']:.2f} / {record['search, ms']['before']:.2f}", f"{record['training_s']:.0f} s",
        ]
        for record in boxes
    ]  # fmt: skip
    columns = ["box px", "bare", "refined to shell 15", "search", "recall@8: ours / search's",
               "ms before refinement: ours / search's", "training of one, CPU"]  # fmt: skip
    real = [
        [record["set"], str(record["seed"]), f"{record['held_out_median_deg']:.1f}°", record["said"].split("; ")[-1]]
        for record in records
        if record["options"]
    ]
    parts = [
        markdown_table(head, list(map(set_rows, sets))),
        markdown_table(columns, rows),
        markdown_table(["set", "seed", "held out, to their final poses: median", "beyond"], real),
    ]
    return "\n".join(parts)


def main() -> None:
    """Run, record, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=(), help="of ab_initio.py: base, 6msm, box64")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1), help="of the runs")
    parser.add_argument("--boxes", type=listed, default=(), help="in pixels")
    parser.add_argument("--real", type=Path, help="star file of experimental particles")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the tables to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the tables of what is recorded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in () if given.no_runs else given.sets:
        for seed in given.seeds:
            run_set(work, given.records, name, seed)
    for seed in given.seeds if given.real and not given.no_runs else ():
        run_real(work, given.records, given.real.resolve(), seed)
    for box in () if given.no_runs else given.boxes:
        run_box(work, given.records, int(box))
    text = table(read_records(given.records))
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
