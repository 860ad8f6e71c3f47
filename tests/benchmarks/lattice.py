"""Neural lattice reduction beside LLL: orthogonality of the bases, bases per second, and mismatches on grids.

    python tests/benchmarks/lattice.py                    all parts, printed and written beside this file
    python tests/benchmarks/lattice.py --parts quality    one part: quality, speed, grids

It needs fpylll and cysignals (``pip install fpylll cysignals``), which nothing else of cryoeq does. Seconds are CPU
time, one thread. Bases: ``random`` as in the training (other seeds); ``noisy``, short vectors of integers, scrambled,
with 1 % of noise on each number; ``ill``, Gaussian with lengths over four orders of magnitude, scrambled. The record
beside this file holds measurements of version 0.1 too, of which the networks are gone: weights for n = 4, 6, 8, and
joint reduction by a network or a rule. Measured again, a part replaces its rows.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fpylll import LLL, IntegerMatrix
from torch import Tensor

from cryoeq.lattice.neural_reducer import NeuralReducer, load_reducer
from cryoeq.lattice.reduction import LagrangeGauss, LatticeReducer, Lll, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import basis_mismatch_fraction, carry_bases
from cryoeq.lattice.train_neural_reducer import random_bases, scramble
from cryoeq.lattice.unit_cell import basis_of_cell

RESULTS = Path(__file__).with_suffix(".json")
DIMENSIONS = (2, 3)
COUNT = 1000
BATCHES = (1, 1000, 100_000)
MAX_LLL = 2000  # it works one by one, so a larger batch takes in proportion
INTEGER_SCALE = 2.0**30  # fpylll reduces integers


def sets(n: int, count: int, seed: int) -> dict[str, Tensor]:
    """Bases of the three kinds."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-9, 10, (count, n, n), generator=generator).double()
    integers = integers + 10 * torch.eye(n, dtype=torch.float64)
    noisy = scramble(integers, generator)
    noisy = noisy * (1 + 0.01 * torch.randn(count, n, n, dtype=torch.float64, generator=generator))
    lengths = 10 ** (4 * torch.rand(count, 1, n, dtype=torch.float64, generator=generator))
    gaussian = torch.randn(count, n, n, dtype=torch.float64, generator=generator)
    return {
        "random": random_bases(count, n, generator),
        "noisy": noisy,
        "ill": scramble(gaussian * lengths, generator),
    }


def fplll(basis: Tensor) -> list[IntegerMatrix]:
    """LLL of fpylll with its defaults (0.99), and the change of basis."""
    scaled = basis / basis.abs().amax((1, 2), keepdim=True) * INTEGER_SCALE
    changes = []
    for rows in scaled.mT.round().long().tolist():
        matrix, change = IntegerMatrix.from_matrix(rows), IntegerMatrix.identity(len(rows))
        LLL.reduction(matrix, change)
        changes.append(change)
    return changes


def fplll_changes(basis: Tensor) -> Tensor:
    """As tensors; not part of what is timed."""
    return torch.tensor([[list(row) for row in change] for change in fplll(basis)]).mT


def quality() -> list[dict[str, object]]:
    """Mean log defect of each kind and dimension."""
    rows = []
    for n in DIMENSIONS:
        for kind, basis in sets(n, COUNT, 1000 + n).items():
            changes = {
                "neural": load_reducer(n)(basis),
                "rounding": NeuralReducer(None)(basis),
                "fplll": fplll_changes(basis),
            }
            row: dict[str, object] = {"n": n, "bases": kind, "weights_of_n": n}
            row["before"] = round(float(log_orthogonality_defect(basis).mean()), 4)
            for name, change in changes.items():
                defects = log_orthogonality_defect(transform_basis(basis, change))
                row[name] = round(float(defects.mean()), 4)
                row[f"{name} 95 %"] = round(float(defects.quantile(0.95)), 4)
            rows.append(row)
            print(row, flush=True)
    return rows


def seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def speed() -> list[dict[str, object]]:
    """Bases per second in batches."""
    rows = []
    for n in DIMENSIONS:
        reducer = load_reducer(n)
        for batch in BATCHES:
            basis = sets(n, batch, 7)["random"]
            repeats = 20 if batch == 1 else 3 if batch == 1000 else 1
            subset = basis[:MAX_LLL]
            row: dict[str, object] = {
                "n": n,
                "batch": batch,
                "neural": round(batch / seconds(lambda b=basis, r=reducer: r(b), repeats)),
                "fplll": round(len(subset) / seconds(lambda b=subset: fplll(b), repeats)),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def bent_crystal(side: int, noise: float, seed: int) -> Tensor:
    """Bases of the tiles of a bent 2D crystal: a nearly hexagonal cell, tilted by up to 12 degrees across the image.

    Each is measured with relative noise and given in a basis of its own, as a search in each tile would return it.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = basis_of_cell((100.0, 101.0, 2.08))
    tilt = torch.linspace(-0.21, 0.21, side).double()
    tiles = torch.stack([torch.diag(torch.tensor([1.0, float(t.cos())]).double()) @ cell for t in tilt])
    tiles = tiles[:, None].expand(side, side, 2, 2).reshape(-1, 2, 2)
    tiles = tiles * (1 + noise * torch.randn(tiles.shape, dtype=torch.float64, generator=generator))
    return scramble(tiles, generator).view(side, side, 2, 2)


def tilt_series(frames: int, noise: float, seed: int) -> Tensor:
    """Bases of a nearly face-centred cubic lattice, rotated by one degree from frame to frame, as one row."""
    generator = torch.Generator().manual_seed(seed)
    cell = basis_of_cell((60.0, 60.3, 60.6, 1.06, 1.05, 1.04))
    angle = torch.arange(frames).double().deg2rad()
    zero, one = torch.zeros(frames).double(), torch.ones(frames).double()
    rotation = torch.stack([angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()], -1)
    tiles = rotation.view(frames, 3, 3) @ cell
    tiles = tiles * (1 + noise * torch.randn(tiles.shape, dtype=torch.float64, generator=generator))
    return scramble(tiles, generator).view(1, frames, 3, 3)


def grids() -> list[dict[str, object]]:
    """Mismatches ("flips") between neighbours and mean log defect: tile by tile, and jointly."""
    rows = []
    for name, make, n in (("bent crystal, 16 x 16 tiles", lambda x, s: bent_crystal(16, x, s), 2),
                          ("tilt series, 60 frames", lambda x, s: tilt_series(60, x, s), 3)):  # fmt: skip
        for noise in (0.0, 0.01, 0.03):
            measured: dict[str, list[float]] = {}
            for seed in range(3):
                grid = make(noise, seed)
                flat = grid.flatten(0, 1)
                reducers: dict[str, LatticeReducer] = {"LLL": Lll(), "neural": load_reducer(n)}
                changes = {}
                for label, reducer in reducers.items():
                    start = time.process_time()
                    changes[label] = reducer(flat)
                    carried = carry_bases(grid, changes[label].view(*grid.shape[:2], n, n))
                    measured.setdefault(f"joint {label} s", []).append(time.process_time() - start)
                    changes[f"joint {label}"] = carried.flatten(0, 1)
                changes |= {"Lagrange-Gauss": LagrangeGauss()(flat)} if n == 2 else {}
                for method, change in changes.items():
                    reduced = transform_basis(flat, change)
                    mismatch = basis_mismatch_fraction(reduced.view_as(grid))
                    measured.setdefault(f"{method} flips", []).append(mismatch)
                    defect = float(log_orthogonality_defect(reduced).mean())
                    measured.setdefault(f"{method} log defect", []).append(defect)
            row: dict[str, object] = {"grid": name, "noise": noise}
            row |= {label: round(sum(values) / len(values), 4) for label, values in measured.items()}
            rows.append(row)
            print(row, flush=True)
    return rows


PARTS: dict[str, Callable[[], list[dict[str, object]]]] = {"quality": quality, "speed": speed, "grids": grids}


def main() -> None:
    """Measure, and write the record after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in arguments.parts:
        kept[part] = PARTS[part]()
        kept["machine"] = {"processor": platform.machine(), "threads": 1, "torch": torch.__version__}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
