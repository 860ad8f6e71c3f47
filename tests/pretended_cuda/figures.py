"""What was counted: kernels, bytes, waits and copies of each line of the watched package."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pretended_cuda.machine import MACHINE, Counts


def report(most: int = 40) -> dict[str, Any]:
    """Sums, and the lines that count most.

    Args:
        most: number of lines.
    """

    def by(place: int, counts: Counts) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for key, count in counts.items():
            sums[key[place]] += count
        return dict(sums.most_common(most))

    def by_both(counts: Counts) -> dict[str, int]:
        return {" | ".join(key): count for key, count in counts.most_common(most)}

    return {
        "kernels": MACHINE.kernels.total(), "bytes": MACHINE.bytes.total(), "flops": MACHINE.flops.total(),
        "waits": MACHINE.waits.total(), "peak_bytes": dict(MACHINE.peak),
        "complaints": dict(Counter(MACHINE.complaints)), "without_kernel": dict(MACHINE.without_kernel),
        "kernels_by_line": by(0, MACHINE.kernels), "kernels_by_name": by(1, MACHINE.kernels),
        "bytes_by_line": by(0, MACHINE.bytes), "waits_by_line": by_both(MACHINE.waits),
        "copies_from_the_host": by_both(MACHINE.host_copies),
    }  # fmt: skip


def reset() -> None:
    """Forget the figures, not the memory."""
    for counts in (MACHINE.kernels, MACHINE.bytes, MACHINE.flops, MACHINE.waits, MACHINE.host_copies):
        counts.clear()
    MACHINE.without_kernel.clear()
    MACHINE.complaints.clear()


def write_report() -> None:
    """Complaints to standard error; the report to the file of ``PRETENDED_CUDA_REPORT``, one for each rank."""
    for complaint, count in Counter(MACHINE.complaints).items():
        sys.stderr.write(f"pretended_cuda: {complaint} ({count} times)\n")
    place, rank = os.environ.get("PRETENDED_CUDA_REPORT"), os.environ.get("RANK")
    if place:
        path = Path(place if rank is None else f"{place}.{rank}")
        path.write_text(json.dumps(report(400), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
