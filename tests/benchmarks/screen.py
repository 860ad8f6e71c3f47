"""How well scores separate particles from outliers: areas under the ROC curve, recorded in ``screen.json``.

python tests/benchmarks/screen.py --other 6msm.pdb
python tests/benchmarks/screen.py --other 6msm.pdb --poses search --seeds 0 1 2 --shares 0.2 --count 800
python tests/benchmarks/screen.py --other 6msm.pdb --poses hybrid --seeds 0 1 2 --shares 0.2 --count 800

Each set: RNA polymerase II, 32 px, SNR 0.1, CTF, shifts of 5 % of the box. A fraction of the stack are outliers, a
quarter each of pure noise, another molecule, overlapping pairs and particles with a wrong pose. By default no search is
run, to save time: particles have their true poses rotated by about 5 degrees and shifted by 0.25 px, and outlier images
get the pose of a regular grid in which they agree best with the true map, as a search would give them. The half maps
come from all images with those poses, outliers included. Scorers get the features of ``cryoeq screen``.
``graph`` is the sheaf network without its sheaf. Seeds 0 to 4 are those on which settings were chosen, 10 to 14 came
afterwards; the means printed at the end are of the requested seeds.

With ``--poses search`` or ``hybrid`` all is done as a user would: ``cryoeq reconstruct`` on the stack, without poses,
and ``cryoeq screen`` on its folder, once for every scorer. There are no outliers of wrong poses then, but a third each
of the other kinds, and the record holds the pose errors of the true particles.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from scoring import pose_figures
from torch import Tensor

from cryoeq.cli.main import run as run_cryoeq
from cryoeq.config.loading import packaged_file
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.particle_features import ReferenceProjections
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps
from cryoeq.evaluation.screened_particles import ScreenedParticles
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.io.compose import compose_star
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import StackWriter, read_map
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import read_particles, star_poses, write_particle_star
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines.screening.score_particles import ScorerKind, build_scorer
from cryoeq.pipelines.screening.screen import SCORE_COLUMN
from cryoeq.reconstruction.known_poses import reconstruct_from_poses
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses

RESULTS = Path(__file__).with_suffix(".json")
KINDS = ("noise", "other molecule", "overlap", "wrong pose")
SCORERS: tuple[ScorerKind, ...] = ("error", "knn", "graph", "sheaf")
BOX_PX, SNR, SHIFT_PX, POSE_ERROR_DEG, SHIFT_ERROR_PX = 32, 0.1, 1.6, 3.0, 0.25
LIMIT_ANGSTROM = 30.0
COMMON = ("--device", "cpu", "--threads", "1")


def volumes(other: Path | None) -> tuple[Volume, Volume]:
    """The molecule and the other one, at the same box and pixel."""
    atoms = read_atoms(packaged_file("data_samples/1wcm_ca.pdb.gz")).centred()
    pixel = 2 * atoms.radius_angstrom / (0.7 * BOX_PX)
    if other is not None:
        second = read_atoms(other).centred()
    else:
        from phantom_projections import chiral_phantom

        second = chiral_phantom(0.6 * atoms.radius_angstrom)
    return sample_atoms(atoms, BOX_PX, pixel), sample_atoms(second, BOX_PX, pixel)


def clean_images(volume: Volume, poses: Poses, ctf: CtfParameters) -> Tensor:
    """Noise-free images of variance SNR."""
    images = torch.cat(list(NoiseFreeStack.from_map(volume, poses, ctf).batches()))
    return images * (SNR**0.5 / images.std())


@dataclass(frozen=True)
class StackWithOutliers:
    """A star file with poses that a search could have given, and the truth about its images.

    Args:
        path: the star file.
        kinds: kind of outlier, an index into ``KINDS``; -1 for a particle.
        true: true poses.
    """

    path: Path
    kinds: Tensor
    true: Poses


def make_stack(
    folder: Path, seed: int, share: float, count: int, other: Path | None, *, is_searched: bool = False
) -> StackWithOutliers:
    """A stack with outliers; one for a search has neither poses nor outliers of wrong poses."""
    generator = torch.Generator().manual_seed(1000 + seed)
    truth, second = volumes(other)
    pixel = truth.pixel_size_angstrom
    optics = Optics("simulated", pixel, 300.0, 2.7, 0.1)
    ctf = draw_ctf(count, optics, DefocusRange(1e4, 2.5e4, 300.0), generator)
    true = draw_poses(count, "uniform", SHIFT_PX * pixel, generator)
    kinds = torch.full((count,), -1)
    corrupted = torch.randperm(count, generator=generator)[: round(share * count)]
    kinds[corrupted] = torch.arange(len(corrupted)) % (len(KINDS) - is_searched)
    clean = clean_images(truth, true, ctf)
    images = torch.where((kinds == 0)[:, None, None], 0.0, clean)
    images = torch.where((kinds == 1)[:, None, None], clean_images(second, true, ctf), images)
    for row in (kinds == 2).nonzero().squeeze(1).tolist():
        angle, radius = float(torch.rand(1, generator=generator)) * 6.283, BOX_PX * (0.2 + 0.3 * (row % 7) / 7)
        move = (round(radius * torch.tensor(angle).sin().item()), round(radius * torch.tensor(angle).cos().item()))
        images[row] = clean[row] + torch.roll(clean[(row + 1) % count], move, (-2, -1))
    images = images + torch.randn(images.shape, generator=generator)
    given = perturbed(true, pixel, generator)
    wrong = (kinds == 3).nonzero().squeeze(1)
    rotations = given.rotations.index_put((wrong,), random_rotations(len(wrong), generator))
    changed = ((kinds >= 0) & (kinds < 3)).nonzero().squeeze(1)
    references = ReferenceProjections.from_maps((truth,), images, BOX_PX * pixel, LIMIT_ANGSTROM)
    batch = ParticleBatch(changed, images[changed], ctf[changed])
    best = references.best_rotations(references.transform(batch, given[changed]), torch.zeros_like(changed))
    given = replace(given, rotations=rotations.index_put((changed,), best))
    with StackWriter(folder / "particles.mrcs", count, BOX_PX, pixel) as writer:
        writer.append(images)
    half_set = torch.randint(1, 3, (count,), generator=generator)
    path = folder / "particles.star"
    star = compose_star("particles.mrcs", count, BOX_PX, optics, ctf)
    if is_searched:
        write_particle_star(path, star, None)
    else:
        write_particle_star(path, star, given, half_set=half_set)
    return StackWithOutliers(path, kinds, true)


def perturbed(poses: Poses, pixel_size_angstrom: float, generator: torch.Generator) -> Poses:
    """Poses with errors like those of a search."""
    rotations = rotation_from_vector(torch.randn(len(poses), 3, generator=generator) * POSE_ERROR_DEG * torch.pi / 180)
    shift_errors = SHIFT_ERROR_PX * pixel_size_angstrom * torch.randn(len(poses), 2, generator=generator)
    return Poses(rotations @ poses.rotations, poses.shifts_angstrom + shift_errors)


def run_set(folder: Path, seed: int, share: float, count: int, other: Path | None) -> dict[str, object]:
    """One stack, all scorers."""
    made = make_stack(folder, seed, share, count, other)
    stack = read_particles(made.path, with_poses=True)
    dataset = ParticleDataset.open(stack, sign=1)
    poses, half_set = stack.table.poses, stack.table.half_set
    assert poses is not None
    assert half_set is not None
    halves = reconstruct_from_poses(dataset, poses, half_set).halves
    assert halves is not None
    agreed = compare_maps(halves.first, halves.second).resolutions_angstrom(TRUTH_THRESHOLD)["unmasked"]
    particles = ScreenedParticles.from_maps(dataset, poses, half_set, halves)
    measuring = particles.measure_features()
    try:
        while True:
            next(measuring)
    except StopIteration as end:
        features = end.value
    areas: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for kind in SCORERS:
        start = time.process_time()
        scorer = build_scorer(kind, particles, features, torch.Generator().manual_seed(seed))
        scores = scorer.score(features)
        seconds[kind] = round(time.process_time() - start, 2)
        areas[kind] = areas_of(scores, made.kinds)
    return {"seed": seed, "share": share, "count": count, "fsc_0.5_angstrom": agreed, "auc": areas, "cpu_s": seconds}


def areas_of(scores: Tensor, kinds: Tensor) -> dict[str, float]:
    """Area under the ROC curve of all outliers, and of each kind in the set."""
    areas = {"all": round(roc_auc(scores, kinds >= 0), 4)}
    for number, name in enumerate(KINDS):
        if (kinds == number).any():
            rows = (kinds < 0) | (kinds == number)
            areas[name] = round(roc_auc(scores[rows], kinds[rows] >= 0), 4)
    return areas


def run_searched_set(
    folder: Path, seed: int, share: float, count: int, other: Path | None, mode: str
) -> dict[str, object]:
    """One stack through the commands that a user would give."""
    made = make_stack(folder, seed, share, count, other, is_searched=True)
    run, seconds = folder / "run", {}
    start = time.process_time()
    command(["reconstruct", made.path, "--pose-inference", mode, "--seed", seed, "-o", run, *COMMON])
    seconds["reconstruct"] = round(time.process_time() - start)
    areas = {}
    for name in SCORERS:
        start = time.process_time()
        command(["screen", run, "--scorer", name, "-o", folder / name])
        seconds[name] = round(time.process_time() - start, 2)
        scores = read_star(folder / name / "screened.star").particles[SCORE_COLUMN]
        areas[name] = areas_of(torch.tensor([float(score) for score in scores]), made.kinds)
    good = (made.kinds < 0).nonzero().squeeze(1)
    star = read_star(run / "run_data.star")
    off = pose_figures(star_poses(star)[good], made.true[good], star_pixel_size(star))
    halves = [read_map(run / f"run_half{half}_class001_unfil.mrc") for half in (1, 2)]
    agreed = compare_maps(*halves).resolutions_angstrom(TRUTH_THRESHOLD)["unmasked"]
    return {"seed": seed, "share": share, "count": count, "poses": mode, "fsc_0.5_angstrom": agreed,
            "particles_off": off, "auc": areas, "cpu_s": seconds}  # fmt: skip


def command(words: Iterable[object]) -> None:
    """Run a command of cryoeq in this process."""
    code = run_cryoeq([str(word) for word in words])
    if code:
        raise SystemExit(code)


def main() -> None:
    """Run all sets that are not recorded yet, print and record."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10, 15)))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.3], help="fractions of outliers")
    parser.add_argument("-n", "--count", type=int, default=600, help="images in a stack")
    parser.add_argument("--other", type=Path, help="the other molecule, PDB or mmCIF [a phantom of two helices]")
    parser.add_argument(
        "--poses",
        choices=("near", "search", "hybrid"),
        default="near",
        help="near the true ones, or of a reconstruction",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"where to write the results ({RESULTS.name})")
    arguments = parser.parse_args()
    records = read_json(arguments.output)["sets"] if arguments.output.is_file() else []
    requested = [record for record in records if record.get("poses", "near") == arguments.poses]
    known = {(record["seed"], record["share"], record["count"]) for record in requested}
    for seed in arguments.seeds:
        for share in arguments.shares:
            if (seed, share, arguments.count) in known:
                continue
            given = (seed, share, arguments.count, arguments.other)
            with tempfile.TemporaryDirectory() as place:
                records.append(
                    run_set(Path(place), *given) if arguments.poses == "near"
                    else run_searched_set(Path(place), *given, arguments.poses)
                )  # fmt: skip
            print(records[-1], flush=True)
            write_json(arguments.output, {"other": arguments.other and arguments.other.name, "torch": torch.__version__,
                                          "load_average": os.getloadavg()[0], "sets": records})  # fmt: skip
    requested = [record for record in records if record.get("poses", "near") == arguments.poses]
    requested = [
        record for record in requested if record["seed"] in arguments.seeds and record["count"] == arguments.count
    ]
    for share, kind in product(arguments.shares, SCORERS):
        areas = [
            record["auc"][kind]["all"] for record in requested if record["share"] == share and kind in record["auc"]
        ]
        if areas:
            extremes = f"from {min(areas):.3f} to {max(areas):.3f}, {len(areas)} sets"
            print(f"{share:.0%} outliers, {kind}: mean {statistics.mean(areas):.3f}, {extremes}")


if __name__ == "__main__":
    main()
