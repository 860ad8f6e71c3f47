"""CPU time an image from the file to preprocessed images and to Fourier coefficients, beside a plain copy of its bytes.

    python tests/benchmarks/reading.py                    64, 128 and 256 px, printed and recorded
    python tests/benchmarks/reading.py --boxes 128 --no-record

Images are noise in files of a temporary folder, in the system's cache: the disk is not measured. ``crop`` reads into a
working box of half the size, ``half`` images of 16 bits (mode 12). ``transforms`` are those of a search with CTF and
noise spectra, from images in memory. Each figure is the least of a few turns of one thread, in microseconds of
processor time.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import mrcfile
import numpy as np
import torch
from recorded_runs import Record, append_record, read_records

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles
from cryoeq.reconstruction.particle_transforms import load_transforms

RESULTS = Path(__file__).with_suffix(".json")
_PIXELS = 2**24  # of a stack
_BATCH_PIXELS = 2**22
_CPU = torch.device("cpu")


def make_particles(folder: Path, box_px: int, *, is_half: bool) -> Path:
    """A star file with CTFs, and its stack."""
    count, generator = _PIXELS // box_px**2, torch.Generator().manual_seed(box_px)
    images = torch.randn(count, box_px, box_px, generator=generator)
    if is_half:
        with mrcfile.new(folder / "noise.mrcs") as stack:
            stack.set_data(images.numpy().astype(np.float16))
            stack.set_image_stack()
    else:
        with StackWriter(folder / "noise.mrcs", count, box_px, 1.5) as writer:
            writer.append(images)
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
    optics += "_rlnImagePixelSize\n_rlnImageSize\n_rlnImageDimensionality\n"
    labels = "data_particles\nloop_\n_rlnImageName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnOpticsGroup\n"
    rows = "".join(f"{i + 1}@noise.mrcs {15000 + i % 5000} {14900 + i % 5000} {i % 90} 1\n" for i in range(count))
    star = folder / "particles.star"
    star.write_text(f"{optics}1 300 2.7 0.1 1.5 {box_px} 2\n\n{labels}{rows}")
    return star


def microseconds(run: Callable[[], object], count: int, turns: int) -> float:
    """Least processor time of a few turns, an image."""
    times = []
    for _ in range(turns):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return round(min(times) / count * 1e6, 1)


def copy_microseconds(box_px: int, turns: int) -> float:
    """Processor time of a copy of as many bytes as an image has."""
    images = torch.zeros(_BATCH_PIXELS // box_px**2, box_px, box_px)
    target = torch.zeros_like(images)
    return microseconds(lambda: target.copy_(images), len(images), turns)


def measure(box_px: int, turns: int) -> Record:
    """Figures of one box."""
    figures: Record = {"box_px": box_px}
    for is_half in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            stack = read_particles(make_particles(Path(folder), box_px, is_half=is_half))
            kind = "half " if is_half else ""
            for name, working_px in ((f"{kind}full", box_px), (f"{kind}crop", box_px // 2)):
                dataset = ParticleDataset.open(stack, working_box_px=working_px, cache_bytes=0)
                chunks = torch.arange(len(dataset)).split(_BATCH_PIXELS // box_px**2)
                figures[name] = microseconds(
                    lambda dataset=dataset, chunks=chunks: [dataset.batch(rows) for rows in chunks], len(dataset), turns
                )
            if not is_half:
                figures["copy"] = copy_microseconds(box_px, turns)
                kept = ParticleDataset.open(stack)
                figures["transforms"] = microseconds(
                    lambda kept=kept: result_of(load_transforms(kept, _CPU)), len(kept), turns
                )
    return figures


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=lambda text: [int(part) for part in text.split(",")], default=[64, 128, 256])
    parser.add_argument("--turns", type=int, default=5, help="of which the fastest counts [5]")
    parser.add_argument("--no-record", action="store_true", help="only print")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = [measure(box_px, arguments.turns) for box_px in arguments.boxes]
    for figures in records:
        print("  ".join(f"{name} {value}" for name, value in figures.items()))
    if not arguments.no_record:
        machine = {"processor": platform.processor() or platform.machine(), "load": round(os.getloadavg()[0], 1)}
        record = {"date": datetime.now(UTC).date().isoformat(), **machine, "microseconds_an_image": records}
        append_record(RESULTS, record)
        print(f"{len(read_records(RESULTS))} records in {RESULTS.name}")


if __name__ == "__main__":
    main()
