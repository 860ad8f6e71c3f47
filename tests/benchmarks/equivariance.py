"""What equivariance buys, where it matters: recall of true views by networks of several groups, many seeds each.

    python tests/benchmarks/equivariance.py                             1WCM, 32 px: every arm, seeds 0-4
    python tests/benchmarks/equivariance.py --scenes 1wcm-64,6msm-32 --counts 10000 --seeds 0
    python tests/benchmarks/equivariance.py --arms methods --counts 10000 --seeds 0,1
    python tests/benchmarks/equivariance.py --no-runs --table FILE --figure data_samples/equivariance.png

A view network (``cryoeq.models.view_network``) learns the views of labelled images (``view_scene.py``: centred, SNR
0.1, CTFs) and is tested on a thousand others. Networks are dense, their filters random at first. Each arm takes the
same steps of the same images at the same rate, but for those "in d4's time", which take as many as fit into the CPU
time that d4 took for the same seed and number of images. Rate, steps and widths were settled on seed 100.

Recall: share of the held-out particles whose true view is within 7.5 degrees of one of the eight most probable of 384
views up to sign. Pose error: of the most likely of these eight, with its exact angle and mirror, by the products of the
map; also of the most probable view alone. Runs are appended to ``equivariance.json`` beside this file, seed after seed;
one that is recorded there is not done again.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ab_initio import listed, markdown_table, seed_list
from matplotlib.axes import Axes
from recorded_runs import Cost, Record, append_record, cost_record, find_record, read_records
from scipy import stats
from torch import nn
from view_scene import KEPT, Images, Scene, batches, open_scene, turned

from cryoeq.equivariance import equivariance_penalty
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.text import write_text
from cryoeq.models.export.quantized_network import quantize_network
from cryoeq.models.pose_encoder import EncoderDesign, TrunkKind
from cryoeq.models.view_network import ViewNetwork
from cryoeq.outputs.figure import COLOURS, GREY, png_figure
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

RESULTS = Path(__file__).with_suffix(".json")
STEPS, BATCH, RATE, WARMUP, LOOKS = 400, 256, 1e-2, 0.1, 4
TESTED, HELD_OUT = 1000, 500_000  # held-out images, and what is added to the seed for them
LIKELIHOOD = "likelihood"
DEFAULT = EncoderDesign()


@dataclass(frozen=True)
class Arm:
    """A network, and how it is trained.

    Args:
        group: of the network.
        channels: widths; None for the trunk's default.
        trunk: conv, dense or mobilenet.
        design: kernels, samplers and degree of equivariance.
        is_augmented: images turned by any angle and mirrored, anew in each step.
        untimed: the arm that this one is but for its steps, which fit into d4's time; None for the steps of all.
        from_slices: first filters matched to projections of the map.
        in_integers: tested in 8 bits.
        batch: images of a step.
        steps: as many times the steps of the others.
    """

    group: str
    channels: tuple[int, ...] | None = (512,)
    trunk: TrunkKind = "dense"
    design: EncoderDesign = DEFAULT
    is_augmented: bool = False
    untimed: str | None = None
    from_slices: bool = False
    in_integers: bool = False
    batch: int = BATCH
    steps: int = 1


ARMS: Mapping[str, Arm] = {
    "c1": Arm("c1"),
    "c1 + augmentation": Arm("c1", is_augmented=True),
    "d4": Arm("d4"),
    "c1 in d4's time": Arm("c1", untimed="c1"),
    "o2": Arm("o2", (256,)),
}
THIN, FEW = (8, 8, 16, 32, 256), 64  # widths of conv trunks and images of a step, which cost more there
METHODS: Mapping[str, Arm] = {
    "c1 + augmentation in d4's time": Arm("c1", is_augmented=True, untimed="c1 + augmentation"),
    "c1 from slices": Arm("c1", from_slices=True),
    "d4 from slices": Arm("d4", from_slices=True),
    "d4 in 8 bits": Arm("d4", in_integers=True),
    "d4 + augmentation": Arm("d4", is_augmented=True),
    "o2 adaptive samples": Arm("o2", (256,), design=EncoderDesign(sampler="adaptive")),
    "d4 implicit kernels": Arm("d4", design=EncoderDesign(kernel="implicit")),
    "c1 + augmentation in four times the steps": Arm("c1", is_augmented=True, steps=4),
    "d4 conv": Arm("d4", THIN, "conv", batch=FEW),
    "d4 mobilenet": Arm("d4", THIN, "mobilenet", batch=FEW),
    "d4 conv learnt degree": Arm("d4", THIN, "conv", EncoderDesign(degree="learnt"), batch=FEW),
    "d8": Arm("d8", (256,)),
    "d4 conv implicit kernels": Arm("d4", THIN, "conv", EncoderDesign(kernel="implicit"), batch=FEW),
    "d4 conv CTF kernels": Arm("d4", THIN, "conv", EncoderDesign(kernel="implicit_ctf"), batch=FEW),
}
EVERY = {**ARMS, **METHODS}


@dataclass(frozen=True)
class Task:
    """What a network learns from and is tested on.

    Args:
        scene: map and views.
        learnt: labelled images.
        tested: others.
        particles: transforms of these.
    """

    scene: Scene
    learnt: Images
    tested: Images
    particles: ParticleTransforms

    @classmethod
    def draw(cls, scene: Scene, count: int, seed: int) -> "Task":
        """Images of a seed; a smaller number is the first part of a larger one."""
        learnt, _ = scene.draw(count, seed)
        return cls(scene, learnt, *scene.draw(TESTED, seed + HELD_OUT))

    def of(self, count: int) -> "Task":
        """The first of the labelled images alone."""
        return replace(self, learnt=self.learnt.rows(torch.arange(count)))

    @torch.no_grad()
    def score(self, network: nn.Module) -> dict[str, float]:
        """Scores on the images not learnt from."""
        network.eval()
        logits = network(self.tested.images, self.tested.condition)
        network.train()
        return self.scene.scores(logits, self.particles, self.tested.rotations)


def build(arm: Arm, scene: Scene, seed: int) -> ViewNetwork:
    """The untrained network of an arm."""
    torch.manual_seed(seed)
    box = len(scene.volume)
    network = ViewNetwork(arm.group, box, scene.directions, arm.channels, trunk=arm.trunk, design=arm.design)
    if arm.from_slices:
        rotations = random_rotations(network.n_template_filters, torch.Generator().manual_seed(seed))
        slices = extract_slices(prepare_slices(scene.volume), rotations, scene.plane)
        network.init_filters_from(scene.seen(slices))
    return network


def train(network: ViewNetwork, task: Task, arm: Arm, steps: int, seed: int) -> tuple[float, list[float]]:
    """CPU seconds of a training, and recall at each quarter of it."""
    generator, looks, spent = torch.Generator().manual_seed(seed), [], 0.0
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARMUP)
    began = time.process_time()
    for step, rows in zip(range(1, steps + 1), batches(len(task.learnt), arm.batch, generator), strict=False):
        shown = task.learnt.rows(rows)
        images = shown.images
        if arm.is_augmented:
            angles = 2 * math.pi * torch.rand(len(rows), generator=generator)
            images = turned(images, angles, torch.rand(len(rows), generator=generator) < 0.5)
        logits = network(images, shown.condition)
        loss = -(task.scene.targets(shown.rotations) * logits.log_softmax(1)).sum(1).mean()
        loss = loss + equivariance_penalty(network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % (steps // LOOKS) == 0:
            spent += time.process_time() - began
            looks.append(task.score(network)[f"recall_{KEPT}"])
            began = time.process_time()
    return spent + time.process_time() - began, looks[:LOOKS]


def key_of(name: str, scene: str, count: int, seed: int) -> Record:
    """What a run is known by."""
    return {"set": scene, "mode": name, "seed": seed, "options": [f"images={count}"]}


def steps_of(name: str, scene: str, count: int, seed: int, records: Sequence[Record]) -> int:
    """Steps of an arm: as all others take, or as many as took the CPU time of d4.

    Raises:
        ValueError: the runs that this one is timed by are not recorded.
    """
    untimed = EVERY[name].untimed
    if untimed is None:
        return STEPS * EVERY[name].steps
    own, of_d4 = (find_record(records, key_of(other, scene, count, seed)) for other in (untimed, "d4"))
    if own is None or of_d4 is None:
        raise ValueError(f"{name} is timed by {untimed} and d4, which are not recorded for {count} images, seed {seed}")
    return int(max(2 / WARMUP, round(own["steps"] * of_d4["cpu_s"] / own["cpu_s"])))


def run(name: str, scene: str, count: int, seed: int, task: Task, path: Path) -> Record:
    """A training and its scores, recorded.

    Args:
        name: of the arm.
        scene: its name.
        count: number of labelled images.
        seed: of the images, the network and the training.
        task: of the seed, with as many images or more.
        path: of the records.
    """
    arm, task, steps = EVERY[name], task.of(count), steps_of(name, scene, count, seed, read_records(path))
    began = time.perf_counter()
    network = build(arm, task.scene, seed)
    cpu_s, looks = train(network, task, arm, steps, seed)
    network.eval()
    final = quantize_network(network, task.learnt.images[:512]) if arm.in_integers else network
    cost = Cost(round(time.perf_counter() - began, 2), round(cpu_s, 2))
    words = ["python", "tests/benchmarks/equivariance.py", "--scenes", scene, "--arms", name]
    words += ["--counts", str(count), "--seeds", str(seed)]
    record = key_of(name, scene, count, seed) | cost_record(cost, [words], {})
    record |= {
        "parameters": sum(parameter.numel() for parameter in network.parameters()), "steps": steps,
        "recall_along": looks, "scores": task.score(final),
    }  # fmt: skip
    append_record(path, record)
    return record


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the 95 % interval of Student's t; 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)


def shown(values: Sequence[float], digits: int) -> str:
    """An interval as text."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


COLUMNS = {"recall@8": ("recall_8", 3), "best": ("best_median_deg", 1), "first": ("first_median_deg", 1)}


def table(records: Sequence[Record], scenes: Sequence[str], names: Sequence[str]) -> str:
    """A row for each scene, arm and number of images: means with their intervals.

    Args:
        records: all of them.
        scenes: to show.
        names: of the arms.
    """
    head = ["scene", "network", "images", *COLUMNS, "parameters", "steps", "CPU s", "seeds"]
    rows = []
    for scene in scenes:
        for name in names:
            for count in sorted({images_of(record) for record in records}):
                own = chosen(records, scene, name, count)
                if own:
                    cells = [shown([r["scores"][key] for r in own], digits) for key, digits in COLUMNS.values()]
                    cost = [f"{own[0]['parameters']:,}", f"{statistics.mean(r['steps'] for r in own):.0f}"]
                    seconds = f"{statistics.mean(r['cpu_s'] for r in own):.0f}"
                    rows.append([scene, name, f"{count:,}", *cells, *cost, seconds, str(len(own))])
    return markdown_table(head, rows)


def images_of(record: Record) -> int:
    """Number of labelled images of a run."""
    return int(record["options"][0].partition("=")[2])


def chosen(records: Sequence[Record], scene: str, name: str, count: int) -> list[Record]:
    """Runs of one arm on one scene with a number of images."""
    return [r for r in records if (r["set"], r["mode"], images_of(r)) == (scene, name, count)]


def draw_figure(path: Path, records: Sequence[Record], scene: str) -> None:
    """Recall and pose error by the number of labelled images: seeds, their means and, of three or more, intervals."""
    with png_figure(path, size_inches=(10.0, 5.4)) as figure:
        panels = figure.subplots(1, 2)
        for axes, key in zip(panels, ("recall_8", "best_median_deg"), strict=True):
            for place, name in enumerate(ARMS):
                _draw_arm(axes, records, (scene, name, key), place)
            for level in _levels([r for r in records if (r["set"], r["mode"]) == (scene, LIKELIHOOD)], key)[:1]:
                axes.axhline(level, color=GREY, linestyle=":", label="likelihood of every view", zorder=0)
            axes.set_xscale("log")
            axes.set_xlabel("Labelled images")
        panels[0].set_ylabel("True view within 7.5° of one of 8")
        panels[0].set_ylim(0, 1.03)
        panels[1].set_yscale("log")
        panels[1].set_ylim(3, 90)
        panels[1].set_yticks([3, 5, 10, 20, 40, 80], ["3", "5", "10", "20", "40", "80"])
        panels[1].minorticks_off()
        panels[1].set_ylabel("Median pose error (degrees)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _draw_arm(axes: Axes, records: Sequence[Record], what: tuple[str, str, str], place: int) -> None:
    """Curve of an arm, beside the others."""
    scene, name, key = what
    groups = [(n, _levels(chosen(records, scene, name, n), key)) for n in sorted({images_of(r) for r in records})]
    groups = [(n * 1.06 ** (place - len(ARMS) / 2), values) for n, values in groups if values]
    for at, values in groups:
        axes.plot([at] * len(values), values, ".", color=COLOURS[place], markersize=5, alpha=0.6)
        if len(values) > 2:
            axes.errorbar(at, *interval(values), color=COLOURS[place], capsize=4, zorder=3)
    line, marker = ("--" if EVERY[name].untimed else "-"), "osDv^"[place]
    means = [statistics.mean(values) for _, values in groups]
    axes.plot([at for at, _ in groups], means, line, marker=marker, color=COLOURS[place], label=name)


def _levels(records: Sequence[Record], key: str) -> list[float]:
    return [record["scores"][key] for record in records]


def run_likelihood(scene: str, seed: int, task: Task, path: Path) -> Record:
    """The limit: the log-likelihood of each view on the images that networks of this seed are tested on.

    Args:
        scene: its name.
        seed: of the images.
        task: of the seed.
        path: of the records.
    """
    began, cpu = time.perf_counter(), time.process_time()
    scores = task.scene.scores(task.scene.likelihoods(task.particles), task.particles, task.tested.rotations)
    cost = Cost(round(time.perf_counter() - began, 2), round(time.process_time() - cpu, 2))
    record = key_of(LIKELIHOOD, scene, 0, seed) | cost_record(cost, [], {}) | {"scores": scores}
    append_record(path, record)
    return record


def run_seed(scene: str, names: Sequence[str], counts: Sequence[int], seed: int, path: Path) -> None:
    """All runs of a seed that are not recorded."""
    cases = [(name, count) for count in counts for name in names]
    records = read_records(path)
    todo = [case for case in cases if find_record(records, key_of(case[0], scene, case[1], seed)) is None]
    if not todo:
        return
    task = Task.draw(open_scene(scene), max(count for _, count in todo), seed)
    if find_record(records, key_of(LIKELIHOOD, scene, 0, seed)) is None:
        print(run_likelihood(scene, seed, task, path)["scores"], flush=True)
    for name, count in todo:
        record = run(name, scene, count, seed, task, path)
        print(scene, name, count, seed, record["cpu_s"], record["recall_along"], record["scores"], flush=True)


def main() -> None:
    """Run, record, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=listed, default=("1wcm-32",), help="molecule and box")
    parser.add_argument("--counts", type=listed, default=("1000", "10000", "100000"), help="labelled images")
    parser.add_argument("--arms", type=listed, default=tuple(ARMS), help=f"methods, or of {'; '.join(EVERY)}")
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(5)), help="such as 0-4")
    parser.add_argument("--records", type=Path, default=RESULTS, metavar="JSON")
    parser.add_argument("--no-runs", action="store_true", help="only what is recorded")
    parser.add_argument("--table", type=Path, metavar="MD", help="write the table")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the first scene")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = tuple(METHODS) if arguments.arms == ("methods",) else arguments.arms
    counts = [int(count) for count in arguments.counts]
    for seed in () if arguments.no_runs else arguments.seeds:
        for scene in arguments.scenes:
            run_seed(scene, names, counts, seed, arguments.records)
    records = read_records(arguments.records)
    text = table(records, arguments.scenes, names)
    print(text)
    if arguments.table:
        write_text(arguments.table, text)
    if arguments.figure:
        draw_figure(arguments.figure, records, arguments.scenes[0])


if __name__ == "__main__":
    main()
