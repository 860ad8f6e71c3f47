"""Encoders of views of several classes beside an E-step over all poses: class and pose of a particle, at what cost.

    OMP_NUM_THREADS=1 python tests/benchmarks/view_classes.py --work DIR --seeds 0
    python tests/benchmarks/view_classes.py --work DIR --no-runs --table FILE    the table of what is recorded

Four maps: that of ``base`` of ``ab_initio.py``, and three without a ball of 6 px of 32 about one of its voxels.
Projections of each at the noise and with the CTFs of the set's particles. An encoder of each map, all at one noise, and
the class of the highest log-likelihood, as in ``cryoeq infer``; all poses of the four maps at all offsets up to shell
10, then up to shell 15 at the offset found, as in a search; and up to shell 15 at seven offsets about the true one with
an error of 0.3 px, as in a class assignment, which knows them. CPU time of one thread, of all particles, without what
is done once for each map (training of the encoders apart). Records are appended to ``view_classes.json``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from ab_initio import markdown_table, seed_list
from benchmark_sets import DATA, SETS, prepare
from jaxtyping import Float
from pose_ways import SEARCHED_SHELL, SMALL_PX, Scene, open_scene, timed
from recorded_runs import Cost, Record, append_record, cost_record, find_record, read_records
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.text import write_text
from cryoeq.reconstruction.expectation import BestPoses, disk_offsets, hexagonal_offsets, offset_step_px, pose_posterior
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.posing import ViewPoser
from cryoeq.training.views.projections import simulate_particles
from cryoeq.training.views.training import ViewTrainingSettings, train_views

RESULTS = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
CLASSES, OF_EACH, BALL_PX, MASK = 4, 200, 6.0, 0.42
OFFSET_ERROR_PX, STEPS = 0.3, 3


class Classes:
    """Maps, projections of them with their classes and poses.

    Args:
        scene: particles and map that they are made of, in the small box.
        seed: of all that is random.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        self.generator, self.sigma_px = torch.Generator().manual_seed(seed), scene.shift_sigma_px
        parts = [without_ball(scene.volume, self.generator) for _ in range(CLASSES - 1)]
        precision = Reference.prepare(scene.volume, scene.particles).precision
        self.references = [Reference.build(volume, precision) for volume in (scene.volume, *parts)]
        made = [
            simulate_particles(scene.particles, each, OF_EACH, self.sigma_px, self.generator)
            for each in self.references
        ]
        images = [particles for particles, _ in made]
        self.particles = ParticleTransforms(
            images[0].plane,
            torch.cat([each.ctf_multiplied for each in images]),
            torch.cat([each.ctf_squared for each in images]),
            torch.cat([each.ctf_squared_harmonics for each in images], 1),
        )
        self.poses = PoseSet.cat([poses for _, poses in made])
        self.of_class = torch.arange(CLASSES).repeat_interleave(OF_EACH)

    def figures(
        self, seconds: float, scores: Float[Tensor, "n classes"], rotations: Float[Tensor, "n classes 3 3"]
    ) -> Record:
        """Cost of a particle, share of right classes, errors of the poses in the class that was found."""
        found, rows = scores.argmax(1), torch.arange(len(scores))
        error = rotation_angle_rad(rotations[rows, found], self.poses.rotations).rad2deg()
        return {
            "ms": round(1000 * seconds / len(scores), 3),
            "right": round(float((found == self.of_class).double().mean()), 4),
            "median_deg": round(float(error.median()), 3),
            "beyond_30": round(float((error > 30).double().mean()), 4),
        }

    def likelihood(self, shell: int) -> PoseLikelihood:
        """Of all poses of all maps up to a shell."""
        harmonics = disk_harmonics(SMALL_PX, shell, support_radius(MASK, SMALL_PX), CPU)
        return PoseLikelihood.of_classes(self.references, pose_grid(shell, self.generator, CPU), harmonics)

    def refined(self, best: BestPoses) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes 3 3"]]:
        """Log-likelihoods and rotations of the poses under each map after local refinement."""
        numbers = [torch.full_like(self.of_class, number) for number in range(CLASSES)]
        found = [
            refine_poses(
                self.particles, reference, best.poses_of(each, SMALL_PX), shift_sigma_px=self.sigma_px, steps=STEPS
            )
            for each, reference in zip(numbers, self.references, strict=True)
        ]
        scores = torch.stack([each.log_likelihood for each in found], 1)
        return scores, torch.stack([each.poses.rotations for each in found], 1)


def without_ball(volume: Float[Tensor, "n n n"], generator: torch.Generator) -> Float[Tensor, "n n n"]:
    """A map without what is about one of its voxels, chosen by density."""
    axis = torch.arange(len(volume)) - len(volume) // 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).float()
    centre = points.view(-1, 3)[torch.multinomial(volume.clamp(min=0).flatten(), 1, generator=generator)[0]]
    return volume * torch.sigmoid(2 * ((points - centre).norm(dim=-1) - BALL_PX))


def encoders(given: Classes, seed: int) -> tuple[float, list[ViewPoser]]:
    """CPU seconds of the training, and a poser for each class."""
    settings, precision = (
        ViewSettings(given.sigma_px / SMALL_PX, MASK, torch.eye(3)[None]),
        given.references[0].precision,
    )
    built = [ViewEncoder.build(each.volume, given.particles, settings, precision) for each in given.references]
    trained_s = sum(
        timed(lambda each=each, number=number: result_of(  # type: ignore[misc]
            train_views(each, given.particles, None, ViewTrainingSettings(), seed=seed, number=number)
        ))[0]
        for number, each in enumerate(built, 1)
    )  # fmt: skip
    posers = [ViewPoser(*each) for each in zip(built, given.references, strict=True)]
    posers[0].pose(given.particles.rows(torch.arange(16)), refines=True)  # what is compiled is read before
    return trained_s, posers


def by_encoders(given: Classes, posers: Sequence[ViewPoser], *, refines: bool) -> Record:
    """Figures of the encoders."""
    seconds, found = timed(lambda: [poser.pose(given.particles, refines=refines) for poser in posers])
    scores = torch.stack([each.log_likelihood for each in found], 1)
    return given.figures(seconds, scores, torch.stack([each.poses.rotations for each in found], 1))


def by_search(given: Classes) -> dict[str, Record]:
    """Figures of all poses and offsets, and of all poses where offsets are known."""
    sigma, count, particles = given.sigma_px, len(given.particles), given.particles
    coarse, fine = given.likelihood(COARSE_SHELL), given.likelihood(SEARCHED_SHELL)
    all_offsets = disk_offsets(
        3 * sigma, offset_step_px(SMALL_PX, COARSE_SHELL, 2.5), count, given.generator, CPU
    )  # fmt: skip
    near = given.poses.shifts_px + OFFSET_ERROR_PX * torch.randn(count, 2, generator=given.generator)
    about = hexagonal_offsets(near, offset_step_px(SMALL_PX, SEARCHED_SHELL, 3.5), 7, given.generator)
    subset = particles.within(COARSE_SHELL, SMALL_PX)
    first_s, first = timed(lambda: pose_posterior(subset, coarse, all_offsets, shift_sigma_px=sigma))
    centres = first.poses.shifts_px[:, None]
    second_s, second = timed(lambda: pose_posterior(particles, fine, centres, shift_sigma_px=sigma))
    known_s, known = timed(lambda: pose_posterior(particles, fine, about, shift_sigma_px=sigma))
    found = {}
    for name, seconds, best in (("search", first_s + second_s, second.best), ("offsets known", known_s, known.best)):
        refined_s, refined = timed(lambda best=best: given.refined(best))  # type: ignore[misc]
        found[name] = given.figures(seconds, best.log_likelihood, best.rotations)
        found[f"{name}, refined"] = given.figures(seconds + refined_s, *refined)
    return found


def run(work: Path, records: Path, seed: int) -> None:
    """All ways of one seed, unless it was done before.

    Args:
        work: folder of sets.
        records: the JSON file.
        seed: of maps and projections.
    """
    key = {"set": "base", "mode": "view classes", "seed": seed, "options": []}
    if find_record(read_records(records), key) is not None:
        return
    folder = prepare("base", work, SETS["base"])
    scene, _ = open_scene(folder, ReconstructConfig(particles=folder / "particles.star", output=work / "none"))
    given = Classes(scene.small(), seed)
    trained_s, posers = encoders(given, seed)
    ways = {
        "encoders": by_encoders(given, posers, refines=False),
        "encoders, refined": by_encoders(given, posers, refines=True),
        **by_search(given),
    }
    places = {"DIR": work, "DATA": DATA}
    append_record(records, {**key, **cost_record(Cost(), [], places), "training_s": round(trained_s, 1), "ways": ways})


def table(records: Sequence[Record]) -> str:
    """The table of all records."""
    rows = [
        [
            str(record["seed"]), name, f"{each['ms']:.2f}", f"{100 * each['right']:.1f} %",
            f"{each['median_deg']:.1f}° {100 * each['beyond_30']:.1f} %",
        ]
        for record in records
        for name, each in record["ways"].items()
    ]  # fmt: skip
    return markdown_table(["seed", "way", "ms a particle", "right class", "pose: median, beyond 30°"], rows)


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets")
    parser.add_argument("--seeds", type=seed_list, default=(0,), help="of maps and projections")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work.resolve()
    for seed in () if given.no_runs else given.seeds:
        run(work, given.records, seed)
    text = table(read_records(given.records))
    print(text)
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
