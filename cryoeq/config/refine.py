"""Settings of what follows a search, and of ``cryoeq refine``, which begins there."""

from pathlib import Path

from pydantic import Field

from cryoeq.config.frozen import FrozenConfig


class RefineConfig(FrozenConfig):
    """Refinement from a map or from poses that come from elsewhere."""

    reference: Path | None = Field(default=None, description="map to start from, in the box of the particles")
    ini_high_angstrom: float = Field(
        default=30.0, gt=0, description="resolution in Å of the map, or of the poses, that both half sets start from"
    )
    local: bool = Field(default=False, description="start from the poses of the star file, without a global search")
    keep_half_sets: bool = Field(default=False, description="the half sets of the star file (rlnRandomSubset)")


class FullBoxConfig(FrozenConfig):
    """Refinement at the full box: both half sets, from the poses of the search to Nyquist of the stored images."""

    iterations: int = Field(
        default=8, ge=0, description="iterations at most, until poses and resolution settle; 0 for none"
    )
    max_resolution_angstrom: float | None = Field(
        default=None, gt=0, description="resolution in Å beyond which nothing is refined; None for Nyquist"
    )
    ctf_refinement: bool = Field(
        default=False, description="refine the defocus of each particle and the astigmatism of each micrograph too"
    )
    non_uniform: bool = Field(
        default=False, description="filter the references voxel by voxel, by cross-validation of the half maps"
    )
    solvent_flattening: bool = Field(
        default=True, description="mask the references by the automatic mask of the half maps, at each iteration"
    )
