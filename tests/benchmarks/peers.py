"""cryoeq beside RELION and cryoDRGN on the same files, one tool at a time, scored with the same functions.

    python tests/benchmarks/peers.py --work DIR --sets s1,s01,s01sh [--relion BIN_DIR] [--cryodrgn PROGRAM]

Every tool gets the same threads and is told what the user knows of the data: that particles are centred, or that their
shifts spread by about a pixel. Of each tool three things are scored: its poses, the map that cryoeq's reconstruction
from known poses makes with them (not counted in the time), and its own map. Runs are appended to the records (by
default ``peers.json`` beside this file); a run that is recorded there is not done again.

The settings of the peers were found on these sets, whose molecule is 150 A across: RELION 3.1 by its gradient descent
and two refinements, cryoDRGN 4.3 with a volume of voxels (its network takes half an hour an epoch on a CPU) and with
more epochs of pose search than by default (3 fail on 2,000 images).
"""

import argparse
import pickle
import shlex
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ab_initio import COST_FIGURES, POSE_FIGURES, Figure, latest, listed, markdown_table, spread
from benchmark_sets import DATA, SETS, prepare
from recorded_runs import (
    CRYOEQ,
    Cost,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    run_key,
    stop_children_when_terminated,
)
from scoring import Truth, read_poses, read_truth, score_map, score_poses

from cryoeq.domain.pose import Poses
from cryoeq.io.particles import star_half_set, write_particle_star
from cryoeq.io.text import write_text

RESULTS = Path(__file__).with_suffix(".json")
PEER_SETS = ("s1", "s01", "s01sh")
_DIAMETER_ANGSTROM = "180"
_CRYODRGN_EPOCHS, _CRYODRGN_SEARCHES = 20, 14


@dataclass(frozen=True)
class Job:
    """One run of one tool.

    Args:
        folder: of the set; tools run in it, since they look there for the stack.
        output: where they write.
        seed: of the tool.
        threads: for it to use.
        program: its executable, or the folder of its executables.
        options: more options of cryoeq.
        is_shifted: particles are off centre by about a pixel.
    """

    folder: Path
    output: Path
    seed: int
    threads: int
    program: Path
    options: tuple[str, ...]
    is_shifted: bool


@dataclass(frozen=True)
class Tool:
    """How to run a tool and read what it leaves.

    Args:
        commands: one after the other; a later one may read what the former wrote.
        poses: of a finished run.
        volume: its own map.
    """

    commands: Callable[[Job], Iterator[list[str]]]
    poses: Callable[[Job, Truth], Poses]
    volume: Callable[[Job], Path]


def cryoeq_commands(mode: str) -> Callable[[Job], Iterator[list[str]]]:
    """``cryoeq reconstruct`` in one of its modes."""

    def commands(job: Job) -> Iterator[list[str]]:
        inference = ["--pose-inference", mode, "--seed", str(job.seed), *job.options]
        yield [str(job.program), "reconstruct", "particles.star", "-o", str(job.output / "run"), *inference]

    return commands


def relion_commands(job: Job) -> Iterator[list[str]]:
    """Gradient descent from noise, then a global and a local refinement, of which the poses are fresh.

    Without ``--ctf_corrected_ref`` the refinement spoils good poses.
    """
    refine = str(job.program / "relion_refine")
    both = (
        f"--K 1 --ctf --sym C1 --flatten_solvent --zero_mask --preread_images --pool 10 "
        f"--particle_diameter {_DIAMETER_ANGSTROM} --dont_check_norm --random_seed {job.seed} --j {job.threads}"
    ).split()
    far, near = ("--offset_range 4 --offset_step 2", "--offset_range 2 --offset_step 1")
    centred = "--offset_range 0 --offset_step 1"
    descent = (
        "--sgd --denovo_3dref --sgd_ini_iter 50 --sgd_inbetween_iter 100 --sgd_fin_iter 30 --sgd_write_iter 10 "
        "--sgd_ini_resol 35 --sgd_fin_resol 15 --sgd_ini_subset 100 --sgd_fin_subset 200 "
        "--dont_combine_weights_via_disc --pad 1 --skip_gridding --healpix_order 1 --oversampling 1 "
    ) + (far if job.is_shifted else centred)
    local = "--oversampling 1 --tau2_fudge 4 --ctf_corrected_ref --pad 2 " + (near if job.is_shifted else centred)
    first, second, third = (_relion_root(job, name) for name in ("descent", "global", "local"))
    yield [refine, "--o", first, "--i", "particles.star", *descent.split(), *both]
    start = f"--i particles.star --ref {_newest(first, '_class001.mrc')} --ini_high 25 --iter 5 --healpix_order 2 "
    yield [refine, "--o", second, *shlex.split(start + local), *both]
    start = (
        f"--i {_newest(second, '_data.star')} --ref {_newest(second, '_class001.mrc')} "
        "--ini_high 18 --iter 4 --healpix_order 3 --sigma_ang 5 "
    )
    yield [refine, "--o", third, *shlex.split(start + local), *both]


def _relion_root(job: Job, name: str) -> str:
    (job.output / name).mkdir(parents=True, exist_ok=True)
    return str(job.output / name / "run")


def _newest(root: str, ending: str) -> Path:
    """The file of RELION's last iteration."""
    return max(Path(root).parent.glob(f"run_it*{ending}"))


def relion_poses(job: Job, truth: Truth) -> Poses:
    """Poses of the local refinement."""
    return read_poses(_newest(_relion_root(job, "local"), "_data.star"), truth)


def relion_volume(job: Job) -> Path:
    """Map of the local refinement, regularised by RELION."""
    return _newest(_relion_root(job, "local"), "_class001.mrc")


def cryodrgn_commands(job: Job) -> Iterator[list[str]]:
    """Hierarchical pose search, then gradient descent on poses and voxels."""
    ctf, output, particles = job.output / "ctf.pkl", job.output / "abinit", "particles.star"
    job.output.mkdir(parents=True, exist_ok=True)
    yield [str(job.program), "parse_ctf_star", particles, "-o", str(ctf)]
    # Its grid of shifts spans 20 px by default, more than half of these boxes.
    shifts = ["--t-extent", "4"] if job.is_shifted else ["--no-trans"]
    search = (
        f"--zdim 0 --explicit-volume --lr 5e-4 --epochs-pose-search {_CRYODRGN_SEARCHES} -n {_CRYODRGN_EPOCHS} "
        "--no-amp --base-healpy 1 --nkeptposes 4 --niter 3 --l-start 6 --l-end 14 --batch-size-hps 16 "
        "--batch-size-sgd 32 --checkpoint 3 --num-workers 0 --no-analysis --n-imgs-pretrain 500"
    )
    words = [*search.split(), *shifts, "--seed", str(job.seed)]
    yield [str(job.program), "abinit", particles, "--ctf", str(ctf), "-o", str(output), *words]


def _cryodrgn_last(job: Job, name: str, ending: str) -> Path:
    files = (job.output / "abinit").glob(f"{name}.*.{ending}")
    return max(files, key=lambda file: int(file.name.split(".")[-2]))


def cryodrgn_poses(job: Job, truth: Truth) -> Poses:
    """RELION's matrices, and shifts in pixels of RELION's sign; no shifts where it was told that there are none."""
    loaded = pickle.loads(_cryodrgn_last(job, "pose", "pkl").read_bytes())
    rotations, shifts_px = loaded if isinstance(loaded, tuple) else (loaded, None)
    poses = torch.as_tensor(rotations).float()
    if shifts_px is None:
        return Poses(poses, torch.zeros(len(poses), 2))
    return Poses(poses, torch.as_tensor(shifts_px).float() * truth.volume.pixel_size_angstrom)


def cryodrgn_volume(job: Job) -> Path:
    """Its last map."""
    return _cryodrgn_last(job, "reconstruct", "mrc")


def _cryoeq(mode: str) -> Tool:
    return Tool(
        cryoeq_commands(mode),
        lambda job, truth: read_poses(job.output / "run" / "run_data.star", truth),
        lambda job: job.output / "run" / "run_class001.mrc",
    )


TOOLS = {
    "search": _cryoeq("search"),
    "hybrid": _cryoeq("hybrid"),
    "amortized": _cryoeq("amortized"),
    "relion": Tool(relion_commands, relion_poses, relion_volume),
    "cryodrgn": Tool(cryodrgn_commands, cryodrgn_poses, cryodrgn_volume),
}


def find_programs(relion: Path | None, cryodrgn: str) -> dict[str, Path]:
    """Where the tools are; those that are not installed are left out.

    Args:
        relion: folder of RELION's programs, None to look in PATH.
        cryodrgn: its program.
    """
    found = {
        "relion": shutil.which("relion_refine", path=str(relion) if relion else None),
        "cryodrgn": shutil.which(cryodrgn),
    }
    places = {name: Path(CRYOEQ) for name in TOOLS if name not in found}
    places |= {name: Path(place).absolute() for name, place in found.items() if place is not None}
    return {name: place.parent if name == "relion" else place for name, place in places.items()}


def run_tool(tool: Tool, job: Job, time_limit_s: float | None) -> tuple[Cost, list[Record], list[list[str]]]:
    """Run the commands of a tool until one fails.

    Args:
        tool: which.
        job: on what.
        time_limit_s: of each command.

    Returns:
        Cost of all, cost of each, and the commands.
    """
    shutil.rmtree(job.output, ignore_errors=True)
    job.output.mkdir(parents=True)
    environment = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    total, stages, commands = Cost(), list[Record](), list[list[str]]()
    for command in tool.commands(job):
        cost = measure(
            command, log=job.output / "log.txt", time_limit_s=time_limit_s, folder=job.folder, environment=environment
        )
        total, commands = total.then(cost), [*commands, command]
        stages.append({"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "exit_code": cost.exit_code})
        if cost.exit_code != 0:
            break
    return total, stages, commands


def score(tool: Tool, job: Job, truth: Truth) -> Record:
    """Scores of a finished run: poses, the map that known-pose reconstruction makes of them, the tool's own map."""
    poses = tool.poses(job, truth)
    star, output = job.folder / f"{job.output.name}.star", job.output / "from_poses"
    write_particle_star(star, truth.star, poses, half_set=star_half_set(truth.star))
    shutil.rmtree(output, ignore_errors=True)
    command = [CRYOEQ, "reconstruct", str(star), "-o", str(output), "--pose-inference", "known"]
    measure([*command, *(["--no-ctf"] if "--no-ctf" in job.options else [])], log=job.output / "log.txt")
    return {
        "poses": score_poses(poses, truth),
        "map": score_map(output / "run_class001.mrc", truth),
        "own_map": score_map(tool.volume(job), truth),
    }


def run_recorded(key: Record, job: Job, truth: Truth, given: argparse.Namespace) -> None:
    """Run, score, record and say what came of it, unless that was done before.

    Args:
        key: set, mode (the tool), seed and options.
        job: the run.
        truth: of the set.
        given: arguments of the command line.
    """
    if find_record(read_records(given.records), key) is not None and not given.repeat:
        return
    tool = TOOLS[key["mode"]]
    cost, stages, commands = run_tool(tool, job, given.time_limit)
    places = {"DIR": given.work, "DATA": DATA, "PROGRAM": job.program}
    failed = {"poses": None, "map": None, "own_map": None}
    scores = score(tool, job, truth) if cost.exit_code == 0 else failed
    facts = cost_record(cost, commands, places)
    record = {**key, "threads": job.threads, "time_limit_s": given.time_limit, **facts, "stages": stages, **scores}
    append_record(given.records, record)
    print(table([record]), flush=True)
    if cost.exit_code != 0:
        print(f"{key['mode']} ended with exit code {cost.exit_code}; see {job.output / 'log.txt'}", flush=True)


def table(records: Sequence[Record]) -> str:
    """One row per set and tool, medians and ranges over seeds; CPU time also as a multiple of search's.

    Args:
        records: of the runs.
    """
    maps: dict[str, Figure] = {
        "map of its poses Å": lambda record: record["map"]["resolution_angstrom"],
        "crossing Å": lambda record: record["map"]["crossing_angstrom"],
        "own map Å": lambda record: record["own_map"]["resolution_angstrom"],
        "own crossing Å": lambda record: record["own_map"]["crossing_angstrom"],
    }
    figures = POSE_FIGURES | maps | COST_FIGURES
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in latest(records):
        groups.setdefault((record["set"], record["mode"], " ".join(run_key(record)[-1])), []).append(record)
    rows = [
        [name, mode, f"{len(group)}", *(spread(figure, group) for figure in figures.values()), _times(group, groups)]
        for (name, mode, _), group in sorted(groups.items())
    ]
    return markdown_table(["set", "tool", "runs", *figures, "CPU, times search's"], rows)


def _times(group: Sequence[Record], groups: dict[tuple[str, str, str], list[Record]]) -> str:
    ours = next((runs for key, runs in groups.items() if key[:2] == (group[0]["set"], "search")), None)
    if ours is None:
        return "–"
    times = (sum(record["cpu_s"] for record in runs) / len(runs) for runs in (group, ours))
    return f"{next(times) / next(times):.1f}"


def main() -> None:
    """Run all tools on all sets, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=PEER_SETS, help=f"of {', '.join(PEER_SETS)}")
    parser.add_argument("--tools", type=listed, default=("search", "relion", "cryodrgn"), help=f"of {', '.join(TOOLS)}")
    parser.add_argument("--relion", type=Path, help="folder of RELION's programs (default: as found in PATH)")
    parser.add_argument("--cryodrgn", default="cryodrgn", help="program (default: as found in PATH)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", type=shlex.split, default=[], help="more options of cryoeq reconstruct, quoted")
    parser.add_argument("--time-limit", type=float, default=14400.0, help="of each command in seconds (default 14400)")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--repeat", action="store_true", help="do runs again that are recorded; the latest counts")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in PEER_SETS] + [t for t in given.tools if t not in TOOLS]:
        parser.error(f"{', '.join(unknown)} unknown; sets: {', '.join(PEER_SETS)}; tools: {', '.join(TOOLS)}")
    stop_children_when_terminated()
    torch.set_num_threads(1)
    given.work = given.work.resolve()
    programs = find_programs(given.relion, given.cryodrgn)
    for name in given.tools:
        if name not in programs:
            print(f"{name} is not installed, skipped; see --help for how to name its place")
    for name in given.sets:
        folder = prepare(name, given.work)
        truth = read_truth(folder, SETS[name].symmetry)
        for mode in (mode for mode in given.tools if mode in programs):
            options = [*SETS[name].options, *given.options] if programs[mode] == Path(CRYOEQ) else []
            key = {"set": name, "mode": mode, "seed": given.seed, "options": options}
            tag = zlib.crc32(" ".join(options).encode())
            output = given.work / "peers" / name / f"{mode}_{given.seed}_{tag:08x}"
            job = Job(folder, output, given.seed, given.threads, programs[mode], tuple(options), name == "s01sh")
            run_recorded(key, job, truth, given)
    text = table(read_records(given.records))
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
