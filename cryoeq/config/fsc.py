"""Settings of ``cryoeq fsc``."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class MaskConfig(FrozenConfig):
    """How a mask is found (``auto``) or drawn (``sphere``)."""

    low_pass_angstrom: float | None = Field(
        default=None,
        gt=0,
        description="low-pass filter before the threshold, in Å; None for 15, or the resolution if that is worse",
    )
    threshold: float | None = Field(default=None, description="threshold of the filtered map; None for Otsu's")
    extension_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="extension beyond the particle in Å; None for the unmasked resolution, 6 at least",
    )
    edge_angstrom: float | None = Field(
        default=None,
        gt=0,
        description="soft edge in Å; None for 1.5 times the unmasked resolution, 8 and four voxels at least",
    )
    diameter_angstrom: float | None = Field(
        default=None, gt=0, description="diameter of the sphere in Å, edge outside; None for the largest in the box"
    )


class SharpenConfig(FrozenConfig):
    """How the average of two half maps is sharpened and filtered."""

    bfactor_angstrom2: float | None = Field(
        default=None, description="B-factor in Å²: negative sharpens, 0 does not; None for a fit"
    )
    autob_lowres_angstrom: float = Field(default=10.0, gt=0, description="lowest resolution of the fit in Å")
    autob_highres_angstrom: float = Field(
        default=0.0, ge=0, description="highest resolution of the fit in Å; 0 for all"
    )
    with_fsc_weighting: bool = Field(default=True, description="multiply by sqrt(2 FSC / (1 + FSC))")
    low_pass_angstrom: float = Field(
        default=0.0, description="low-pass filter in Å; 0 for none, negative for the final resolution"
    )
    mtf: Path | None = Field(default=None, description="star file of the detector's MTF, to divide by")
    mtf_angpix: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size of the micrographs in Å; None for that of the maps"
    )


class FscConfig(FrozenConfig):
    """Which maps to compare, and where to write what."""

    options: ClassVar[Mapping[str, str]] = {
        "first": "A.mrc", "second": "B.mrc", "with_alignment": "--align", "pixel_size_angstrom": "--angpix",
        "with_directional": "--directional", "with_local_resolution": "--local-resolution",
        "model_bfactor_angstrom2": "--model-bfac", "json_file": "--json", "output": "-o/--output",
        "automask.low_pass_angstrom": "--mask-lowpass", "automask.threshold": "--mask-threshold",
        "automask.extension_angstrom": "--mask-extend", "automask.edge_angstrom": "--mask-edge",
        "automask.diameter_angstrom": "--mask-diameter", "sharpening.bfactor_angstrom2": "--bfac",
        "sharpening.autob_lowres_angstrom": "--autob-lowres", "sharpening.autob_highres_angstrom": "--autob-highres",
        "sharpening.with_fsc_weighting": "--skip-fsc-weighting", "sharpening.low_pass_angstrom": "--low-pass",
    }  # fmt: skip

    first: Path = Field(description="MRC map; the one that is moved when the maps are aligned")
    second: Path | None = Field(
        default=None,
        description="MRC map, the reference when the maps are aligned, or an atomic model; None for the other half map",
    )
    mask: Path | None = Field(
        default=None,
        description="auto, sphere, none or an MRC map of values from 0 to 1; None for auto with half maps, else none",
    )
    automask: MaskConfig = Field(default_factory=MaskConfig)
    postprocess: bool | None = Field(
        default=None, description="sharpen the average and write RELION's files; None for yes with half maps"
    )
    sharpening: SharpenConfig = Field(default_factory=SharpenConfig)
    with_alignment: bool = Field(
        default=False, description="bring the first map onto the second: rotation, shift, hand"
    )
    with_directional: bool = Field(default=False, description="resolution by direction: cFAR, sphericity, 3DFSC")
    with_local_resolution: bool = Field(default=False, description="resolution at each voxel, into the folder")
    pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size of all maps in Å; overrides their headers"
    )
    model_bfactor_angstrom2: float | None = Field(
        default=None, ge=0, description="one B-factor for all atoms of the model; None for those of its file"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the phases that measure what a mask adds")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")
    json_file: Path | None = Field(default=None, description="JSON file for all numbers")
    output: Path | None = Field(default=None, description="folder for the files")

    def unused(self) -> Mapping[str, str | None]:
        """Settings of a mask that is not found or drawn here, and of sharpening where none is wanted."""
        unused: dict[str, str | None] = {"sharpening": None if self.postprocess is not False else "--no-postprocess"}
        kind = None if self.mask is None else str(self.mask)
        if kind == "auto":
            unused["automask.diameter_angstrom"] = "--mask auto"
        elif kind == "sphere":
            names = ("low_pass_angstrom", "threshold", "extension_angstrom")
            unused |= {f"automask.{name}": "--mask sphere" for name in names}
        elif kind is not None:
            unused["automask"] = f"--mask {kind}"
        return unused
