"""The amortized E-step beside others: one random start from noise to the consensus, each way on the same particles.

    OMP_NUM_THREADS=1 python tests/benchmarks/amortized_e_step.py --work DIR --ways exhaustive,d4,o2 --seeds 100,101
    OMP_NUM_THREADS=1 python tests/benchmarks/amortized_e_step.py --work DIR --cost

Particles are of set ``base`` of ``ab_initio.py``, another simulation for each seed. Ways: ``exhaustive``, all poses of
each grid, as a search does; ``random``, 12 views of each particle drawn anew in each iteration; ``pooled``, the 8 views
of the highest likelihood at the present offset and at every other in-plane angle, and 4 random ones; the name of a
group, 8 views that a network of this group proposes, and 4 random ones. CPU time of one thread: of the whole start, of
its E-steps, and of the network in these, proposals and training apart. ``found``: median pose error of the consensus
below 20 degrees and an FSC of 0.5 with the truth at shell 8 or beyond. Records are appended to
``amortized_e_step.json``.

With ``--cost``: CPU time a particle of one E-step against the true map at the grids and shells of a search, over all
views and over 12, whoever proposes them; the least of five.
"""

import argparse
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ab_initio import listed, markdown_table, seed_list
from benchmark_sets import Simulated, prepare
from jaxtyping import Float, Int
from recorded_runs import Record, append_record, find_record, read_records
from scoring import read_truth, score_poses
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.half_sets import split_half_sets
from cryoeq.domain.events import Event, result_of
from cryoeq.domain.volume import Volume
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import align_map, mirror_map
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_dataset, build_e_steps, build_stack
from cryoeq.reconstruction.expectation import EStep, EStepResult, expectation_step
from cryoeq.reconstruction.half_set_refinement import begin_refinement, refine_consensus
from cryoeq.reconstruction.initial_model import estimate_initial_model
from cryoeq.reconstruction.multi_start import at_low_resolution
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.proposed_views import ProposedViews, expectation_over_views
from cryoeq.reconstruction.reference import Reference
from cryoeq.training.proposals.amortized_e_step import AmortizedEStep

RESULTS = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
N_LIKELY, N_RANDOM = 8, 4
FOUND_DEG, FOUND_SHELL = 20.0, 8
COST_ROWS = 400
COST_GRIDS = ((7, 1, 24, 4), (10, 2, 48, 4), (15, 3, 72, 1))
"""Shell, HEALPix order of the views, in-plane angles and offsets of initial model, consensus and half sets."""


@dataclass
class Timed:
    """An E-step whose CPU time is counted.

    Args:
        inner: the E-step.
        seconds: so far.
    """

    inner: EStep
    seconds: float = field(default=0.0)

    def __call__(self, *arguments: Any, **options: Any) -> Generator[Event, None, EStepResult]:
        """As ``EStep``."""
        first = time.process_time()
        result = yield from self.inner(*arguments, **options)
        self.seconds += time.process_time() - first
        return result


@dataclass(frozen=True)
class Untrained:
    """An E-step over views that no network proposes.

    Args:
        logits: of the views of each particle.
        n_likely: views with the highest logits.
        n_random: views drawn among the others.
        generator: of these.
    """

    logits: Callable[[ParticleTransforms, PoseLikelihood, Tensor], Tensor]
    n_likely: int
    n_random: int
    generator: torch.Generator

    def __call__(
        self,
        particles: ParticleTransforms,
        likelihood: PoseLikelihood,
        offsets_px: Float[Tensor, "rows offsets 2"],
        *,
        shift_sigma_px: float,
        rows: Int[Tensor, " rows"] | None = None,
        temperature: float | Float[Tensor, ""] = 1.0,
        class_shares: Float[Tensor, " classes"] | None = None,
        null_share: float = 0.0,
        progress: Callable[[int], Event] | None = None,
    ) -> Generator[Event, None, EStepResult]:
        """As ``EStep``."""
        del class_shares, null_share
        rows = torch.arange(len(particles)) if rows is None else rows
        logits = self.logits(particles.rows(rows), likelihood, offsets_px[:, 0])
        proposed = ProposedViews.draw(logits, self.n_likely, self.n_random, self.generator)
        result = yield from expectation_over_views(
            particles, likelihood, offsets_px, proposed,
            shift_sigma_px=shift_sigma_px, rows=rows, temperature=temperature, progress=progress,
        )  # fmt: skip
        return result.expectation


def no_logits(particles: ParticleTransforms, likelihood: PoseLikelihood, offsets_px: Tensor) -> Tensor:
    """All views alike."""
    del offsets_px
    return torch.zeros(len(particles), len(likelihood.grid.views))


def pooled_logits(particles: ParticleTransforms, likelihood: PoseLikelihood, offsets_px: Tensor) -> Tensor:
    """Likelihood of each view at one offset, summed over every other in-plane angle and both mirrors."""
    grid = likelihood.grid
    coarse = replace(likelihood, grid=PoseGrid(grid.views, grid.inplane_rad[::2]))
    parts = []
    for rows in torch.arange(len(particles)).split(64):
        terms = particles.rows(rows).at_offsets(offsets_px[rows, None], likelihood.harmonics)
        poses = coarse.log_likelihoods(terms)
        parts.append(poses.view(len(poses), 2, len(grid.views), -1).logsumexp((0, 1)).T)
    return torch.cat(parts)


def build_way(way: str, config: ReconstructConfig, settings: Any) -> EStep:
    """The E-step of a way."""
    generator = torch.Generator().manual_seed(config.seed)
    match way:
        case "exhaustive":
            return expectation_step
        case "random":
            return Untrained(no_logits, 0, N_LIKELY + N_RANDOM, generator)
        case "pooled":
            return Untrained(pooled_logits, N_LIKELY, N_RANDOM, generator)
        case group:
            amortized = config.search.amortized.model_copy(
                update={"group": group, "likely_views": N_LIKELY, "random_views": N_RANDOM}
            )
            search = config.search.model_copy(update={"e_step": "amortized", "amortized": amortized})
            return build_e_steps(config.model_copy(update={"search": search}), settings, CPU)(0)


def time_network(e_step: EStep) -> dict[str, float]:
    """Count the CPU time of the network's parts, where there is one."""
    spent: dict[str, float] = {}

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            first = time.process_time()
            result = method(*arguments)
            spent[name] = spent.get(name, 0.0) + time.process_time() - first
            return result

        return call

    if isinstance(e_step, AmortizedEStep):
        for name in ("images", "logits", "learn"):
            setattr(e_step.proposer, name, counted(name, getattr(e_step.proposer, name)))
    return spent


def particles_of(seed: int, work: Path) -> Path:
    """The folder of a simulation of set ``base`` that no run of ``ab_initio.py`` has seen."""
    return prepare(f"base_{1000 + seed}", work.resolve(), Simulated(seed=1000 + seed))


def run_start(folder: Path, way: str, seed: int) -> Record:
    """One random start, scored.

    Args:
        folder: of the particles and the truth.
        way: name of the E-step.
        seed: random seed.
    """
    config = ReconstructConfig(particles=folder / "particles.star", output=folder / "none", seed=seed)
    dataset = build_dataset(config, build_stack(config, with_poses=False), None, reads_once=True)
    particles = result_of(load_transforms(dataset, CPU))
    small, settings = at_low_resolution(particles, build_ab_initio_settings(config, dataset))
    half_set = split_half_sets(len(dataset), torch.Generator().manual_seed(seed))
    inner = build_way(way, config, settings)
    parts, e_step, first = time_network(inner), Timed(inner), time.process_time()
    model = result_of(estimate_initial_model(small, settings.initial_model, seed=seed, start=0, e_step=e_step))
    of_model, of_model_s = dict(parts), (time.process_time() - first, e_step.seconds)
    state = begin_refinement(model, small, half_set, settings.refinement, settings.initial_model.last_shell)
    state = result_of(refine_consensus(state, small, settings.refinement, seed=seed, e_step=e_step))
    whole_s = time.process_time() - first
    error = score_poses(state.poses.to_angstrom(dataset.pixel_size_angstrom), read_truth(folder, "C1"))["rotation_deg"]
    shell = agreed_shell(state.reference.mean, read_map(folder / "truth_volume.mrc"))
    return {
        "set": "base", "mode": way, "seed": seed, "options": [],
        "is_found": error["median"] < FOUND_DEG and shell >= FOUND_SHELL,
        "rotation_deg": error, "fsc_05_shell": shell, "consensus_iterations": state.iteration,
        "initial_model_s": rounded({"whole": of_model_s[0], "e_step": of_model_s[1], **of_model}),
        "consensus_s": rounded({
            "whole": whole_s - of_model_s[0], "e_step": e_step.seconds - of_model_s[1],
            **{name: seconds - of_model[name] for name, seconds in parts.items()},
        }),
    }  # fmt: skip


def cost_table(folder: Path) -> str:
    """CPU time of one E-step at each grid of a search.

    Args:
        folder: of the particles and the truth.
    """
    config = ReconstructConfig(particles=folder / "particles.star", output=folder / "none")
    dataset = build_dataset(config, build_stack(config, with_poses=False), None, reads_once=True)
    particles, generator = result_of(load_transforms(dataset, CPU)), torch.Generator().manual_seed(0)
    volume, rows, n = read_map(folder / "truth_volume.mrc").values, torch.arange(COST_ROWS), dataset.box_size_px
    lines = []
    for shell, order, n_inplane, n_offsets in COST_GRIDS:
        subset = particles.within(shell, n)
        harmonics = disk_harmonics(n, shell, support_radius(0.42, n), CPU)
        reference = Reference.prepare(volume, subset)
        likelihood = PoseLikelihood.build(reference, PoseGrid.build(order, n_inplane, torch.eye(3)), harmonics)
        n_views = len(likelihood.grid.views)
        offsets = torch.randn(COST_ROWS, n_offsets, 2, generator=generator)
        proposed = ProposedViews.draw(torch.zeros(COST_ROWS, n_views), N_LIKELY, N_RANDOM, generator)
        options: dict[str, Any] = {"shift_sigma_px": 1.6, "rows": rows}
        of_all = least(partial(expectation_step, subset, likelihood, offsets, **options))
        of_few = least(partial(expectation_over_views, subset, likelihood, offsets, proposed, **options))
        grid = [f"{shell}", f"{n_views}", f"{n_inplane}", f"{n_offsets}"]
        lines.append([*grid, *(f"{1000 * each / COST_ROWS:.3f}" for each in (of_all, of_few))])
    head = ["shell", "views", "in-plane angles", "offsets", "all views, ms", f"{N_LIKELY + N_RANDOM} views, ms"]
    return markdown_table(head, lines)


def least(build: Callable[[], Generator[Event, None, Any]]) -> float:
    """The least CPU time of five, after a first one."""
    seconds = []
    for _ in range(6):
        first = time.process_time()
        result_of(build())
        seconds.append(time.process_time() - first)
    return min(seconds[1:])


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """To 10 ms."""
    return {name: round(value, 2) for name, value in seconds.items()}


def agreed_shell(values: Float[Tensor, "n n n"], truth: Volume) -> int:
    """The last shell before the FSC with the truth drops below 0.5, of either hand."""
    shells = []
    for hand in (values, mirror_map(values)):
        moving = replace(truth, values=hand)
        fsc = fourier_shell_correlation(align_map(moving, truth, with_hand=False).apply(moving).values, truth.values)
        below = (fsc[1:] < 0.5).nonzero()
        shells.append(int(below[0]) if len(below) else len(fsc) - 1)
    return max(shells)


def table(records: Sequence[Record]) -> str:
    """A row for each way and seed."""
    head = [
        "E-step", "seed", "found", "median", "beyond 30°", "FSC 0.5 shell", "initial model: E-steps, whole, s",
        "consensus: E-steps, whole, s (iterations)", "of the E-steps: proposals, training, s",
    ]  # fmt: skip
    rows = []
    for record in records:
        model, consensus, error = record["initial_model_s"], record["consensus_s"], record["rotation_deg"]
        sums = {name: model.get(name, 0) + consensus.get(name, 0) for name in ("images", "logits", "learn")}
        rows.append([
            record["mode"], f"{record['seed']}", "yes" if record["is_found"] else "no", f"{error['median']:.1f}°",
            f"{100 * (1 - error['share_below_30']):.1f} %", f"{record['fsc_05_shell']}",
            f"{model['e_step']:.1f}, {model['whole']:.1f}",
            f"{consensus['e_step']:.1f}, {consensus['whole']:.1f} ({record['consensus_iterations']})",
            f"{sums['images'] + sums['logits']:.1f}, {sums['learn']:.1f}" if sums["learn"] else "–",
        ])  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets")
    parser.add_argument("--ways", type=listed, default=("exhaustive", "random", "pooled", "c1", "d4", "o2"))
    parser.add_argument("--seeds", type=seed_list, default=(100,), help="such as 100-102")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    parser.add_argument("--cost", action="store_true", help="only the cost of E-steps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.cost:
        print(cost_table(particles_of(given.seeds[0], given.work)))
        return
    for seed in () if given.no_runs else given.seeds:
        folder = particles_of(seed, given.work)
        for way in given.ways:
            key = {"set": "base", "mode": way, "seed": seed, "options": []}
            if find_record(read_records(RESULTS), key) is None:
                append_record(RESULTS, run_start(folder, way, seed))
    records = read_records(RESULTS)
    print(table([each for each in records if each["mode"] in given.ways and each["seed"] in given.seeds]))


if __name__ == "__main__":
    main()
