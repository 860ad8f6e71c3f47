"""Settings of ``cryoeq simulate``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_serializer, model_validator

from cryoeq.config.choices import Noise, Views
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.symmetry import PointGroup

_LARGEST_DEFOCUS_UM = 100.0  # ten times the defocus of any particle: such values are meant in Angstrom


class SimulateConfig(FrozenConfig):
    """What to simulate."""

    options: ClassVar[Mapping[str, str]] = {
        "model": "MODEL", "output": "-o/--output", "box_size_px": "--box", "pixel_size_angstrom": "--angpix",
        "count": "-n/--count", "tilt_deg": "--tilt", "tilt_axis_deg": "--tilt-axis", "disorder_angstrom": "--disorder",
        "micrograph_px": "--micrograph", "shift_sigma_angstrom": "--shift-sigma", "defocus_min_um": "--defocus-min",
        "defocus_max_um": "--defocus-max", "astigmatism_angstrom": "--astigmatism",
        "astigmatism_angle_deg": "--astigmatism-angle", "voltage_kv": "--kv", "spherical_aberration_mm": "--cs",
        "with_ctf": "--no-ctf", "symmetry": "--sym",
    }  # fmt: skip

    model: Path = Field(description="PDB, mmCIF or MRC map")
    output: Path = Field(description="folder for all files")
    assembly: str | None = Field(
        default=None, description="id of the biological assembly to build from an atomic model"
    )
    box_size_px: int | None = Field(
        default=None,
        ge=16,
        le=1024,
        multiple_of=2,
        description="box of the images in px; chosen for the model if not given",
    )
    pixel_size_angstrom: float | None = Field(
        default=None, ge=0.01, le=1000, description="pixel size in Å; chosen for the model if not given"
    )
    count: int = Field(default=1000, ge=1, le=10**9, description="number of particles, or of micrographs of a crystal")
    crystal: tuple[float, float, float] | None = Field(
        default=None, description="a, b in Å and gamma in degrees of a 2D crystal of the model"
    )
    tilt_deg: float = Field(default=0.0, ge=-75, le=75, description="tilt of the crystal in degrees")
    tilt_axis_deg: float = Field(default=0.0, description="tilt axis in the image, degrees from x")
    disorder_angstrom: float = Field(
        default=0.0, ge=0, description="standard deviation of each cell's place, per axis, in Å"
    )
    micrograph_px: int = Field(
        default=1024, ge=128, le=16384, multiple_of=2, description="side of the micrographs of a crystal, in px"
    )
    snr: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=True,
        description="variance of the CTF-modulated, shifted signal over box and stack, divided by that of the noise",
    )
    shift_sigma_angstrom: float = Field(
        default=0.0, ge=0, description="standard deviation of the offset, per axis, in Å"
    )
    defocus_min_um: float = Field(default=1.0, description="smallest mean defocus in µm, positive under focus")
    defocus_max_um: float = Field(default=2.5, description="largest mean defocus in µm")
    astigmatism_angstrom: float = Field(default=0.0, ge=0, description="standard deviation of defocus U - V, in Å")
    astigmatism_angle_deg: float | None = Field(
        default=None, description="direction of defocus U, degrees from x; None for a random one for each particle"
    )
    voltage_kv: float = Field(default=300.0, ge=60, le=1500, description="acceleration voltage in kV")
    spherical_aberration_mm: float = Field(default=2.7, ge=0, le=10, description="spherical aberration in mm")
    amplitude_contrast: float = Field(default=0.1, ge=0, le=1, description="amplitude contrast")
    with_ctf: bool = Field(default=True, description="modulate the images by a CTF")
    views: Views = Field(default="uniform", description="distribution of views: uniform, or 70 % about +z")
    symmetry: PointGroup = Field(
        default="C1", description="point group that the density is averaged over: Cn, Dn, T, O, I"
    )
    noise: Noise = Field(default="white", description="spectrum of the noise: white, or stronger at low frequency")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed")
    device: str = Field(default="auto", description="device: auto, cpu or cuda:N")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "SimulateConfig":
        for option, value in (("--defocus-min", self.defocus_min_um), ("--defocus-max", self.defocus_max_um)):
            if abs(value) > _LARGEST_DEFOCUS_UM:
                raise ValueError(f"{option} is in µm, {value:g} is beyond any microscope; for Å write {value / 1e4:g}")
        if self.defocus_min_um > self.defocus_max_um:
            raise ValueError(
                f"--defocus-min {self.defocus_min_um:g} is above --defocus-max {self.defocus_max_um:g}; give both in "
                "µm, the smaller one first"
            )
        if math.isnan(self.snr):
            raise ValueError("--snr is not a number; give a positive number, or inf for no noise")
        return self

    def unused(self) -> Mapping[str, str | None]:
        """Settings of crystals without one, of single particles with one, of a CTF or of noise that there is not."""
        crystal = ("tilt_deg", "tilt_axis_deg", "disorder_angstrom", "micrograph_px")
        single = ("views", "shift_sigma_angstrom", "astigmatism_angle_deg")
        ctf = ("defocus_min_um", "defocus_max_um", "astigmatism_angstrom", "astigmatism_angle_deg")
        unused = dict.fromkeys(*((crystal, "no --crystal") if self.crystal is None else (single, "--crystal")))
        unused |= {} if self.with_ctf else dict.fromkeys(ctf, "--no-ctf")
        return unused | ({} if math.isfinite(self.snr) else {"noise": "--snr inf"})

    @field_serializer("snr", when_used="json")
    def _snr_for_json(self, snr: float) -> float | str:
        return snr if math.isfinite(snr) else "inf"  # JSON has no infinity
