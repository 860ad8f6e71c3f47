"""How well scores tell particles from junk: areas under the ROC curve, recorded in ``screen.json``.

python tests/benchmarks/screen.py --other 6msm.pdb
python tests/benchmarks/screen.py --other 6msm.pdb --poses search --seeds 0 1 2 --shares 0.2 --count 800
python tests/benchmarks/screen.py --other 6msm.pdb --poses hybrid --seeds 0 1 2 --shares 0.2 --count 800

Each set: RNA polymerase II, 32 px, SNR 0.1, CTF, shifts of 5 % of the box. A share of the stack is junk, a quarter each
of pure noise, another molecule, overlapping pairs and particles with a wrong pose. By default no search is run, to
save time: particles have their true poses turned by about 5 degrees and shifted by 0.25 px, and junk images get the
pose, of an even grid, in which they agree best with the true map, as a search would give them. The half maps come from
all images with those poses, junk too. Scorers see what ``cryoeq screen`` sees.
``graph`` is the sheaf network without its sheaf. Seeds 0 to 4 are those on which settings were chosen, 10 to 14 came
afterwards; the means printed at the end are of the seeds asked for.

With ``--poses search`` or ``hybrid`` all is done as a user would: ``cryoeq reconstruct`` on the stack, without poses,
and ``cryoeq screen`` on its folder, once for every scorer. There is no junk of wrong poses then, but a third each of
the other kinds, and the record tells how far the poses of the true particles are off. A hybrid run has an encoder, so
the graphs are also made of embeddings of class averages there (``--graph embeddings``).
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
from cryoeq.evaluation.particle_scorers import area_under_curve
from cryoeq.evaluation.resolution import TRUTH_THRESHOLD, compare_maps
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.io.compose import compose_star
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import StackWriter, read_map
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import read_particles, star_poses, write_particle_star
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines.screening.score_particles import ScorerKind, ScreenedParticles
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
RUN_SCORERS = {
    "error": ("--scorer", "error"),
    "knn": ("--scorer", "knn"),
    "graph": ("--scorer", "graph"),
    "sheaf": ("--scorer", "sheaf"),
    "graph of embeddings": ("--scorer", "graph", "--graph", "embeddings"),
    "sheaf of embeddings": ("--scorer", "sheaf", "--graph", "embeddings"),
}


def volumes(other: Path | None) -> tuple[Volume, Volume]:
    """The molecule and the other one, at the same box and pixel."""
    atoms = read_atoms(packaged_file("data_samples/1wcm_ca.pdb.gz")).centred()
    pixel = 2 * atoms.radius_angstrom / (0.7 * BOX_PX)
    if other is not None:
        second = read_atoms(other).centred()
    else:
        from phantoms import chiral_phantom

        second = chiral_phantom(0.6 * atoms.radius_angstrom)
    return sample_atoms(atoms, BOX_PX, pixel), sample_atoms(second, BOX_PX, pixel)


def clean_images(volume: Volume, poses: Poses, ctf: CtfParameters) -> Tensor:
    """Noise-free images of variance SNR."""
    images = torch.cat(list(NoiseFreeStack.from_map(volume, poses, ctf).batches()))
    return images * (SNR**0.5 / images.std())


@dataclass(frozen=True)
class JunkStack:
    """A star file with poses that a search could have given, and what is true of its images.

    Args:
        path: the star file.
        kinds: of junk, an index into ``KINDS``; -1 for a particle.
        true: poses.
    """

    path: Path
    kinds: Tensor
    true: Poses


def make_stack(
    folder: Path, seed: int, share: float, count: int, other: Path | None, *, is_searched: bool = False
) -> JunkStack:
    """A stack with junk; one that is to be searched has neither poses nor junk of wrong poses."""
    generator = torch.Generator().manual_seed(1000 + seed)
    truth, second = volumes(other)
    pixel = truth.pixel_size_angstrom
    optics = Optics("simulated", pixel, 300.0, 2.7, 0.1)
    ctf = draw_ctf(count, optics, DefocusRange(1e4, 2.5e4, 300.0), generator)
    true = draw_poses(count, "uniform", SHIFT_PX * pixel, generator)
    kinds = torch.full((count,), -1)
    spoilt = torch.randperm(count, generator=generator)[: round(share * count)]
    kinds[spoilt] = torch.arange(len(spoilt)) % (len(KINDS) - is_searched)
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
    best = references.best_rotations(references.match(batch, given[found]), torch.zeros_like(found))
    given = replace(given, rotations=rotations.index_put((found,), best))
    with StackWriter(folder / "particles.mrcs", count, BOX_PX, pixel) as writer:
        writer.append(images)
    half_set = torch.randint(1, 3, (count,), generator=generator)
    path = folder / "particles.star"
    star = compose_star("particles.mrcs", count, BOX_PX, optics, ctf)
    if is_searched:
        write_particle_star(path, star, None)
    else:
        write_particle_star(path, star, given, half_set=half_set)
    return JunkStack(path, kinds, true)


def perturbed(poses: Poses, pixel_size_angstrom: float, generator: torch.Generator) -> Poses:
    """Poses as good as a search finds them."""
    turns = rotation_from_vector(torch.randn(len(poses), 3, generator=generator) * POSE_ERROR_DEG * torch.pi / 180)
    moves = SHIFT_ERROR_PX * pixel_size_angstrom * torch.randn(len(poses), 2, generator=generator)
    return Poses(turns @ poses.rotations, poses.shifts_angstrom + moves)


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
        areas[kind] = areas_of(scores, made.kinds)
    return {"seed": seed, "share": share, "count": count, "fsc_0.5_angstrom": agreed, "auc": areas, "cpu_s": seconds}


def areas_of(scores: Tensor, kinds: Tensor) -> dict[str, float]:
    """Area under the ROC curve of all junk, and of each kind that there is."""
    areas = {"all": round(area_under_curve(scores, kinds >= 0), 4)}
    for number, name in enumerate(KINDS):
        if (kinds == number).any():
            seen = (kinds < 0) | (kinds == number)
            areas[name] = round(area_under_curve(scores[seen], kinds[seen] >= 0), 4)
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
    for name, options in RUN_SCORERS.items():
        if "embeddings" in options and mode != "hybrid":
            continue
        start = time.process_time()
        command(["screen", run, *options, "-o", folder / name])
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
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.3], help="of the stack that is junk")
    parser.add_argument("-n", "--count", type=int, default=600, help="images in a stack")
    parser.add_argument("--other", type=Path, help="the other molecule, PDB or mmCIF [a phantom of two helices]")
    parser.add_argument(
        "--poses", choices=("near", "search", "hybrid"), default="near", help="near the truth, or found"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"where to write the results ({RESULTS.name})")
    arguments = parser.parse_args()
    records = read_json(arguments.output)["sets"] if arguments.output.is_file() else []
    asked = [record for record in records if record.get("poses", "near") == arguments.poses]
    known = {(record["seed"], record["share"], record["count"]) for record in asked}
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
    asked = [record for record in records if record.get("poses", "near") == arguments.poses]
    asked = [record for record in asked if record["seed"] in arguments.seeds and record["count"] == arguments.count]
    for share, kind in product(arguments.shares, RUN_SCORERS):
        areas = [record["auc"][kind]["all"] for record in asked if record["share"] == share and kind in record["auc"]]
        if areas:
            spread = f"from {min(areas):.3f} to {max(areas):.3f}, {len(areas)} sets"
            print(f"{share:.0%} junk, {kind}: mean {statistics.mean(areas):.3f}, {spread}")


if __name__ == "__main__":
    main()
