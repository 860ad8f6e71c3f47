"""The claim about equivariant encoders tested: amortized inference by plain and by equivariant ones, many seeds each.

    python tests/benchmarks/groups.py --work DIR                                  every arm, both tasks, seeds 0-4
    python tests/benchmarks/groups.py --work DIR --tasks autoencoder --arms c1,d4 --seeds 0-9
    python tests/benchmarks/groups.py --work DIR --no-runs --table FILE           the table of what is recorded

All arms see the same particles (``EASY``, simulated once from ``data_samples``), take the same number of steps of the
same size, and differ in the encoder and the loss alone. ``autoencoder`` is the pure one of the paper, ``renderings``
adds the task of posing renderings of the current map. A run is what ``cryoeq reconstruct`` with the words of its record
does up to the poses, without files and pictures; the CPU time is that of the training and the posing. It is appended to
the records (by default ``groups.json`` beside this file) when it ends; one that is recorded there is not done again.

A run succeeds if its median rotation error is below 10 degrees. Its poses have settled at the first epoch from which on
their median distance from the last ones, frame and hand removed, stays below 10 degrees; a run has found the structure
at the first epoch from which on the median error against the truth does. A map whose planar symmetry score
(``cryoeq.maps.symmetry``) is above ``MIXED_HANDS_SCORE`` counts as one with a spurious symmetry.

de Ruijter and Cesa 2024 (arXiv 2406.01630): with an equivariant encoder the autoencoder converges faster and more often
than with a plain one, and D4 makes the symmetric loss superfluous.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from ab_initio import GOOD_MEDIAN_DEG, listed, markdown_table, seed_list, spread
from jaxtyping import Float
from recorded_runs import CRYOEQ, Cost, Record, append_record, cost_record, find_record, measure, read_records
from scipy.stats import binomtest
from scoring import Truth, read_truth, score_map, score_poses
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.poses import compare_poses
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import write_text
from cryoeq.maps.symmetry import MIXED_HANDS_SCORE, planar_symmetry_score
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.pose_assignment import infer_poses
from cryoeq.training.autoencoder.state import TrainingState

RESULTS = Path(__file__).with_suffix(".json")
MODEL = Path(__file__).parents[2] / "data_samples" / "1wcm_ca.pdb.gz"
EASY = ("--box", "32", "-n", "1000", "--snr", "inf", "--no-ctf", "--seed", "1000")
BOX_PX, EPOCHS, BATCH, HEADS, WIDTH = 16, 100, 64, 1, 256
LOOK_EVERY = 2  # epochs between two looks at the poses
# No frequency marching, and a decoder faster than by default: chosen on seed 0 of d4 as the autoencoder.
RECIPE = {"training.first_shell": BOX_PX / 2 - 1, "training.decoder_learning_rate": 0.03}
TASKS = {"autoencoder": 0.0, "renderings": 1.0}


@dataclass(frozen=True)
class Arm:
    """What distinguishes the runs of one arm.

    Args:
        group: that the encoder is equivariant to.
        is_symmetric: with the symmetric loss.
        is_augmented: images turned and mirrored by random elements of D4.
        matched: what the width is chosen for, to have as much of as d4 has: parameters or FLOPs.
        rate: learning rate of the encoder.
    """

    group: str
    is_symmetric: bool = False
    is_augmented: bool = False
    matched: str | None = None
    rate: float = 2e-3


ARMS = {
    "c1": Arm("c1"),
    "c1 + symmetric loss": Arm("c1", is_symmetric=True),
    "c4": Arm("c4"),
    "d4": Arm("d4"),
    "d4 + symmetric loss": Arm("d4", is_symmetric=True),
    "so2": Arm("so2"),
    "o2": Arm("o2"),
    "c1 + augmentation": Arm("c1", is_augmented=True),
    "c1 with d4's parameters": Arm("c1", matched="parameters"),
    "c1 with d4's FLOPs": Arm("c1", matched="FLOPs"),
    "c1 at a quarter of the rate": Arm("c1", rate=5e-4),
}


@cache
def encoder_cost(group: str, width: int) -> dict[str, float]:
    """Parameters, and FLOPs per image of a forward pass over a batch of the training, its filters expanded once.

    Args:
        group: of the encoder.
        width: channels.
    """
    encoder = PoseEncoder(group, BOX_PX, HEADS, (width,), trunk="dense")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(BATCH, BOX_PX, BOX_PX))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return {"parameters": parameters, "FLOPs": counter.get_total_flops() / BATCH}


def width_of(arm: Arm) -> int:
    """Channels of an arm's encoder.

    Args:
        arm: which.
    """
    if arm.matched is None:
        return WIDTH
    wanted = encoder_cost("d4", WIDTH)[arm.matched]
    low, high = 1, 4 * WIDTH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if encoder_cost(arm.group, middle)[arm.matched] <= wanted else (low, middle)
    return low


def options_of(arm: Arm, task: str) -> list[str]:
    """Settings of an arm, as ``--set`` takes them.

    Args:
        arm: which.
        task: autoencoder or renderings.
    """
    settings = {
        "encoder.group": arm.group, "encoder.heads": HEADS, "encoder.channels": f"[{width_of(arm)}]",
        "loss.symmetric": str(arm.is_symmetric).lower(), "loss.synthetic_weight": TASKS[task],
        "training.augment": str(arm.is_augmented).lower(), "training.epochs": EPOCHS, "training.batch_size": BATCH,
        "training.encoder_learning_rate": arm.rate, **RECIPE,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


@dataclass(frozen=True)
class Bench:
    """Where runs happen and are recorded.

    Args:
        work: folder of the particles.
        records: the JSON file.
        truth: of the particles, its map at the working box.
    """

    work: Path
    records: Path
    truth: Truth

    def run(self, name: str, task: str, seed: int) -> Record:
        """The record of a run, done now unless it was done before.

        Args:
            name: of the arm.
            task: autoencoder or renderings.
            seed: of the run.
        """
        options = options_of(ARMS[name], task)
        key = {"set": "easy", "mode": "amortized", "seed": seed, "options": options}
        if before := find_record(read_records(self.records), key):
            return before
        words = ["-D", str(BOX_PX), "--shift-sigma", "0", "--no-ctf", "--seed", str(seed)]
        words += [word for option in options for word in ("--set", option)]
        star = self.work / "easy" / "particles.star"
        command = [CRYOEQ, "reconstruct", str(star), "--pose-inference", "amortized", *words]
        explicit = {
            "particles": star, "output": self.work / "none", "pose_inference": "amortized", "seed": seed,
            "input.with_ctf": False, "input.working_box_px": BOX_PX, "input.shift_sigma_angstrom": 0.0,
        }  # fmt: skip
        config = load_config(ReconstructConfig, overrides=options, explicit=explicit)
        cost, scores = run_and_score(config, self.truth, self.work)
        places = {"DIR": self.work, "cryoeq": Path(CRYOEQ)}
        shape = {key: round(value) for key, value in encoder_cost(ARMS[name].group, width_of(ARMS[name])).items()}
        record = {"arm": name, "task": task, **key, **cost_record(cost, [command], places), "encoder": shape, **scores}
        append_record(self.records, record)
        return record


def run_and_score(config: ReconstructConfig, truth: Truth, work: Path) -> tuple[Cost, Record]:
    """Train, pose, and compare with the truth.

    Args:
        config: of the run.
        truth: of its particles.
        work: folder for the map.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    dataset = build_dataset(config, build_stack(config, with_poses=False), BOX_PX)
    plane, settings = build_plane(dataset, torch.device("cpu")), build_settings(config, dataset)
    state = build_state(config, dataset, plane)
    per_epoch = settings.schedule.total_steps // EPOCHS
    looks = [
        state.rotations.clone()
        for _ in fit(state, dataset, plane, settings)
        if state.step % (LOOK_EVERY * per_epoch) == 0
    ]
    inferred = result_of(
        infer_poses(state, dataset, plane, batch_size=4 * BATCH, is_symmetric=settings.is_symmetric, centred=True)
    )
    cost = Cost(round(time.perf_counter() - wall_s, 2), round(time.process_time() - cpu_s, 2))
    errors = score_poses(inferred.poses, truth)
    is_found = errors["rotation_deg"]["median"] < GOOD_MEDIAN_DEG
    return cost, {
        "poses": errors,
        "explained_variance": round(inferred.explained, 4),
        "settled_epoch": settled_epoch(looks, looks[-1]),
        "found_epoch": settled_epoch(looks, truth.poses.rotations) if is_found else None,
        **score_decoded(Volume(state.decoder.to_map(), dataset.pixel_size_angstrom), truth, work),
        "history": history(state),
    }


def settled_epoch(looks: Sequence[Float[Tensor, "particles 3 3"]], last: Float[Tensor, "particles 3 3"]) -> int:
    """The first epoch from which on the median distance from some rotations stays below 10 degrees.

    Args:
        looks: the last known rotation of each particle, every ``LOOK_EVERY`` epochs.
        last: those rotations, in any frame and of any hand.
    """
    nowhere = torch.zeros(len(last), 2)
    for number in range(len(looks), 0, -1):
        errors = compare_poses(Poses(looks[number - 1], nowhere), Poses(last, nowhere))
        if float(errors.rotation_rad.rad2deg().median()) >= GOOD_MEDIAN_DEG:
            return (number + 1) * LOOK_EVERY
    return LOOK_EVERY


def score_decoded(volume: Volume, truth: Truth, work: Path) -> Record:
    """Planar symmetry and FSC against the truth of a map at the working box.

    Args:
        volume: the map.
        truth: with a map of the same box.
        work: folder for it.
    """
    path = work / "decoded.mrc"
    write_map(path, volume)
    return {"planar_symmetry": round(planar_symmetry_score(volume), 4), "map": score_map(path, truth)}


def history(state: TrainingState) -> dict[str, list[float | None]]:
    """Loss and change of the poses of each epoch, None where there is none."""
    return {
        name: [round(value, 4) if value == value else None for value in values]  # noqa: PLR0124 - NaN
        for name, values in state.history.items()
    }


def prepare(work: Path) -> Truth:
    """The truth of the easy set, which is simulated if need be.

    Args:
        work: folder of all sets.

    Raises:
        RuntimeError: the simulation failed.
    """
    folder = work / "easy"
    if not (folder / "particles.star").is_file():  # written last
        work.mkdir(parents=True, exist_ok=True)
        command = [CRYOEQ, "simulate", str(MODEL), "-o", str(folder), *EASY]
        if measure(command, log=folder.with_suffix(".log")).exit_code != 0:
            raise RuntimeError(f"the simulation failed; see {folder.with_suffix('.log')}")
    truth = read_truth(folder)
    return replace(truth, volume=at_working_box(truth.volume))


def at_working_box(volume: Volume) -> Volume:
    """A map Fourier-cropped to the working box."""
    n, cropped = volume.box_size_px, crop_centred(fft_map(volume.values), BOX_PX, 3)
    return Volume(ifft_map(cropped), volume.pixel_size_angstrom * n / BOX_PX)


def run_known(bench: Bench) -> Record:
    """The map from the true poses, at the working box; done now unless it was done before.

    Args:
        bench: where.
    """
    key = {"set": "easy", "mode": "known", "seed": 0, "options": ["--no-ctf"]}
    if before := find_record(read_records(bench.records), key):
        return before
    output = bench.work / "known"
    command = [CRYOEQ, "reconstruct", str(bench.work / "easy" / "truth.star"), "--pose-inference", "known", "--no-ctf"]
    cost = measure([*command, "-o", str(output)], log=output.with_suffix(".log"))
    volume = at_working_box(read_map(output / "run_class001.mrc"))
    places = {"DIR": bench.work, "cryoeq": Path(CRYOEQ)}
    scores = score_decoded(volume, bench.truth, bench.work)
    record = {"arm": "known poses", "task": "", **key, **cost_record(cost, [command], places), **scores}
    append_record(bench.records, record)
    return record


FIGURES: dict[str, Callable[[Record], float]] = {
    "median error °": lambda record: record["poses"]["rotation_deg"]["median"],
    "mean °": lambda record: record["poses"]["rotation_deg"]["mean"],
    "epochs until poses settle": lambda record: record["settled_epoch"],
    "until found": lambda record: record["found_epoch"],
    "variance explained %": lambda record: 100 * record["explained_variance"],
    "FSC 0.5 shell": lambda record: record["map"]["shell"],
    "planar score": lambda record: record["planar_symmetry"],
}


def table(records: Sequence[Record], tasks: Sequence[str]) -> str:
    """One row per task and arm: successes, medians over seeds and ranges.

    Args:
        records: all of them.
        tasks: to show.
    """
    head = ["task", "arm", "parameters", "MFLOP per image", "found (95 % Wilson)", *FIGURES, "spurious", "CPU s"]
    rows = [
        [task, name, *_cells([record for record in records if (record["task"], record["arm"]) == (task, name)])]
        for task in tasks
        for name in ARMS
        if any((record["task"], record["arm"]) == (task, name) for record in records)
    ]
    known = [
        ["", "known poses", "–", "–", "–", *_spreads([record]), "–", f"{record['cpu_s']:.0f}"]
        for record in records
        if record["mode"] == "known"
    ]
    return markdown_table(head, [*rows, *known[-1:]])


def _cells(group: Sequence[Record]) -> Iterator[str]:
    yield f"{group[0]['encoder']['parameters']}"
    yield f"{group[0]['encoder']['FLOPs'] / 1e6:.2f}"
    found = sum(is_success(record) for record in group)
    interval = binomtest(found, len(group)).proportion_ci(method="wilson")
    yield f"{found}/{len(group)} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"
    yield from _spreads(group)
    yield f"{sum(record['planar_symmetry'] > MIXED_HANDS_SCORE for record in group)}/{len(group)}"
    yield spread(lambda record: record["cpu_s"], group)


def _spreads(group: Sequence[Record]) -> list[str]:
    return [spread(partial(_figure, name), group) for name in FIGURES]


def _figure(name: str, record: Record) -> float | None:
    """A figure of a record, None where it has none."""
    try:
        return FIGURES[name](record)
    except KeyError:  # known poses have no errors and no epochs
        return None


def is_success(record: Record) -> bool:
    """Whether a run found the structure.

    Args:
        record: of the run.
    """
    return bool(record["poses"]["rotation_deg"]["median"] < GOOD_MEDIAN_DEG)


def announce(record: Record) -> None:
    """One line on a run."""
    figures = "; ".join(f"{name} {spread(partial(_figure, name), [record])}" for name in FIGURES)
    verdict = "found" if is_success(record) else "not found"
    print(
        f"{record['task']}, {record['arm']}, seed {record['seed']}: {verdict}; {figures}; CPU {record['cpu_s']} s",
        flush=True,
    )


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the particles")
    parser.add_argument("--arms", type=listed, default=tuple(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--tasks", type=listed, default=tuple(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(5)), help="such as 0-4 or 0,3,5-7")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work.resolve()
    if not given.no_runs:
        bench = Bench(work, given.records, prepare(work))
        run_known(bench)
        for task, seed, name in product(given.tasks, given.seeds, given.arms):
            announce(bench.run(name, task, seed))
    text = table(read_records(given.records), given.tasks)
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
