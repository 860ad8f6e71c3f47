"""Do bound and gap fall together as the group grows? Small steerable networks on rotated and mirrored digits.

The experiment of Behboodi, Cesa and Cohen 2022 (arXiv 2210.13150), with our reconstruction of their bound: for each
group, size of the training set and seed a network of the same width is trained on scikit-learn's digits, each rotated
by a random angle and mirrored or not. Beside its gap between training and held-out digits stand the norm-based bound,
its complexity, and the held-out bound. Rank correlations are taken over all networks, and among those of the same
training set size, where n alone cannot cause them; that with the held-out bound is near 1 by construction, where no
training image is classified wrongly. At one margin for all networks the bound ranks as its complexity does. One core,
3 minutes:

    python tests/benchmarks/bound.py
    python tests/benchmarks/bound.py --no-runs --picture FILE       gap over complexity of the recorded networks
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cryoeq.equivariance import SteerableConv, SteerablePerceptron, plane_group
from cryoeq.generalization.folded_layers import FoldedNet, LevelNorm, fold_perceptron
from cryoeq.generalization.pac_bayes import HeldOutBound, generalization_bound, norm_terms
from cryoeq.outputs.figure import COLOURS, png_figure

GROUPS = ("c1", "c2", "d1", "c4", "d2", "d4")
TRAINING_SIZES = (100, 200, 400, 800)
SEEDS = (0, 1, 2, 3, 4)
SIDE_PX, ENLARGED = 13, 1.1
WIDTH, DEPTH, STEPS, RATE = 96, 2, 150, 1e-2
PREDICTORS = ("bound", "complexity", "held_out_bound")


@dataclass(frozen=True)
class Net:
    """One trained net."""

    group: str
    lessons: int  # key of bound.json: size of the training set
    seed: int
    learnt_error: float
    other_error: float
    gap: float
    bound: float
    complexity: float
    margin: float
    margin_error: float
    held_out_bound: float
    cpu_seconds: float


def rotated_digits(seed: int) -> tuple[Tensor, Tensor]:
    """All digits in random order, each rotated and half of them mirrored, with mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.images))
    rotated = []
    for image in digits.images[order]:
        angle, mirror = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([1.0, mirror]) / ENLARGED
        offset = np.full(2, 3.5) - matrix @ np.full(2, SIDE_PX // 2)
        rotated.append(affine_transform(image, matrix, offset, (SIDE_PX, SIDE_PX), order=1))
    images = torch.from_numpy(np.stack(rotated)).float()
    return (images - images.mean()) / images.std(), torch.from_numpy(digits.target[order])


class Classifier(nn.Module):
    """A steerable perceptron with invariant logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.group = plane_group(name)
        fields = WIDTH // self.group.dim("hidden")
        self.trunk = SteerablePerceptron(self.group, 1, SIDE_PX, fields, DEPTH)
        self.head = SteerableConv(self.group, (fields, "hidden"), (10, "scalar"), bias=True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return self.head(self.trunk(images[:, None])).flatten(1)


def folded_outputs(net: FoldedNet, inputs: Tensor) -> Tensor:
    """Outputs of a folded network."""
    for layer in net.layers[:-1]:
        inputs = (inputs @ layer.matrix.T).relu()
    return inputs @ net.layers[-1].matrix.T


def class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Smallest Euclidean change of the logits that makes another class win; negative where another class wins.

    Args:
        logits: logit of each class, a row for each example.
        labels: index of the true class of each example.
    """
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return (true[:, 0] - others) / math.sqrt(2)


def train(name: str, images: Tensor, labels: Tensor, seed: int) -> Classifier:
    """A net after the last step, in evaluation mode."""
    torch.manual_seed(seed)
    net = Classifier(name)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def measure(name: str, size: int, seed: int, images: Tensor, labels: Tensor) -> Net:
    """Train one net and compare its gap with its bound."""
    start = time.process_time()
    net = train(name, images[:size], labels[:size], seed)
    folded = fold_perceptron(net.trunk, [net.head], net.group, LevelNorm(torch.zeros(1), torch.ones(1)))
    terms = norm_terms({layer.name: layer.blocks(net.group) for layer in folded.layers})
    with torch.no_grad():
        inputs = folded.inputs(images[:, None])
        logits = net(images).double()
        assert torch.allclose(folded_outputs(folded, inputs), logits, atol=1e-3 * float(logits.abs().max()))
    margins = class_margins(logits, labels) / (inputs.norm(dim=1) * terms.spectral_norm)
    held_out_margins = margins[max(TRAINING_SIZES) :]  # the same for all training sets
    held_out = HeldOutBound(len(held_out_margins), float((held_out_margins <= 0).double().mean()), 0.05)
    bound = generalization_bound(terms, margins[:size], held_out)
    return Net(
        name,
        size,
        seed,
        bound.error_rate,
        held_out.error_rate,
        bound.measured_gap,
        bound.value,
        terms.complexity,
        bound.margin,
        bound.margin_error_rate,
        held_out.value,
        time.process_time() - start,
    )


def correlations(nets: list[Net]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of the gap with each predictor: over all networks, and for each training set size."""
    sets = {"all": nets} | {f"{count} lessons": [n for n in nets if n.lessons == count] for count in TRAINING_SIZES}
    sets |= {f"{count} lessons, means of groups": _group_means(nets, count) for count in TRAINING_SIZES}
    return {
        title: {
            key: round(float(spearmanr([getattr(n, key) for n in some], [n.gap for n in some])[0]), 3)
            for key in PREDICTORS
        }
        for title, some in sets.items()
        if len({n.group for n in some}) > 2
    }


def _group_means(nets: list[Net], count: int) -> list[Net]:
    return [_mean(some) for name in GROUPS if (some := [n for n in nets if (n.group, n.lessons) == (name, count)])]


def _mean(nets: list[Net]) -> Net:
    first = asdict(nets[0])
    means = {k: statistics.fmean(getattr(n, k) for n in nets) for k, v in first.items() if isinstance(v, float)}
    return Net(**(first | means))


def table(nets: list[Net]) -> Iterator[str]:
    """Means over the seeds."""
    yield "| training images | group | training error | held-out error | gap | bound | complexity |"
    yield "|---|---|---|---|---|---|---|"
    for count in TRAINING_SIZES:
        for n in _group_means(nets, count):
            yield (
                f"| {count} | {n.group} | {n.learnt_error:.1%} | {n.other_error:.1%} | {n.gap:.1%} "
                f"| {n.bound:.3g} | {n.complexity:.2e} |"
            )


def draw(path: Path, nets: list[Net]) -> None:
    """Gap over the bound's complexity and over the bound itself, a point for each net, as PNG."""
    with png_figure(path, size_inches=(9.0, 3.6)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, title in ((left, "complexity", "complexity of the bound"), (right, "bound", "bound")):
            for name, colour in zip(GROUPS, COLOURS, strict=False):
                some = [net for net in nets if net.group == name]
                sizes = [6 * (1 + TRAINING_SIZES.index(net.lessons)) for net in some]
                axes.scatter(
                    [getattr(net, key) for net in some], [100 * net.gap for net in some], sizes, colour, label=name
                )
            axes.set_xscale("log")
            axes.set_xlabel(title)
        left.set_ylabel("generalization gap / %")
        right.legend(title="group", fontsize=7)
        figure.suptitle(
            "Digits rotated and mirrored: size of a point grows with the training set (100 to 800)", fontsize=9
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--records", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--no-runs", action="store_true", help="only what is recorded")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recorded = json.loads(args.records.read_text())["nets"] if args.no_runs else []
    nets = [Net(**net) for net in recorded]
    for seed in () if args.no_runs else args.seeds:
        images, labels = rotated_digits(seed)
        nets += [measure(name, count, seed, images, labels) for count in TRAINING_SIZES for name in GROUPS]
        found = {"correlation_with_gap": correlations(nets), "nets": [asdict(net) for net in nets]}
        args.records.write_text(json.dumps(found, indent=1) + "\n")
    if args.picture:
        draw(args.picture, nets)
    print(*table(nets), sep="\n")
    print(json.dumps(correlations(nets), indent=1))
    print(f"{sum(net.cpu_seconds for net in nets):.0f} s of CPU time; {args.records}")


if __name__ == "__main__":
    main()
