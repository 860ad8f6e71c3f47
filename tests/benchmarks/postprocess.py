"""``cryoeq fsc`` with post-processing beside ``relion_postprocess`` on the same half maps: time and memory.

    python tests/benchmarks/postprocess.py                 128 and 256 px, written beside this file
    python tests/benchmarks/postprocess.py --boxes 128     printed and written, smaller
    python tests/benchmarks/postprocess.py --fft           which library is faster for the transforms, too

Half maps are RNA polymerase II (``data_samples``), blurred, under white noise. Each tool runs as its user would run it,
start-up included, in turns, so that other work on the machine meets all alike; the ratio is the median of the ratios
within a turn. cryoeq runs with a mask that it is given, as RELION does, and with the one that it finds itself. Memory
is the peak of the process, less that of a process that imports torch and ends; its limit is three times the bytes of
the half maps and the mask. RELION computes with one thread, cryoeq with ``--threads`` (default: all cores).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from recorded_runs import CRYOEQ, Cost, measure

from cryoeq.config.loading import packaged_file
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.masks import spherical_mask
from cryoeq.geometry.map_filter import filter_map, filter_radially
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import write_map
from cryoeq.io.text import read_json, write_json
from cryoeq.simulation.density import sample_atoms

RESULTS = Path(__file__).with_suffix(".json")
SIDE_ANGSTROM = 300.0
BLUR_ANGSTROM2 = 100.0
FFT_BOXES = (64, 100, 128, 200, 256, 300, 384)


@dataclass(frozen=True)
class Row:
    """One tool at one box: medians over the turns."""

    box_px: int
    tool: str
    wall_s: float
    cpu_s: float
    peak_mib: float
    above_torch_mib: float | None
    limit_mib: float | None
    wall_over_relion: float | None
    cpu_over_relion: float | None
    final_resolution_angstrom: float
    bfactor_angstrom2: float


def write_half_maps(folder: Path, n: int) -> None:
    """``half1.mrc``, ``half2.mrc`` and ``mask.mrc`` of n pixels."""
    pixel_size = SIDE_ANGSTROM / n
    atoms = read_atoms(packaged_file("data_samples/1wcm_ca.pdb.gz"))
    centred = replace(atoms, positions_angstrom=atoms.positions_angstrom - atoms.positions_angstrom.mean(0))
    volume = sample_atoms(centred, n, pixel_size).values
    squared = torch.arange(3 * (n // 2) ** 2 + 1) / SIDE_ANGSTROM**2
    blurred = filter_radially(volume, torch.exp(-BLUR_ANGSTROM2 / 4 * squared))
    generator = torch.Generator().manual_seed(1)
    for half in (1, 2):
        noise = torch.randn(blurred.shape, generator=generator) * (0.5 * blurred.std())
        write_map(folder / f"half{half}.mrc", Volume(blurred + noise, pixel_size))
    write_map(folder / "mask.mrc", spherical_mask(n, pixel_size, 12.0, 180.0))


def commands(relion: str | None) -> dict[str, list[str]]:
    """Of each tool, to be run in the folder of the half maps."""
    found = {
        "empty torch": [sys.executable, "-c", "import torch"],
        "cryoeq, mask given": [CRYOEQ, "fsc", "half1.mrc", "--mask", "mask.mrc", "-o", "given", "--device", "cpu"],
        "cryoeq, mask found": [CRYOEQ, "fsc", "half1.mrc", "-o", "found", "--device", "cpu"],
    }
    if relion is not None:
        found["relion_postprocess"] = [
            relion, "--i", "half1.mrc", "--mask", "mask.mrc", "--auto_bfac", "--o", "relion/postprocess",
        ]  # fmt: skip
    return found


def run_box(n: int, turns: int, threads: int, relion: str | None) -> list[Row]:
    """All tools in turns at one box."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "relion").mkdir()
        write_half_maps(folder, n)
        costs: dict[str, list[Cost]] = {tool: [] for tool in commands(relion)}
        for turn in range(turns + 1):
            for tool, command in commands(relion).items():
                cost = measure(
                    command, log=folder / "log", folder=folder, environment={"OMP_NUM_THREADS": str(threads)}
                )
                if cost.exit_code:
                    raise SystemExit(f"{tool} ended with code {cost.exit_code}:\n{(folder / 'log').read_text()}")
                if turn:  # the first turn fills the caches of the file system and of Python
                    costs[tool].append(cost)
        results = {
            "cryoeq, mask given": read_json(folder / "given" / "fsc.json"),
            "cryoeq, mask found": read_json(folder / "found" / "fsc.json"),
            "relion_postprocess": relion_result(folder / "relion" / "postprocess.star") if relion else {},
        }
    return [row_of(n, tool, costs, results[tool]) for tool in costs if tool != "empty torch"]


def relion_result(star: Path) -> dict[str, float]:
    """Final resolution and B-factor under cryoeq's names."""
    values = dict(line.split()[:2] for line in star.read_text().splitlines() if line.startswith("_rln"))
    return {
        "final_resolution_angstrom": float(values["_rlnFinalResolution"]),
        "bfactor_angstrom2": float(values["_rlnBfactorUsedForSharpening"]),
    }


def row_of(n: int, tool: str, costs: dict[str, list[Cost]], result: dict[str, float]) -> Row:
    """Medians and ratios of one tool."""
    mine, relion = costs[tool], costs.get("relion_postprocess")
    peak = statistics.median(cost.peak_rss_mib for cost in mine)
    is_ours = tool.startswith("cryoeq")
    empty = statistics.median(cost.peak_rss_mib for cost in costs["empty torch"])

    def ratio(figure: Callable[[Cost], float]) -> float | None:
        if relion is None or not is_ours:
            return None
        return round(statistics.median(figure(a) / figure(b) for a, b in zip(mine, relion, strict=True)), 3)

    return Row(
        n,
        tool,
        round(statistics.median(cost.wall_s for cost in mine), 2),
        round(statistics.median(cost.cpu_s for cost in mine), 2),
        round(peak, 1),
        round(peak - empty, 1) if is_ours else None,
        round(3 * 3 * 4 * n**3 / 2**20, 1) if is_ours else None,
        ratio(lambda cost: cost.wall_s),
        ratio(lambda cost: cost.cpu_s),
        result["final_resolution_angstrom"],
        result["bfactor_angstrom2"],
    )


def fft_rows(threads: int, boxes: tuple[int, ...] = FFT_BOXES, turns: int = 5) -> list[dict[str, float]]:
    """Milliseconds of the real transforms of a map and back, in turns; ``filter`` is cryoeq's way there and back."""
    torch.set_num_threads(threads)
    rows = []
    for n in boxes:
        values = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0))
        transform = torch.fft.rfftn(values)

        def forward(n: int = n, values: torch.Tensor = values) -> None:
            found = torch.empty(n, n, n // 2 + 1, dtype=torch.complex64)
            fftw(values, found, "FFTW_FORWARD", threads)

        def backward(n: int = n, transform: torch.Tensor = transform) -> None:
            fftw(transform.clone(), torch.empty(n, n, n), "FFTW_BACKWARD", threads)

        cases: dict[str, Callable[[], object]] = {
            "torch_forward": lambda values=values: torch.fft.rfftn(values),
            "fftw_forward": forward,
            "torch_backward": lambda n=n, transform=transform: torch.fft.irfftn(transform, s=(n, n, n)),
            "fftw_backward": backward,
            "filter": lambda values=values: filter_map(values, lambda rows, _: rows),
        }
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(turns):
            for name, run in cases.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        best = {name: round(1000 * min(times), 1) for name, times in seconds.items()}
        rows.append({"box_px": n, "threads": threads, **best})
        print(rows[-1], flush=True)
    return rows


def fftw(source: torch.Tensor, target: torch.Tensor, direction: str, threads: int) -> None:
    """One transform by FFTW, planned without measuring, as a command that runs once must."""
    import pyfftw

    flags = ("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT") if direction == "FFTW_BACKWARD" else ("FFTW_ESTIMATE",)
    pyfftw.FFTW(
        source.numpy(), target.numpy(), axes=(0, 1, 2), direction=direction, flags=flags, threads=threads
    ).execute()


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", nargs="+", type=int, default=[128, 256], help="sides of the maps in pixels")
    parser.add_argument("--turns", type=int, default=5, help="measured runs of each tool (after one that warms up)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of cryoeq")
    parser.add_argument("--fft", action="store_true", help="time the transforms, too")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"where to write the results ({RESULTS.name})")
    arguments = parser.parse_args()
    relion = shutil.which("relion_postprocess")
    if relion is None:
        print("relion_postprocess is not installed (Debian package relion): cryoeq is measured alone")
    rows = [row for n in arguments.boxes for row in run_box(n, arguments.turns, arguments.threads, relion)]
    for row in rows:
        print(json.dumps(asdict(row), ensure_ascii=False))
    transforms = fft_rows(arguments.threads) if arguments.fft else []
    record = {
        "machine": platform.machine(), "cores": os.cpu_count(), "threads": arguments.threads,
        "turns": arguments.turns, "load_average": os.getloadavg()[0], "torch": torch.__version__,
        "without_relion": None if relion else "relion_postprocess is not installed",
        "processes": [asdict(row) for row in rows], "transforms_ms": transforms,
    }  # fmt: skip
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
