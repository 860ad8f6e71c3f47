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
_LEAST_SHARE = 1e-6  # of MODEL: rounding


class SimulateConfig(FrozenConfig):
    """What to simulate."""

    options: ClassVar[Mapping[str, str]] = {
        "model": "MODEL", "output": "-o/--output", "box_size_px": "--box", "pixel_size_angstrom": "--angpix",
        "count": "-n/--count", "tilt_deg": "--tilt", "tilt_axis_deg": "--tilt-axis", "disorder_angstrom": "--disorder",
        "micrograph_px": "--micrograph", "shift_sigma_angstrom": "--shift-sigma", "defocus_min_um": "--defocus-min",
        "defocus_max_um": "--defocus-max", "astigmatism_angstrom": "--astigmatism",
        "astigmatism_angle_deg": "--astigmatism-angle", "voltage_kv": "--kv", "spherical_aberration_mm": "--cs",
        "with_ctf": "--no-ctf", "symmetry": "--sym", "other_models": "--model", "junk_share": "--junk",
        "neighbour_share": "--neighbours", "micrograph_count": "--n-micrographs",
        "optics_group_count": "--optics-groups", "defocus_error_angstrom": "--defocus-error",
        "bfactor_angstrom2": "--bfactor",
    }  # fmt: skip

    model: Path = Field(description="PDB, mmCIF or MRC map")
    other_models: tuple[str, ...] = Field(
        default=(),
        description="further models, each with its share of the particles, as in B.pdb:0.4; MODEL has the rest",
    )
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
    junk_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of all images that are no particles: empty, edges of carbon or ice, two particles on one "
        "another, and broken ones, in equal parts",
    )
    neighbour_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of all images that are particles with another one reaching into the box",
    )
    scale_sd: float = Field(
        default=0.0, ge=0, le=1, description="standard deviation of the particles' contrast, whose mean is 1"
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
    defocus_error_angstrom: float = Field(
        default=0.0, ge=0, le=1e4, description="standard deviation of the error of the star file's defocus, in Å"
    )
    bfactor_angstrom2: float = Field(
        default=0.0,
        ge=0,
        le=1e4,
        description="B-factor of the images' envelope in Å², which the star file does not state",
    )
    micrograph_count: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="number of micrographs, whose particles share their defocus; None for one of each particle",
    )
    optics_group_count: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="number of optics groups, which differ in their noise and a little in their optics",
    )
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
    noise: Noise = Field(
        default="white",
        description="spectrum of the noise: white; coloured: stronger at low frequency; ice: half through the CTF",
    )
    normalise: bool = Field(
        default=False, description="normalise the background of each image, as RELION's extraction does"
    )
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

    @model_validator(mode="after")
    def _shares_leave_something(self) -> "SimulateConfig":
        others = [share for _, share in self.models_with_shares[1:]]
        if self.models_with_shares[0][1] < _LEAST_SHARE:
            raise ValueError(
                f"the shares of --model add up to {sum(others):g}, which leaves nothing of {self.model.name}; give "
                "shares whose sum is below 1"
            )
        if self.junk_share + self.neighbour_share > 1:
            raise ValueError(
                f"--junk {self.junk_share:g} and --neighbours {self.neighbour_share:g} add up to more than 1; an image "
                "with a neighbour is no junk, so give shares whose sum is 1 at most"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_micrographs(self) -> "SimulateConfig":
        if self.optics_group_count > (self.micrograph_count or 1):
            raise ValueError(
                f"--optics-groups {self.optics_group_count} with {self.micrograph_count or 'no'} micrographs; a "
                "micrograph is in one optics group, so give --n-micrographs, at least as many"
            )
        return self

    @model_validator(mode="after")
    def _a_crystal_is_alone(self) -> "SimulateConfig":
        asked = {
            "--model": bool(self.other_models), "--junk": self.junk_share > 0, "--neighbours": self.neighbour_share > 0,
            "--n-micrographs": self.micrograph_count is not None, "--noise ice": self.noise == "ice",
        }  # fmt: skip
        if self.crystal is not None and any(asked.values()):
            found = ", ".join(option for option, is_asked in asked.items() if is_asked)
            raise ValueError(f"{found} with --crystal; these are of single particles, so leave out one or the other")
        return self

    @property
    def models_with_shares(self) -> tuple[tuple[Path, float], ...]:
        """Every model and its share of the particles, MODEL first.

        Raises:
            ValueError: a further model is given without a share between 0 and 1.
        """
        others = [_model_and_share(text) for text in self.other_models]
        return ((self.model, 1 - sum(share for _, share in others)), *others)

    @property
    def is_as_it_comes(self) -> bool:
        """Whether the images differ in more than pose, defocus and noise, of which the truth then tells."""
        features = (
            self.junk_share, self.neighbour_share, self.scale_sd, self.defocus_error_angstrom, self.bfactor_angstrom2,
        )  # fmt: skip
        return bool(self.other_models) or self.normalise or any(features)

    @property
    def normalises(self) -> bool:
        """Whether backgrounds are normalised: without noise there is nothing in them."""
        return self.normalise and math.isfinite(self.snr)

    def unused(self) -> Mapping[str, str | None]:
        """Settings of crystals without one, of single particles with one, of a CTF or of noise that there is not."""
        crystal = ("tilt_deg", "tilt_axis_deg", "disorder_angstrom", "micrograph_px")
        single = (
            "views", "shift_sigma_angstrom", "astigmatism_angle_deg", "scale_sd", "defocus_error_angstrom",
            "bfactor_angstrom2", "normalise",
        )  # fmt: skip
        ctf = (
            "defocus_min_um", "defocus_max_um", "astigmatism_angstrom", "astigmatism_angle_deg",
            "defocus_error_angstrom", "bfactor_angstrom2",
        )  # fmt: skip
        unused = dict.fromkeys(*((crystal, "no --crystal") if self.crystal is None else (single, "--crystal")))
        unused |= {} if self.with_ctf else dict.fromkeys(ctf, "--no-ctf")
        return unused | ({} if math.isfinite(self.snr) else dict.fromkeys(("noise", "normalise"), "--snr inf"))

    @field_serializer("snr", when_used="json")
    def _snr_for_json(self, snr: float) -> float | str:
        return snr if math.isfinite(snr) else "inf"  # JSON has no infinity


def _model_and_share(text: str) -> tuple[Path, float]:
    path, _, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not (path and 0 < value < 1):
        raise ValueError(f"--model is {text!r}; give a file and its share of the particles, as in B.pdb:0.4")
    return Path(path), value
