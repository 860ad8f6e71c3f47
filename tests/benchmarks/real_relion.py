"""RELION 3.1 beside cryoeq on the experimental ribosome, with as few iterations as it needs.

    python tests/benchmarks/real_relion.py --data DIR --work DIR --ours RUN [--relion BIN_DIR]

Commands of ``relion_refine``, one thread: ``sgd``, stochastic gradient descent from noise to 40 A, 60 to 100 particles
an iteration; ``global``, one iteration of all particles over all poses; ``local``, three of local searches; and beside
these ``finer``, from the map of the first over all poses on a grid twice as fine, to see what more time gives. What has
a ``cost.json`` in ``--work`` is not run again. RELION 3.1 cannot read 16-bit float stacks: particles are copied to 32
bits first. Its maps are compared with that of a run of cryoeq (``--ours``); the last is drawn (``real_relion.png``);
the record goes to ``real_particles.json``.
"""

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path

import torch
from real_particles import RESULTS, SETS
from real_pictures import LOOKS, draw
from real_scores import same_map, shared_fsc
from recorded_runs import Cost, append_record, cost_record, measure, stop_children_when_terminated

from cryoeq.io.mrc import StackWriter, read_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json, write_json
from cryoeq.maps.alignment import align_map

_ALL = (
    "--K 1 --ctf --sym C1 --flatten_solvent --zero_mask --preread_images --pool 10 --particle_diameter 300 "
    "--random_seed 1 --j 1"
)
STAGES = {
    "sgd": "--i particles.star --o sgd/run --sgd --denovo_3dref --sgd_ini_iter 20 --sgd_inbetween_iter 40 "
    "--sgd_fin_iter 10 --sgd_write_iter 10 --sgd_ini_resol 60 --sgd_fin_resol 40 --sgd_ini_subset 60 "
    "--sgd_fin_subset 100 --dont_combine_weights_via_disc --pad 1 --skip_gridding --healpix_order 1 --oversampling 1 "
    "--offset_range 6 --offset_step 3",
    "global": "--i particles.star --o global/run --ref sgd/run_it070_class001.mrc --ini_high 40 --iter 1 --pad 2 "
    "--ctf_corrected_ref --healpix_order 1 --oversampling 1 --offset_range 6 --offset_step 3",
    "local": "--i global/run_it001_data.star --o local/run --ref global/run_it001_class001.mrc --ini_high 40 --iter 3 "
    "--tau2_fudge 4 --pad 2 --ctf_corrected_ref --healpix_order 3 --sigma_ang 10 --oversampling 1 --offset_range 3 "
    "--offset_step 1.5",
    "finer": "--i particles.star --o finer/run --ref sgd/run_it070_class001.mrc --ini_high 40 --iter 3 --tau2_fudge 4 "
    "--pad 2 --ctf_corrected_ref --healpix_order 2 --oversampling 1 --offset_range 6 --offset_step 2",
}
LAST_ITERATIONS = {"sgd": 70, "global": 1, "local": 3, "finer": 3}


def copy_particles(particles: Path, work: Path) -> None:
    """Star file and stack of 32-bit floats."""
    if (work / "particles.star").is_file():
        return
    stack = read_particles(particles)
    images = stack.images.read(torch.arange(len(stack.images)))
    with StackWriter(work / "particles.mrcs", *images.shape[:2], stack.table.pixel_size_angstrom) as writer:
        writer.append(images)
    (work / "particles.star").write_bytes(particles.read_bytes())


def run_stage(name: str, work: Path, program: str) -> tuple[list[str], Cost]:
    """One command, run now unless it was before."""
    command = [program, *shlex.split(STAGES[name]), *shlex.split(_ALL)]
    done = work / name / "cost.json"
    if done.is_file():
        return command, Cost(**read_json(done))
    done.parent.mkdir(exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    cost = measure(command, log=done.with_name("log"), folder=work, environment=threads)
    if cost.exit_code:
        raise SystemExit(f"{name} failed; see {done.with_name('log')}")
    write_json(done, asdict(cost))
    return command, cost


def main() -> None:
    """Run, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--ours", type=Path, required=True, help="run folder of cryoeq on the same particles")
    parser.add_argument("--relion", type=Path, help="folder of relion_refine [the PATH]")
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    particles = given.data / SETS["ribosome"].folder / "particles.star"
    copy_particles(particles, given.work)
    program = str(given.relion / "relion_refine") if given.relion else "relion_refine"
    ours = read_map(given.ours / "run_class001.mrc")
    commands, total, stages = [], Cost(), {}
    for name in STAGES:
        command, cost = run_stage(name, given.work, program)
        commands.append(command)
        total = total.then(cost)
        theirs = read_map(given.work / name / f"run_it{LAST_ITERATIONS[name]:03d}_class001.mrc")
        stages[name] = {"cpu_s": cost.cpu_s, **same_map(ours, theirs), "fsc": shared_fsc(ours, theirs)}
    moved = align_map(theirs, ours, with_hand=True).apply(theirs)
    draw(RESULTS.with_name("real_relion.png"), read_particles(particles), moved, LOOKS["ribosome"], {})
    key = {"set": "ribosome", "mode": "relion", "seed": 1, "options": []}
    record = {**key, **cost_record(total, commands, {"{work}": given.work}), "stages": stages}
    append_record(RESULTS, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
