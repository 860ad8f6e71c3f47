"""Picture of a learnt likelihood over the rotations of the plane, beside those of particles rotated at random."""

from pathlib import Path

import torch

from cryoeq.evaluation.in_plane_symmetry import InPlaneSymmetry
from cryoeq.outputs.figure import COLOURS, GREY, png_figure

_BINS = 20


def plot_in_plane_symmetry(path: Path, found: InPlaneSymmetry) -> None:
    """Draw the likelihood by angle, and its divergence among those of the rotated sets.

    Args:
        path: the PNG file to create or replace.
        found: result of the test.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    count = len(found.likelihood)
    angles = torch.arange(count + 1) * 360 / count - 180
    indices = (torch.arange(count + 1) + count // 2) % count
    rotated = found.rotated_likelihoods[:, indices]
    low, high = rotated.quantile(0.025, 0), rotated.quantile(0.975, 0)
    with png_figure(path, size_inches=(9.0, 4.2)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        left.fill_between(angles, low, high, color=GREY, alpha=0.3, linewidth=0, label="rotated at random, 95 %")
        left.plot(
            angles, found.likelihood[indices], color=COLOURS[1 if found.is_broken else 0], label="these particles"
        )
        left.axhline(1.0, color=GREY, linewidth=0.8)
        left.set(xlabel="Rotation (degrees)", ylabel="Learnt likelihood (uniform: 1)", xticks=range(-180, 181, 60))
        left.set_ylim(bottom=0)
        left.legend()
        right.hist(found.rotated_divergences, bins=_BINS, color=GREY, alpha=0.6)
        right.axvline(found.divergence, color=COLOURS[1 if found.is_broken else 0])
        right.set(xlabel="Divergence from uniform (nats)", ylabel="Sets")
        verdict = "broken" if found.is_broken else "not broken"
        figure.suptitle(f"In-plane symmetry: {verdict} (p = {found.p_value:.2f}, {found.count:,} particles)")
