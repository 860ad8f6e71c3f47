"""How well scores tell particles from junk: areas under the ROC curve, recorded in ``screen.json``.

python tests/benchmarks/screen.py --other 6msm.pdb

Each set: RNA polymerase II, 32 px, SNR 0.1, CTF, shifts of 5 % of the box. A share of the stack is junk, a quarter each
of pure noise, another molecule, overlapping pairs and particles with a wrong pose. No search is run, to save time:
particles have their true poses turned by about 5 degrees and shifted by 0.25 px, and junk images get the pose, of an
even grid, in which they agree best with the true map, as a search would give them. The half maps come from all images
with those poses, junk too. Scorers see what ``cryoeq screen`` sees.
``graph`` is the sheaf network without its sheaf. Seeds 0 to 4 are those on which settings were chosen, 10 to 14 came
afterwards; the means printed at the end are of the seeds asked for.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from cryoeq.config.loading import packaged_file
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.particle_evidence import ReferenceProjections
from cryoeq.evaluation.particle_scores import area_under_curve
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.io.compose import compose_star
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines.known import reconstruct_known
from cryoeq.pipelines.particle_screening import ScorerKind, ScreenedParticles
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, NoiseFreeStack, draw_ctf, draw_poses

RESULTS = Path(__file__).with_suffix(".json")
KINDS = ("noise", "other molecule", "overlap", "wrong pose")
SCORERS: tuple[ScorerKind, ...] = ("error", "knn", "graph", "sheaf")
BOX_PX, SNR, SHIFT_PX, POSE_ERROR_DEG, SHIFT_ERROR_PX = 32, 0.1, 1.6, 3.0, 0.25
LIMIT_ANGSTROM = 30.0


def volumes(other: Path | None) -> tuple[Volume, Volume]:
    """The molecule and the other one, at the same box and pixel."""
    atoms = read_atoms(packaged_file("data_samples/1wcm_ca.pdb.gz")).centred()
    pixel = 2 * atoms.radius_angstrom / (0.7 * BOX_PX)
    if other is not None:
        second = read_atoms(other).centred()
    else:
        from cryoeq.simulation.phantom import chiral_phantom

        second = chiral_phantom(0.6 * atoms.radius_angstrom)
    return sample_atoms(atoms, BOX_PX, pixel), sample_atoms(second, BOX_PX, pixel)


def clean_images(volume: Volume, poses: Poses, ctf: CtfParameters) -> Tensor:
    """Noise-free images of variance SNR."""
    images = torch.cat(list(NoiseFreeStack.of(volume, poses, ctf).batches()))
    return images * (SNR**0.5 / images.std())


def make_stack(folder: Path, seed: int, share: float, count: int, other: Path | None) -> tuple[Path, Tensor]:
    """A stack with junk, the poses that a search could have given, and the kind of each image (-1: a particle)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    truth, second = volumes(other)
    pixel = truth.pixel_size_angstrom
    optics = Optics("simulated", pixel, 300.0, 2.7, 0.1)
    ctf = draw_ctf(count, optics, DefocusRange(1e4, 2.5e4, 300.0), generator)
    true = draw_poses(count, "uniform", SHIFT_PX * pixel, generator)
    kinds = torch.full((count,), -1)
    spoilt = torch.randperm(count, generator=generator)[: round(share * count)]
    kinds[spoilt] = torch.arange(len(spoilt)) % len(KINDS)
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
    found = ((kinds >= 0) & (kinds < 3)).nonzero().squeeze(1)
    references = ReferenceProjections.of((truth,), images, BOX_PX * pixel, LIMIT_ANGSTROM)
    batch = ParticleBatch(found, images[found], ctf[found])
    best = references.best_rotations(references.match(batch, given.shifts_angstrom[found]), torch.zeros_like(found))
    given = replace(given, rotations=rotations.index_put((found,), best))
    with StackWriter(folder / "particles.mrcs", count, BOX_PX, pixel) as writer:
        writer.append(images)
    half_set = torch.randint(1, 3, (count,), generator=generator)
    path = folder / "particles.star"
    write_particle_star(path, compose_star("particles.mrcs", count, BOX_PX, optics, ctf), given, half_set=half_set)
    return path, kinds


def perturbed(poses: Poses, pixel_size_angstrom: float, generator: torch.Generator) -> Poses:
    """Poses as good as a search finds them."""
    turns = rotation_from_vector(torch.randn(len(poses), 3, generator=generator) * POSE_ERROR_DEG * torch.pi / 180)
    moves = SHIFT_ERROR_PX * pixel_size_angstrom * torch.randn(len(poses), 2, generator=generator)
    return Poses(turns @ poses.rotations, poses.shifts_angstrom + moves)


def run_set(folder: Path, seed: int, share: float, count: int, other: Path | None) -> dict[str, object]:
    """One stack, all scorers."""
    path, kinds = make_stack(folder, seed, share, count, other)
    stack = read_particles(path, with_poses=True)
    dataset = ParticleDataset.open(stack, sign=1)
    poses, half_set = stack.table.poses, stack.table.half_set
    assert poses is not None
    assert half_set is not None
    halves = reconstruct_known(dataset, poses, half_set).halves
    assert halves is not None
    agreed = compare_maps(halves.first, halves.second).resolutions_angstrom(TRUTH_THRESHOLD)["unmasked"]
    particles = ScreenedParticles.of(dataset, poses, half_set, halves)
    weighing = particles.weigh()
    try:
        while True:
            next(weighing)
    except StopIteration as end:
        evidence = end.value
    areas: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for kind in SCORERS:
        start = time.process_time()
        scorer = particles.make_scorer(kind, evidence, torch.Generator().manual_seed(seed))
        scores = scorer.score(evidence)
        seconds[kind] = round(time.process_time() - start, 2)
        by_kind = {
            name: round(area_under_curve(scores[(kinds < 0) | (kinds == k)], kinds[(kinds < 0) | (kinds == k)] >= 0), 4)
            for k, name in enumerate(KINDS)
        }
        areas[kind] = {"all": round(area_under_curve(scores, kinds >= 0), 4), **by_kind}
    return {"seed": seed, "share": share, "count": count, "fsc_0.5_angstrom": agreed, "auc": areas, "cpu_s": seconds}


def main() -> None:
    """Run all sets that are not recorded yet, print and record."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10, 15)))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.3], help="of the stack that is junk")
    parser.add_argument("-n", "--count", type=int, default=600, help="images in a stack")
    parser.add_argument("--other", type=Path, help="the other molecule, PDB or mmCIF [a phantom of two helices]")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"where to write the results ({RESULTS.name})")
    arguments = parser.parse_args()
    records = read_json(arguments.output)["sets"] if arguments.output.is_file() else []
    known = {(record["seed"], record["share"], record["count"]) for record in records}
    for seed in arguments.seeds:
        for share in arguments.shares:
            if (seed, share, arguments.count) in known:
                continue
            with tempfile.TemporaryDirectory() as place:
                records.append(run_set(Path(place), seed, share, arguments.count, arguments.other))
            print(records[-1], flush=True)
            write_json(arguments.output, {"other": arguments.other and arguments.other.name, "torch": torch.__version__,
                                          "load_average": os.getloadavg()[0], "sets": records})  # fmt: skip
    asked = [record for record in records if record["seed"] in arguments.seeds]
    for share, kind in product(arguments.shares, SCORERS):
        areas = [record["auc"][kind]["all"] for record in asked if record["share"] == share]
        print(f"{share:.0%} junk, {kind}: mean {statistics.mean(areas):.3f}, from {min(areas):.3f} to {max(areas):.3f}")


if __name__ == "__main__":
    main()
