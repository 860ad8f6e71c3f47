"""Rotated digits with few labels: what a larger group buys, at equal parameters.

    python tests/benchmarks/digits.py                    all groups and seeds; what is recorded is not done again
    python tests/benchmarks/digits.py --report           the table of what is recorded

The digits are scikit-learn's (1797 of 8 x 8 px), enlarged to 11 px inside 17 px, each turned once by a random angle:
200 with labels, 1200 to test on. The net has two steerable convolutions of 5 px, a filter as large as the map, and
invariant logits; its width is chosen so that every group has about the same number of parameters. Rotated digits are
the task of Weiler and Cesa 2019 (arXiv 1911.08251), table 5, at the size of one core.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cryoeq.equivariance import FieldActivation, FullMapConv, SteerableBlock, SteerableConv, plane_group
from cryoeq.io.text import read_json, write_json

RESULTS = Path(__file__).with_suffix(".json")
GROUPS = ("c1", "c4", "d4", "c8", "c16", "so2")
SEEDS = range(5)
SIDE, DIGIT = 17, 11
LABELLED, TESTED = 200, 1200
PARAMETERS = 20_000
STEPS, BATCH, RATE = 200, 50, 5e-3


def rotated_digits(seed: int) -> tuple[Tensor, Tensor]:
    """All images, each at its own angle, and their labels, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=generator)
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    large = nn.functional.interpolate(images, size=DIGIT, mode="bicubic", align_corners=True)
    margin = (SIDE - DIGIT) // 2
    padded = nn.functional.pad(large, (margin,) * 4)
    angles = 2 * math.pi * torch.rand(len(padded), generator=generator)
    turns = torch.stack([angles.cos(), -angles.sin(), 0 * angles, angles.sin(), angles.cos(), 0 * angles], -1)
    grid = nn.functional.affine_grid(turns.view(-1, 2, 3), list(padded.shape), align_corners=True)
    turned = nn.functional.grid_sample(padded, grid, mode="bicubic", align_corners=True)
    return turned, torch.tensor(digits.target)[order]


def classifier(name: str, fields: int) -> nn.Sequential:
    """Images to logits that the group leaves alone."""
    group = plane_group(name)

    def block(conv: SteerableConv) -> SteerableBlock:
        return SteerableBlock(conv, FieldActivation(group, conv.out_count))

    return nn.Sequential(
        block(SteerableConv(group, (1, "scalar"), (fields, "hidden"), 5)),
        block(SteerableConv(group, (fields, "hidden"), (2 * fields, "hidden"), 5, stride=2)),
        block(SteerableConv(group, (2 * fields, "hidden"), (2 * fields, "hidden"), 5, stride=2)),
        block(FullMapConv(group, (2 * fields, "hidden"), (4 * fields, "hidden"), 5)),
        FullMapConv(group, (4 * fields, "hidden"), (10, "scalar"), 1, bias=True),
        nn.Flatten(),
    )


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def matched_classifier(name: str) -> nn.Sequential:
    """The one whose number of parameters is nearest to the target."""
    best = min(range(1, 17), key=lambda fields: abs(math.log(parameters(classifier(name, fields)) / PARAMETERS)))
    return classifier(name, best)


def train_and_test(name: str, seed: int) -> dict[str, object]:
    """Error on test images after training on few labels."""
    images, labels = rotated_digits(seed)
    torch.manual_seed(seed)
    net = matched_classifier(name)
    generator = torch.Generator().manual_seed(seed + 1000)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    began = time.process_time()
    net.train()
    for _ in range(STEPS):
        rows = torch.randperm(LABELLED, generator=generator)[:BATCH]
        loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = time.process_time() - began
    net.eval()
    test = slice(LABELLED, LABELLED + TESTED)
    with torch.no_grad():
        found = torch.cat([net(part).argmax(1) for part in images[test].split(200)])
    return {
        "group": name,
        "seed": seed,
        "parameters": parameters(net),
        "error": round(float((found != labels[test]).double().mean()), 4),
        "training_cpu_s": round(trained, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def report(records: list[dict[str, object]]) -> None:
    """Mean error per group, with the 95 % interval of Student's t over seeds."""
    for name in GROUPS:
        own = [record for record in records if record["group"] == name]
        if len(own) > 1:
            errors = [100 * float(str(record["error"])) for record in own]
            half = stats.t.ppf(0.975, len(errors) - 1) * statistics.stdev(errors) / math.sqrt(len(errors))
            seconds = statistics.mean(float(str(record["training_cpu_s"])) for record in own)
            print(
                f"{name:5}{own[0]['parameters']:>8} parameters  {statistics.mean(errors):5.2f} +- {half:.2f} % wrong "
                f"({len(errors)} seeds)  {seconds:.0f} CPU s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="print what is recorded, train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, object]] = read_json(RESULTS) if RESULTS.is_file() else []
    done = {(record["group"], record["seed"]) for record in records}
    for seed in () if arguments.report else SEEDS:
        for name in GROUPS:
            if (name, seed) not in done:
                records.append(train_and_test(name, seed))
                write_json(RESULTS, records)
                print(records[-1], flush=True)
    report(records)


if __name__ == "__main__":
    main()
