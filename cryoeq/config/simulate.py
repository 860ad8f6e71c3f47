"""Settings of ``cryoeq simulate``."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, field_serializer, model_validator

from cryoeq.config.frozen import FrozenConfig


class SimulateConfig(FrozenConfig):
    """What to simulate."""

    model: Path = Field(description="PDB, mmCIF or MRC map")
    output: Path = Field(description="folder for all files")
    assembly: str | None = Field(
        default=None, description="id of the biological assembly to build from an atomic model"
    )
    box_size_px: int | None = Field(
        default=None, ge=16, le=1024, multiple_of=2, description="side of the images; chosen for the model if not given"
    )
    pixel_size_angstrom: float | None = Field(
        default=None, gt=0, description="of the images; chosen for the model if not given"
    )
    count: int = Field(default=1000, ge=1, description="number of particles, or of micrographs of a crystal")
    crystal: tuple[float, float, float] | None = Field(
        default=None, description="a, b in Angstrom and gamma in degrees of a 2D crystal of the model"
    )
    tilt_deg: float = Field(default=0.0, ge=-75, le=75, description="tilt of the crystal")
    tilt_axis_deg: float = Field(default=0.0, description="direction of the tilt axis in the image, from x")
    disorder_angstrom: float = Field(default=0.0, ge=0, description="spread of each cell's place, per axis")
    micrograph_px: int = Field(default=1024, ge=128, le=16384, multiple_of=2, description="side of the micrographs")
    snr: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=True,
        description="variance of the CTF-modulated, shifted signal over box and stack, divided by that of the noise",
    )
    shift_sigma_angstrom: float = Field(default=0.0, ge=0, description="standard deviation of the shift, per axis")
    defocus_min_um: float = Field(default=1.0, description="smallest mean defocus, positive is underfocus")
    defocus_max_um: float = Field(default=2.5, description="largest mean defocus")
    astigmatism_angstrom: float = Field(default=0.0, ge=0, description="spread of defocus U - V")
    astigmatism_angle_deg: float | None = Field(
        default=None, description="direction of defocus U, from x; None draws it for each particle"
    )
    voltage_kv: float = Field(default=300.0, gt=0, description="acceleration voltage")
    spherical_aberration_mm: float = Field(default=2.7, ge=0, description="Cs")
    amplitude_contrast: float = Field(default=0.1, ge=0, le=1, description="Q0")
    with_ctf: bool = Field(default=True, description="whether images are modulated by a CTF")
    views: Literal["uniform", "preferred"] = Field(default="uniform", description="distribution of view directions")
    symmetry: str = Field(default="C1", description="point group that the density is averaged over")
    noise: Literal["white", "coloured"] = Field(default="white", description="spectrum of the noise")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all that is drawn at random")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "SimulateConfig":
        if self.defocus_min_um > self.defocus_max_um:
            raise ValueError(
                f"defocus_min_um ({self.defocus_min_um:g}) is above defocus_max_um ({self.defocus_max_um:g}); "
                "give --defocus-min and --defocus-max in um, the smaller one first"
            )
        if math.isnan(self.snr):
            raise ValueError("snr is not a number; give a positive number, or inf for no noise")
        return self

    @field_serializer("snr", when_used="json")
    def _snr_for_json(self, snr: float) -> float | str:
        return snr if math.isfinite(snr) else "inf"  # JSON has no infinity
