"""The accuracy figures of the README on reference data: ``python tests/benchmarks/real_input.py --work DIR``.

Known poses: FSC of the 70S half maps and of RNA polymerase II against its truth, beside RELION's. Amortized inference:
cryoDRGN's toy set and the three 6MSM sets, poses ignored, against their truth. Needs the reference data folder
(``CRYOEQ_REFERENCE_DATA``); results are written beside this file.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

from benchmark_sets import DATA, given_poses
from scoring import pose_figures

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.evaluation.resolution import compare_maps
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct

RESULTS = Path(__file__).with_suffix(".json")
_SMALL = {"working_box_px": 16, "shift_sigma_angstrom": 0.0}
_BARE = {"input": {**_SMALL, "angpix": 6.0, "with_ctf": False}, "pose_inference": "amortized"}
_CENTRED = {"input": _SMALL, "pose_inference": "amortized"}
_TOY = {**_BARE, "training": {"epochs": 188}}
# Each set: its folder, and the settings.
SETS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "toy": ("toy_cryodrgn", _TOY),
    "toy, pure autoencoder": ("toy_cryodrgn", {**_TOY, "loss": {"synthetic_weight": 0.0}}),
    "6MSM, SNR 1": ("bench_6msm/s1", _CENTRED),
    "6MSM, SNR 0.1": ("bench_6msm/s01", _CENTRED),
}


def run(particles: Path, output: Path, settings: Mapping[str, object]) -> float:
    """One reconstruction; its seconds."""
    config = ReconstructConfig.model_validate({"particles": particles, "output": output, **settings})
    start = time.perf_counter()
    for _ in reconstruct(config):
        pass
    return time.perf_counter() - start


def known_poses(work: Path) -> dict[str, object]:
    """Both sets with poses; shells of the FSC."""
    tilts, polymerase = DATA / "real_70s_tilts", DATA / "relion_1wcm"
    run(tilts / "particles.star", work / "tilts", {"pose_inference": "known"})
    run(polymerase / "particles.star", work / "polymerase", {"pose_inference": "known"})
    halves = [read_map(work / "tilts" / f"run_half{number}_class001_unfil.mrc") for number in (1, 2)]
    whole, authors = (
        read_map(path)
        for path in (work / "tilts" / "run_class001.mrc", tilts / "warptools_test_box-32_angpix-12_reconstruct.mrc")
    )
    found, truth = (
        read_map(path) for path in (work / "polymerase" / "run_class001.mrc", polymerase / "truth_1WCM_64p_3.75A.mrc")
    )
    resolution = compare_maps(found, truth).resolutions_angstrom(0.5)["unmasked"]
    return {
        "tilts_half_maps": fourier_shell_correlation(halves[0].values, halves[1].values)[1:11].tolist(),
        "tilts_against_authors": fourier_shell_correlation(whole.values, authors.values)[1:11].tolist(),
        "polymerase_against_truth_resolution_angstrom": resolution,
    }


def without_poses(name: str, work: Path, seed: int) -> dict[str, object]:
    """One amortized run against the truth."""
    folder, settings = SETS[name]
    stack = "toy_projections.star" if folder == "toy_cryodrgn" else "particles.star"
    output = work / f"{list(SETS).index(name)}_{seed}"
    seconds = run(DATA / folder / stack, output, {**settings, "seed": seed})
    inferred = star_poses(read_star(output / "run_data.star"))
    pixel_size = read_map(output / "run_class001.mrc").pixel_size_angstrom
    truth = given_poses(DATA / folder / ("truth.npz" if folder == "toy_cryodrgn" else "truth.star"), pixel_size)
    results = read_json(output / "job.json")["results"]
    return {
        "set": name,
        "seed": seed,
        "seconds": round(seconds, 1),
        "explained_variance": results["explained_variance"],
        **pose_figures(inferred, truth, pixel_size),
    }


def main() -> None:
    """All sets, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sets", nargs="*", default=["known", *SETS], choices=["known", *SETS])
    parser.add_argument("--work", type=Path, required=True, help="empty folder for the runs")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"known": None, "amortized": []}
    if "known" in arguments.sets:
        results["known"] = known_poses(arguments.work)
    for name in (name for name in arguments.sets if name != "known"):
        for seed in arguments.seeds:
            row = without_poses(name, arguments.work, seed)
            kept = [old for old in results["amortized"] if (old["set"], old["seed"]) != (name, seed)]
            results["amortized"] = [*kept, row]
            print(json.dumps(row), flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
