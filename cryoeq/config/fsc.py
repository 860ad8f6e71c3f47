"""Settings of ``cryoeq fsc``."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class MaskConfig(FrozenConfig):
    """How a mask is found (``auto``) or drawn (``sphere``)."""

    low_pass_angstrom: float | None = Field(
        default=None, gt=0, description="of the map that is searched; None for 15, or its resolution if that is worse"
    )
    threshold: float | None = Field(default=None, description="density of the particle in it; None for Otsu's")
    extension_angstrom: float | None = Field(
        default=None, ge=0, description="beyond the particle; None for the unmasked resolution, 6 at least"
    )
    edge_angstrom: float | None = Field(
        default=None,
        gt=0,
        description="soft edge; None for 1.5 times the unmasked resolution, 8 and four voxels at least",
    )
    diameter_angstrom: float | None = Field(
        default=None, gt=0, description="of the sphere, edge outside; None for the largest in the box"
    )


class SharpenConfig(FrozenConfig):
    """How the average of two half maps is sharpened and filtered."""

    bfactor_angstrom2: float | None = Field(default=None, description="negative sharpens, 0 does not; None fits it")
    autob_lowres_angstrom: float = Field(default=10.0, gt=0, description="lowest resolution of the fit")
    autob_highres_angstrom: float = Field(default=0.0, ge=0, description="highest resolution of the fit; 0 for all")
    with_fsc_weighting: bool = Field(default=True, description="multiply by sqrt(2 FSC / (1 + FSC))")
    low_pass_angstrom: float = Field(
        default=0.0, description="resolution of a filter; 0 for none, negative for the final resolution"
    )
    mtf: Path | None = Field(default=None, description="star file of the detector's MTF, to divide by")
    mtf_angpix: float | None = Field(
        default=None, gt=0, description="pixel size of the micrographs in Angstrom; None for that of the maps"
    )


class FscConfig(FrozenConfig):
    """Which maps to compare, and where to write what."""

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
    pixel_size_angstrom: float | None = Field(default=None, gt=0, description="of all maps; overrides their headers")
    model_bfactor_angstrom2: float | None = Field(
        default=None, ge=0, description="one B-factor for all atoms of the model; None for those of its file"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the random phases that measure what a mask adds")
    device: str = Field(default="auto", description="auto, cpu or cuda:N")
    json_file: Path | None = Field(default=None, description="file for all figures")
    output: Path | None = Field(default=None, description="folder for the files")
