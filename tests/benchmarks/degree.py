"""Whether the learnt degree of equivariance finds the symmetry that a task has, layer by layer.

    python tests/benchmarks/degree.py                       every task and seed; what is recorded is not done again
    python tests/benchmarks/degree.py --report FILE.png     the table of what is recorded, and its picture

Two digits of scikit-learn, 11 px each, stand side by side on 25 px, each turned by an element of its own: quarter turns
(c4) or any angle (so2). "digits": both are to be told, without their order; a half-turn of the whole changes nothing.
"ordered digits": the left one is to be told, then the right one; a half-turn of the whole swaps them, so the
last layer, whose filter is as large as the map, must tell directions apart, while the first sees one stroke at a time.
"how far turned": one digit is to be told, and the quadrant of its turn: no layer can afford to be blind to turns in the
end. "one digit": the one digit alone is to be told. The net has three steerable convolutions with a degree each
(Veefkind and Cesa 2024, arXiv 2406.03946), the loss their divergence from the layer before and their misalignment.
"""

import argparse
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cryoeq.equivariance import FieldActivation, FullMapConv, LearntDegree, RelaxedBasis, SteerableConv, plane_group
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.figure import COLOURS, png_figure

RESULTS = Path(__file__).with_suffix(".json")
TASKS = ("one digit", "how far turned", "digits", "ordered digits")
GROUPS = ("c4", "so2")
SEEDS = range(2)
SIDE, DIGIT, DIGITS = 25, 11, 10
TRAINED = 1300
STEPS, BATCH, RATE = 400, 64, 5e-3
DIVERGENCE_WEIGHT, MISALIGNMENT_WEIGHT = 0.1, 0.1
LAYERS = ("first", "second", "last")

Record = dict[str, Any]


def turned_digits(images: Tensor, turns: Tensor) -> Tensor:
    """Each image turned about its centre."""
    rows = torch.stack([turns.cos(), -turns.sin(), 0 * turns, turns.sin(), turns.cos(), 0 * turns], -1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bicubic", align_corners=True)


def draw(task: str, group: str, rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and their labels."""
    digits = load_digits()
    picked = rows[torch.randint(len(rows), (2, count), generator=generator)]
    turns = torch.rand(2, count, generator=generator) * 4
    turns = math.pi / 2 * (turns.floor() if group == "c4" else turns)
    images = torch.tensor(digits.images, dtype=torch.float32)[picked.flatten(), None] / 16
    large = turned_digits(F.interpolate(images, size=DIGIT, mode="bicubic", align_corners=True), turns.flatten())
    left, right = large.view(2, count, 1, DIGIT, DIGIT)
    labels = torch.tensor(digits.target)[picked]
    if task in ("digits", "ordered digits"):
        gap = torch.zeros(count, 1, DIGIT, SIDE - 2 * DIGIT)
        wide = torch.cat([left, gap, right], 3)
        both = labels if task == "ordered digits" else labels.sort(0).values
        return F.pad(wide, (0, 0, (SIDE - DIGIT) // 2, (SIDE - DIGIT) // 2)), both.T
    margin = (SIDE - DIGIT) // 2
    quadrant = (turns[0] / (math.pi / 2)).floor().long() if task == "how far turned" else torch.zeros(count).long()
    return F.pad(left, (margin,) * 4), torch.stack([labels[0], quadrant], 1)


class Classifier(nn.Module):
    """Three convolutions that are as equivariant as they learn to be, and logits of two labels."""

    def __init__(self, name: str, fields: int = 6) -> None:
        super().__init__()
        group = plane_group(name)
        self.degrees = nn.ModuleList([LearntDegree(group, 2) for _ in LAYERS])
        kinds = (("scalar", 1, 5, fields), ("hidden", fields, 5, 2 * fields), ("hidden", 2 * fields, 7, 4 * fields))
        self.convs, self.activations = nn.ModuleList(), nn.ModuleList()
        for degree, (kind, before, size, count) in zip(self.degrees, kinds, strict=True):
            whole = size == 7
            basis = RelaxedBasis(group, kind, "hidden", size, degree)
            layer = FullMapConv if whole else SteerableConv
            self.convs.append(
                layer(group, (before, kind), (count, "hidden"), size, stride=1 if whole else 2, basis=basis)
            )
            self.activations.append(FieldActivation(group, count))
        self.head = FullMapConv(group, (4 * fields, "hidden"), (2 * DIGITS, "scalar"), 1, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        for conv, activation in zip(self.convs, self.activations, strict=True):
            images = activation(conv(images))
        return self.head(images).view(-1, 2, DIGITS)

    def regulariser(self) -> Tensor:
        """Divergence of each layer's likelihood from the one before, and its lack of alignment."""
        total = torch.zeros(())
        before = None
        for degree in self.degrees:
            total = total + DIVERGENCE_WEIGHT * degree.divergence(before) + MISALIGNMENT_WEIGHT * degree.misalignment()
            before = degree
        return total


def train_and_test(task: str, group: str, seed: int) -> Record:
    """What the layers have learnt, and how many labels the net gets wrong."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(load_digits().images), generator=generator)
    net = Classifier(group)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        images, labels = draw(task, group, order[:TRAINED], BATCH, generator)
        loss = F.cross_entropy(net(images).flatten(0, 1), labels.flatten()) + net.regulariser()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    images, labels = draw(task, group, order[TRAINED:], 1000, generator)
    with torch.no_grad():
        found = torch.cat([net(part).argmax(2) for part in images.split(200)])
        likelihoods = [degree.likelihood() for degree in net.degrees]
        divergences = [float(degree.divergence()) for degree in net.degrees]
    return {
        "task": task, "group": group, "seed": seed,
        "error": [round(float(wrong), 4) for wrong in (found != labels).double().mean(0)],
        "divergence": [round(value, 5) for value in divergences],
        "likelihood": [[round(float(value), 4) for value in likelihood] for likelihood in likelihoods],
    }  # fmt: skip


def report(records: list[Record], picture: Path | None) -> None:
    """Divergences layer by layer, mean over seeds and their range."""
    print(f"{'task':16}{'group':6}{'wrong, %':>16}" + "".join(f"{layer + ' layer':>26}" for layer in LAYERS))
    for task in TASKS:
        for group in GROUPS:
            own = [record for record in records if (record["task"], record["group"]) == (task, group)]
            if own:
                wrong = [100 * statistics.mean(record["error"][k] for record in own) for k in range(2)]
                columns = []
                for k in range(len(LAYERS)):
                    values = [record["divergence"][k] for record in own]
                    columns.append(f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
                errors = "{:.1f}, {:.1f}".format(*wrong)
                print(f"{task:16}{group:6}{errors:>16}" + "".join(f"{column:>26}" for column in columns))
    if picture is not None:
        draw_picture(picture, records)


def draw_picture(path: Path, records: list[Record]) -> None:
    """The likelihoods of so2, seed by seed."""
    with png_figure(path, size_inches=(11.0, 3.6)) as figure:
        axes = figure.subplots(1, len(TASKS), sharey=True)
        for place, (axis, task) in enumerate(zip(axes, TASKS, strict=True)):
            for record in records:
                if record["task"] == task and record["group"] == "so2":
                    draw_likelihoods(axis, record)
            axis.set(title=task, xlabel="Rotation (degrees)", xticks=(-180, -90, 0, 90, 180))
            axis.axhline(1.0, color="grey", linewidth=0.6)
            if place == 0:
                axis.set_ylabel("Learnt likelihood")
                axis.legend()


def draw_likelihoods(axis: Any, record: Mapping[str, Any]) -> None:
    """Three lines of one run."""
    count = len(record["likelihood"][0])
    angles = torch.arange(count + 1) * 360 / count - 180
    place = (torch.arange(count + 1) + count // 2) % count
    for k, layer in enumerate(LAYERS):
        values = torch.tensor(record["likelihood"][k])[place]
        axis.plot(
            angles, values, color=COLOURS[k], linewidth=1.2, label=f"{layer} layer" if record["seed"] == 0 else None
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, metavar="PNG", help="print what is recorded and draw it, train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    done = {(record["task"], record["group"], record["seed"]) for record in records}
    for seed in () if arguments.report else SEEDS:
        for group in GROUPS:
            for task in TASKS:
                if (task, group, seed) not in done:
                    records.append(train_and_test(task, group, seed))
                    write_json(RESULTS, records)
                    print({key: value for key, value in records[-1].items() if key != "likelihood"}, flush=True)
    report(records, arguments.report)


if __name__ == "__main__":
    main()
