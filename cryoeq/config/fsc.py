"""Settings of ``cryoeq fsc``."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class FscConfig(FrozenConfig):
    """Which maps to compare, and where to write what."""

    first: Path = Field(description="MRC map; the one that is moved when the maps are aligned")
    second: Path = Field(description="MRC map, the reference when the maps are aligned; or an atomic model")
    mask: Path | None = Field(default=None, description="MRC map of values from 0 to 1, in the frame of the second map")
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
    output: Path | None = Field(default=None, description="folder for fsc.star, fsc.xml, fsc.png and fsc.json")
