"""``relion_refine --auto_refine`` 3.1.3 beside ``cryoeq refine``: the same particles, the same start at 20 Angstrom.

    python tests/benchmarks/full_box_relion.py --work DIR --cpu-minutes 15

500 particles of 1WCM, 128 px. RELION runs in three processes, one of which only gives orders, with
``--healpix_order 2 --auto_local_healpix_order 3``. One that reaches the limit of CPU time, over all processes, is ended
there: the cost is "at least" that, and the mean of the half maps of its last iteration is compared with the truth. The
records go to ``full_box.json``.
"""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path

import torch
from benchmark_sets import prepare
from full_box import PROGRAMS, RESULTS, SETS
from recorded_runs import (
    CRYOEQ,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    stop_children_when_terminated,
)

from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.mrc import read_map
from cryoeq.io.text import read_json

SET, COUNT, START_ANGSTROM = "1wcm_500", 500, 20
_WORKERS = 2
_REFINE = (
    "--auto_refine --split_random_halves --low_resol_join_halves 40 --ini_high 20 --ctf --ctf_corrected_ref "
    "--firstiter_cc --sym C1 --particle_diameter 200 --flatten_solvent --zero_mask --norm --scale --oversampling 1 "
    "--healpix_order 2 --auto_local_healpix_order 3 --offset_range 5 --offset_step 2 --pad 2 --preread_images "
    "--pool 10 --dont_combine_weights_via_disc --dont_check_norm --random_seed 1 --j 1"
)


def shell_of(volume: torch.Tensor, truth: torch.Tensor) -> int:
    """The last shell before the correlation of two maps first drops below 0.5."""
    below = (fourier_shell_correlation(volume, truth) < 0.5).nonzero()
    return int(below[0]) - 1 if len(below) else len(truth) // 2


def run_relion(folder: Path, output: Path, truth: torch.Tensor, cpu_s: float) -> Record:
    """Auto-refinement within a limit of CPU time, and what its last iteration agrees to.

    Args:
        folder: of the particles.
        output: an empty folder.
        truth: the true map.
        cpu_s: the limit over all processes.
    """
    words = ["relion_refine_mpi", "--i", "particles.star", "--ref", "truth_volume.mrc", "--o", str(output / "run")]
    mpi = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(_WORKERS + 1)]
    limited = ["prlimit", f"--cpu={round(cpu_s / _WORKERS)}", *words, *shlex.split(_REFINE)]
    cost = measure([*mpi, *limited], log=output / "log", folder=folder, environment={"OMP_NUM_THREADS": "1"})
    final = output / "run_class001.mrc"
    halves = sorted(output.glob("run_it*_half1_class001.mrc"))
    record: Record = {**cost_record(cost, [[*mpi, *limited]], {"DIR": folder.parent}), "is_cut": not final.is_file()}
    record["iteration"] = "final" if final.is_file() else halves[-1].name[:9] if halves else None
    if final.is_file():
        found = read_map(final).values
    elif halves:
        first, second = halves[-1], Path(str(halves[-1]).replace("half1", "half2"))
        found = (read_map(first).values + read_map(second).values) / 2
    else:
        return record
    return record | {"truth_shell": shell_of(found, truth)}


def run_ours(folder: Path, output: Path, truth: torch.Tensor) -> Record:
    """``cryoeq refine`` from the same start.

    Args:
        folder: of the particles.
        output: folder of the run.
        truth: the true map.
    """
    command = [CRYOEQ, "refine", str(folder / "particles.star"), "--ref", str(folder / "truth_volume.mrc")]
    command += ["--ini-high", str(START_ANGSTROM), "-o", str(output), "-j", "1"]
    cost = measure(command, log=output.with_suffix(".log"), environment={"OMP_NUM_THREADS": "1"})
    scored = output.with_suffix(".json")
    evaluate = [CRYOEQ, "evaluate", str(output / "run_data.star"), str(folder / "truth.star"), "--json", str(scored)]
    measure(evaluate, log=output.with_suffix(".log"))
    found = read_map(output / "run_class001.mrc").values
    record = {**cost_record(cost, [command], {"DIR": folder.parent, **PROGRAMS}), "truth_shell": shell_of(found, truth)}
    figures = read_json(scored)
    return record | {"poses": {name: figures[name] for name in ("images", "rotation_deg", "shift_px")}}


def main() -> None:
    """Run both, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--cpu-minutes", type=float, default=15.0, help="limit of RELION over all processes [15]")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file [{RESULTS.name}]")
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    folder = prepare(SET, given.work.resolve(), replace(SETS["1wcm"], count=COUNT))
    truth = read_map(folder / "truth_volume.mrc").values
    ours: Record = {"set": SET, "mode": "refine", "seed": 0, "options": ["--ini-high", str(START_ANGSTROM)]}
    theirs: Record = {
        "set": SET, "mode": "relion", "seed": 1, "options": ["--cpu-minutes", f"{given.cpu_minutes:g}"],
    }  # fmt: skip
    for key in (ours, theirs):
        if find_record(read_records(given.records), key):
            continue
        output = given.work.resolve() / f"{SET}_{key['mode']}"
        if key is ours:
            record = run_ours(folder, output, truth)
        else:
            output.mkdir(parents=True, exist_ok=True)
            record = run_relion(folder, output, truth, 60 * given.cpu_minutes)
        append_record(given.records, {**key, **record})
        print(json.dumps({**key, **record}, indent=1))


if __name__ == "__main__":
    main()
