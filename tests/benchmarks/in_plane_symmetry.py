"""How often the test for broken in-plane symmetry speaks up: sets with an astigmatism that the star file knows or not.

    python tests/benchmarks/in_plane_symmetry.py --work DIR                     every case, seeds 0-9
    python tests/benchmarks/in_plane_symmetry.py --work DIR --report            what is recorded, nothing is run

1WCM, n = 2,000, SNR 0.1, shifts of 5 % of the box, defocus 1 to 2.5 um, U - V the absolute value of a normal of the
given standard deviation, always along 30 degrees. "corrected": the star file holds U, V and the angle; "uncorrected":
it holds their mean. Poses are searched for (32 px), or are the true ones (64 px). Runs are appended to
``in_plane_symmetry.json`` beside this file; one that is recorded there is not done again.
"""

import argparse
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from benchmark_sets import DATA
from recorded_runs import CRYOEQ

from cryoeq.io.star import decimals, read_star, write_star
from cryoeq.io.text import read_json, write_json

RESULTS = Path(__file__).with_suffix(".json")
CASES = (("search", 32, 3000), ("known", 64, 300), ("known", 64, 1000), ("known", 64, 3000))
CASE_KEYS = ("poses", "box_px", "astigmatism_sd_angstrom", "is_corrected")
SIDE_ANGSTROM = 251.2
ANGLE_DEG = 30.0

Record = dict[str, str | int | float | bool]


def simulate(folder: Path, box: int, astigmatism: int, seed: int) -> None:
    """The set, and beside each star file one that knows of no astigmatism."""
    words = [
        "--box", box, "-n", 2000, "--snr", 0.1, "--shift-sigma", SIDE_ANGSTROM / 20, "--angpix", SIDE_ANGSTROM / box,
        "--astigmatism", astigmatism, "--astigmatism-angle", ANGLE_DEG, "--seed", 1000 + seed, "-o", folder,
    ]  # fmt: skip
    run("simulate", DATA / "models" / "1wcm.pdb", *words)
    for name in ("particles", "truth"):
        star = read_star(folder / f"{name}.star")
        mean = (star.require("rlnDefocusU").astype(float) + star.require("rlnDefocusV").astype(float)) / 2
        defocus = dict.fromkeys(("rlnDefocusU", "rlnDefocusV"), decimals(mean))
        write_star(folder / f"{name}_uncorrected.star", replace(star, particles={**star.particles, **defocus}))


def run(*words: object) -> None:
    """A command of cryoeq."""
    subprocess.run([CRYOEQ, *map(str, words)], check=True, capture_output=True, env={**os.environ})


def measure(work: Path, case: tuple[str, int, int], seed: int, *, is_corrected: bool) -> Record:
    """One reconstruction and what it says."""
    mode, box, astigmatism = case
    folder = work / f"{box}_{astigmatism}_{seed}"
    if not folder.is_dir():
        simulate(folder, box, astigmatism, seed)
    name = ("truth" if mode == "known" else "particles") + ("" if is_corrected else "_uncorrected")
    output = folder / f"{mode}_{'corrected' if is_corrected else 'uncorrected'}"
    run("reconstruct", folder / f"{name}.star", "-o", output, "--pose-inference", mode, "--in-plane-symmetry")
    results = read_json(output / "job.json")["results"]
    p_value = results["in_plane_p_value"]
    return {
        "poses": mode, "box_px": box, "astigmatism_sd_angstrom": astigmatism, "seed": seed,
        "is_corrected": is_corrected, "p_value": p_value, "is_flagged": p_value <= 0.01,
        "divergence": results["in_plane_divergence"],
        "missing_astigmatism_angstrom": results["missing_astigmatism_angstrom"],
        "resolution_angstrom": results["half_map_resolution_angstrom"],
    }  # fmt: skip


def report(records: list[Record]) -> None:
    """A line for each case."""
    for mode, box, astigmatism in CASES:
        for is_corrected in (True, False):
            wanted = (mode, box, astigmatism, is_corrected)
            own = [record for record in records if tuple(record[key] for key in CASE_KEYS) == wanted]
            if own:
                flagged = sum(bool(record["is_flagged"]) for record in own)
                sizes = [float(record["missing_astigmatism_angstrom"]) for record in own]
                state = "corrected" if is_corrected else "uncorrected"
                print(f"{mode:7}{box:3} px {astigmatism:5} A {state:12} flagged {flagged} of {len(own)}; "
                      f"missing U - V, mean: {sum(sizes) / len(sizes):.0f} A")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for sets and runs")
    parser.add_argument("--report", action="store_true", help="print what is recorded, run nothing")
    arguments = parser.parse_args()
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    keys = ("poses", "box_px", "astigmatism_sd_angstrom", "seed", "is_corrected")
    done = {tuple(record[key] for key in keys) for record in records}
    for seed in () if arguments.report else range(10):
        for case in CASES:
            for is_corrected in (True, False):
                if (*case, seed, is_corrected) not in done:
                    records.append(measure(arguments.work, case, seed, is_corrected=is_corrected))
                    write_json(RESULTS, records)
                    print(records[-1], flush=True)
    report(records)


if __name__ == "__main__":
    main()
