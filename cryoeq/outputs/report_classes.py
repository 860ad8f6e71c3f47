"""What a report says of classes and junk."""

from typing import Any

from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.outputs.report_contents import RunContents


def class_moves(run: RunContents) -> list[dict[str, Any]]:
    """Rows of the table of moves between two random starts: class, and count and share of each cell."""
    return [
        {
            "number": number,
            "cells": [{"count": count, "share": count / max(1, sum(counts))} for count in counts],
        }
        for number, counts in enumerate(run.class_moves or (), 1)
    ]


def junk_note(run: RunContents) -> str:
    """How many particles are junk, and how to leave them out."""
    total = sum(map(len, run.junk.values()))
    junk = sum(int((values >= JUNK_CUT).sum()) for values in run.junk.values())
    return (
        f"Of {total:,} particles {junk:,} ({junk / max(1, total):.1%}) are junk with a probability of {JUNK_CUT:g} or"
        f" more; cryoeq select {run.name} --junk-below {JUNK_CUT:g} leaves them out."
    )
