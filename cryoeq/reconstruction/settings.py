"""Settings of an ab initio reconstruction, built once and handed down."""

from dataclasses import dataclass

from cryoeq.reconstruction.initial_model import InitialModelSettings
from cryoeq.reconstruction.state import RefinementSettings


@dataclass(frozen=True)
class AbInitioSettings:
    """Settings of a reconstruction from noise.

    Args:
        min_starts: random starts at least; 1 skips the check of reproducibility.
        max_starts: random starts at most.
        initial_model: settings of each random start.
        refinement: settings of consensus and half-set refinement.
        symmetry: name of the point group to impose, for example C4.
        pixel_size_angstrom: pixel size of the particles.
        seed: random seed of the run.
    """

    min_starts: int
    max_starts: int
    initial_model: InitialModelSettings
    refinement: RefinementSettings
    symmetry: str
    pixel_size_angstrom: float
    seed: int
