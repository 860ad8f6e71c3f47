"""RELION 3.1.3 with two classes on a stack of ``classes.py`` cropped to 32 px, and cryoeq on the same images.

    python tests/benchmarks/class_relion.py --work DIR --seed 0 --cpu-minutes 15

``sgd`` finds two references from noise, ``classify`` is a 3D classification of all particles from them, on a grid of 15
degrees, refined once. A stage that reaches the limit of CPU time, which counts for both, is ended there: the cost is
"at least" that, and of a classification its last complete iteration is scored. SGD alone is not scored: its particles
have the class of their last mini-batch, or none. Same scoring as in ``classes.py``; RELION leaves nothing
out. The record goes to ``classes.json``.
"""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmark_sets import DATA
from class_scores import TrueClass, score_run
from classes import RESULTS, SETS, Bench, Mixture, reported
from recorded_runs import (
    CRYOEQ,
    Cost,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    stop_children_when_terminated,
)

from cryoeq.geometry.fourier import fourier_crop_images
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles
from cryoeq.io.star import read_star, write_star

BOX_PX, NAME = 32, "molecules"
SET = f"{NAME}_{BOX_PX}"
_ALL = (
    "--K 2 --ctf --sym C1 --flatten_solvent --zero_mask --preread_images --pool 10 --particle_diameter 200 "
    "--dont_check_norm --random_seed 1 --j 1 --i particles.star"
)
STAGES = {
    "sgd": "--o sgd/run --sgd --denovo_3dref --sgd_ini_iter 20 --sgd_inbetween_iter 40 --sgd_fin_iter 10 "
    "--sgd_write_iter 10 --sgd_ini_resol 50 --sgd_fin_resol 25 --sgd_ini_subset 60 --sgd_fin_subset 100 "
    "--dont_combine_weights_via_disc --pad 1 --skip_gridding --healpix_order 2 --oversampling 0 --offset_range 1 "
    "--offset_step 1",
    "classify": "--o classify/run --ref {model} --ini_high 30 --iter 5 --tau2_fudge 4 --pad 2 --ctf_corrected_ref "
    "--healpix_order 2 --oversampling 1 --offset_range 1.5 --offset_step 1",
}  # fmt: skip


def crop_stack(folder: Path, work: Path) -> None:
    """The particles of a folder in a smaller box, their background of deviation 1; names as they were.

    Args:
        folder: of ``particles.star``.
        work: where to write.
    """
    if (work / "particles.star").is_file():
        return
    stack = read_particles(folder / "particles.star")
    pixel_size = stack.table.pixel_size_angstrom * stack.table.box_size_px / BOX_PX
    images = torch.cat(
        [fourier_crop_images(stack.images.read(rows), BOX_PX) for rows in torch.arange(len(stack.images)).split(500)]
    )
    grid = torch.arange(BOX_PX) - BOX_PX // 2
    is_outside = (grid[:, None].square() + grid.square()).sqrt() > BOX_PX / 2
    images = images / images[:, is_outside].std()
    with StackWriter(work / "particles.mrcs", len(images), BOX_PX, pixel_size) as writer:
        writer.append(images)
    star = read_star(folder / "particles.star")
    if star.optics is None:
        raise ValueError("a stack of cryoeq simulate has optics groups")
    changed = {"rlnImagePixelSize": f"{pixel_size:.6f}", "rlnImageSize": f"{BOX_PX}"}
    optics = {
        name: np.full_like(values, changed.get(name, values[0]), dtype=object) for name, values in star.optics.items()
    }
    write_star(
        work / "particles.star", replace(star, optics={name: values.astype(str) for name, values in optics.items()})
    )


def last_iteration(stage: Path) -> int:
    """The last iteration of a stage whose model was written.

    Args:
        stage: folder of its output.
    """
    return max(
        (
            int(path.name.split("_")[1][2:])
            for path in stage.glob("run_it*_model.star")
            if "unfinished" not in path.name
        ),
        default=0,
    )


def run_relion(work: Path, program: str, cpu_s: float) -> tuple[list[list[str]], Cost, Path]:
    """Both stages within a limit of CPU time.

    Args:
        work: folder with the particles.
        program: ``relion_refine``.
        cpu_s: the limit of both stages.

    Returns:
        The commands, their cost, and the last star file with classes and poses.
    """
    commands, total, answer, model = [], Cost(), work / "none", ""
    for name, options in STAGES.items():
        (work / name).mkdir(exist_ok=True)
        words = [program, *shlex.split(options.format(model=model)), *shlex.split(_ALL)]
        left = max(1, round(cpu_s - total.cpu_s))
        command = ["prlimit", f"--cpu={left}", *words]
        cost = measure(command, log=work / name / "log", folder=work, environment={"OMP_NUM_THREADS": "1"})
        commands.append(command)
        total = total.then(cost)
        number = last_iteration(work / name)
        stem = f"run_it{number:03d}"
        answer, model = work / name / f"{stem}_data.star", f"{name}/{stem}_model.star"
        if cost.exit_code and total.cpu_s < 0.95 * cpu_s:
            raise RuntimeError(f"{name} failed; see {work / name / 'log'}")
        print(f"{name}: {cost.cpu_s:.0f} CPU s, iteration {number}", flush=True)
        if total.cpu_s >= 0.95 * cpu_s:
            break
    return commands, total, answer


def run_ours(work: Path, bench: Bench, truth: Path, structures: list[TrueClass], seed: int, classes: str) -> None:
    """cryoeq on the same images, recorded unless it was before; one class for its cost alone."""
    key: Record = {"set": SET, "mode": "search", "seed": seed, "options": ["--classes", classes]}
    if find_record(read_records(bench.records), key):
        return
    output, log = work / f"cryoeq_K{classes}", work / f"cryoeq_K{classes}.log"
    command = [CRYOEQ, "reconstruct", str(work / "particles.star"), "-o", str(output), "--classes", classes]
    command += ["--seed", str(seed), "-j", "1"]
    cost = measure(command, log=log, environment={"OMP_NUM_THREADS": "1"})
    record = {**key, **cost_record(cost, [command], bench.places), **reported(output, log)}
    if classes != "1" and (output / "run_data.star").is_file():
        record["scores"] = score_run(output, truth, structures, log=work / f"cryoeq_K{classes}_evaluate.log")
    append_record(bench.records, record)


def main() -> None:
    """Crop, run both, score, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models")
    parser.add_argument("--seed", type=int, default=0, help="of the stack [0]")
    parser.add_argument("--cpu-minutes", type=float, default=15.0, help="limit of RELION [15]")
    parser.add_argument("--relion", type=Path, help="folder of relion_refine [the PATH]")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file [{RESULTS.name}]")
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    recipe = SETS[NAME]
    assert isinstance(recipe, Mixture)
    bench = Bench(given.data.resolve(), given.work.resolve(), given.records)
    folder = bench.prepare(NAME, given.seed)
    structures, truth = bench.structures(NAME, folder), folder / "truth.star"
    work = bench.work / "relion" / f"{SET}_{given.seed}"
    work.mkdir(parents=True, exist_ok=True)
    crop_stack(folder, work)
    for classes in ("2", "1"):
        run_ours(work, bench, truth, structures, given.seed, classes)
    limit = 60 * given.cpu_minutes
    options = ["--K", "2", "--cpu-minutes", f"{given.cpu_minutes:g}"]
    key: Record = {"set": SET, "mode": "relion", "seed": given.seed, "options": options}
    if find_record(read_records(given.records), key):
        return
    program = str(given.relion / "relion_refine") if given.relion else "relion_refine"
    commands, cost, answer = run_relion(work, program, limit)
    record = {**key, **cost_record(cost, commands, bench.places), "is_cut": cost.cpu_s >= 0.95 * limit}
    record |= {"iteration": answer.name, "stage": answer.parent.name}
    if answer.parent.name == "classify" and last_iteration(answer.parent) > 0:
        record["scores"] = score_run(answer, truth, structures, log=work / "relion_evaluate.log")
    append_record(given.records, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
