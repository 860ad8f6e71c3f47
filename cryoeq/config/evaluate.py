"""Settings of ``cryoeq evaluate``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup


class EvaluateConfig(FrozenConfig):
    """Poses to compare, or encoder to bound, and output files."""

    renamed: ClassVar[Mapping[str, str]] = {"wrong_deg": "error_threshold_deg"}  # of version 0.1

    options: ClassVar[Mapping[str, str]] = {
        "predicted": "PRED.star", "truth": "TRUTH.star", "error_threshold_deg": "--error-threshold",
        "wrong_deg": "--wrong-beyond", "symmetry": "--sym", "pixel_size_angstrom": "--angpix",
        "by_class": "--by-class/--no-by-class", "json_file": "--json", "plot_file": "--plot", "output": "-o/--output",
    }  # fmt: skip

    predicted: Path | None = Field(
        default=None, description="star file with the predicted poses, or the folder of a run"
    )
    truth: Path | None = Field(default=None, description="star file with the true poses")
    bound: Path | None = Field(
        default=None, description="hybrid run (hybrid.posterior=network) whose network's generalization is bounded"
    )
    error_threshold_deg: float = Field(
        default=30.0, gt=0, lt=180, description="rotation error in degrees above which a pose is wrong"
    )
    held_out_projections: int = Field(
        default=10_000, ge=100, description="number of held-out synthetic projections that the encoder is evaluated on"
    )
    delta: float = Field(default=0.05, gt=0, lt=1, description="probability that a bound fails")
    symmetry: PointGroup = Field(default="C1", description="point group of the particle, in the frame of the truth")
    pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size of the images; overrides the star files"
    )
    by_class: bool | None = Field(
        default=None,
        description="classes of the prediction are structures, each in a frame of its own; None: those of a run of "
        "several are",
    )
    junk_below: float = Field(
        default=0.2, gt=0, le=1, description="particles that are junk with less than this probability are kept"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="random seed of the halves and of the search for the frame"
    )
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    json_file: Path | None = Field(default=None, description="JSON file for all results")
    plot_file: Path | None = Field(default=None, description="PNG file for the histogram of errors")
    output: Path | None = Field(default=None, description="folder for pose_errors.json, pose_errors.png and bound.json")

    def unused(self) -> Mapping[str, str | None]:
        """Settings of a bound without one, and of a comparison without poses."""
        bound = "delta", "held_out_projections"
        poses = "error_threshold_deg", "symmetry", "pixel_size_angstrom", "by_class", "junk_below"
        unused = dict.fromkeys(bound, "no --bound") if self.bound is None else {}
        return unused | (dict.fromkeys((*poses, "plot_file"), "no PRED.star") if self.predicted is None else {})
