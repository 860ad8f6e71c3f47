"""Adaptive samples of so2 beside a uniform grid, on the pose task: accuracy, equivariance, memory and time against N.

    python tests/benchmarks/sampling.py                  what is recorded is not done again
    python tests/benchmarks/sampling.py --report         the table of what is recorded

A dense so2 encoder learns from projections of the chiral phantom (24 px, a tenth of its power in noise). Accuracy is
the median rotation error on projections that it was not trained on; equivariance the median angle between the pose of a
particle rotated by 10 to 80 degrees and the rotated pose, on clean slices, which rotate without interpolation. Memory
is what one training step keeps for its gradients, time the CPU's. The paper's claim (arXiv 2409.08741): better at few
samples.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import torch
from phantom_projections import RADIUS, simulate_phantom
from torch import Tensor

from cryoeq.equivariance.actions import act_on_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.io.text import read_json, write_json
from cryoeq.models.pose_encoder import EncoderDesign, PoseEncoder, SamplerKind
from cryoeq.physics.projection import extract_slices
from cryoeq.training.synthetic.encoder_input import best_hypotheses, encoder_box_px, propose_poses
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, train_encoder
from cryoeq.training.synthetic.projections import ProjectionSimulator

RESULTS = Path(__file__).with_suffix(".json")
CASES: tuple[tuple[SamplerKind, int], ...] = (
    *(("adaptive", n) for n in (1, 2, 4, 8)),
    *(("uniform", n) for n in (5, 8, 12, 24)),
)  # fmt: skip
SEEDS = range(2)
WIDTH, STEPS, BATCH = 320, 500, 128

Record = dict[str, float | int | str]


def saved_bytes(encoder: PoseEncoder, images: Tensor) -> int:
    """What a forward pass keeps for its gradient; each storage counted once."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(images).rotations.sum()
    return sum(sizes.values())


@torch.no_grad()
def equivariance_error_deg(encoder: PoseEncoder, simulator: ProjectionSimulator) -> float:
    """Median over clean slices, each turned in the plane by an angle of its own."""
    generator = torch.Generator().manual_seed(7)
    rotations = random_rotations(256, generator)
    angles = torch.deg2rad(10 + 70 * torch.rand(256, generator=generator))
    turns = torch.stack(
        [torch.stack([angles.cos(), -angles.sin()], -1), torch.stack([angles.sin(), angles.cos()], -1)], -2
    )
    turned = torch.cat([act_on_rotations(g, a)[None] for g, a in zip(turns, rotations, strict=True)])
    heads = [
        propose_poses(encoder, extract_slices(simulator.padded, poses, simulator.plane), simulator.encoder_input)
        for poses in (rotations, turned)
    ]  # fmt: skip
    before, after = (found.rotations[:, 0] for found in heads)
    expected = torch.cat([act_on_rotations(g, a)[None] for g, a in zip(turns, before, strict=True)])
    return math.degrees(float(rotation_angle_rad(after, expected).median()))


def run(sampler: SamplerKind, samples: int, seed: int) -> Record:
    """Train one encoder and measure it."""
    simulator = simulate_phantom()
    torch.manual_seed(seed)
    encoder = PoseEncoder(
        "so2",
        encoder_box_px(RADIUS),
        2,
        (WIDTH,),
        trunk="dense",
        design=EncoderDesign(sampler=sampler, samples=samples),
    )
    began = time.process_time()
    for _ in train_encoder(encoder, simulator, EncoderTrainingSettings(STEPS, BATCH, 5e-3, 2.0, 0.2), seed=seed):
        pass
    trained = time.process_time() - began
    projections = simulator.simulate(512, torch.Generator().manual_seed(99))
    images, rotations = projections.ctf_multiplied, projections.rotations
    began = time.process_time()
    with torch.no_grad():
        found, _ = best_hypotheses(propose_poses(encoder, images, simulator.encoder_input))
    posed = time.process_time() - began
    return {
        "sampler": sampler,
        "samples": samples,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "median_error_deg": round(math.degrees(float(rotation_angle_rad(found, rotations).median())), 2),
        "equivariance_error_deg": round(equivariance_error_deg(encoder, simulator), 3),
        "kept_mib": round(saved_bytes(encoder.train(), simulator.encoder_input.images(images[:BATCH])) / 2**20, 2),
        "step_cpu_ms": round(1e3 * trained / STEPS, 1),
        "image_cpu_ms": round(1e3 * posed / 512, 3),
        "load_average": round(os.getloadavg()[0], 2),
    }


def report(records: list[Record]) -> None:
    """Means over seeds."""
    columns = ("median_error_deg", "equivariance_error_deg", "kept_mib", "step_cpu_ms", "image_cpu_ms")
    print(f"{'sampler':10}{'N':>3}  " + "".join(f"{name:>24}" for name in columns))
    for sampler, samples in CASES:
        own = [record for record in records if (record["sampler"], record["samples"]) == (sampler, samples)]
        if own:
            means = [statistics.mean(float(record[name]) for record in own) for name in columns]
            print(f"{sampler:10}{samples:3}  " + "".join(f"{mean:24.3f}" for mean in means) + f"  ({len(own)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="print what is recorded, train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    done = {(record["sampler"], record["samples"], record["seed"]) for record in records}
    for seed in () if arguments.report else SEEDS:
        for sampler, samples in CASES:
            if (sampler, samples, seed) not in done:
                records.append(run(sampler, samples, seed))
                write_json(RESULTS, records)
                print(records[-1], flush=True)
    report(records)


if __name__ == "__main__":
    main()
