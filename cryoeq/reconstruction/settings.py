"""Settings of an ab initio reconstruction, built once and handed down."""

from dataclasses import dataclass, replace

from cryoeq.geometry.pointgroup import is_polyhedral
from cryoeq.reconstruction.initial_model import InitialModelSettings
from cryoeq.reconstruction.state import RefinementSettings

# The first rotational harmonics that T, O and I leave to a map are of degree 3, 4 and 6, the first that tell its hand
# of 9 (O) and 15 (I): what is not round in it is seen at higher shells.
_SHELL_FACTOR = 2
# About half of the starts on apoferritin keep the wrong sign of what is not round, and agree with each other; their
# log-likelihood at one noise is lower (``multi_start``).
_MIN_STARTS, _MAX_STARTS = 4, 8
_MAX_SHARED = 2 / 3  # of the particles' shells: half sets share what is found from the start


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

    @property
    def is_polyhedral(self) -> bool:
        """Whether the point group is T, O or I."""
        return is_polyhedral(self.symmetry)

    @property
    def starts_symmetric(self) -> bool:
        """Whether symmetry is imposed from the first map."""
        return self.initial_model.symmetry is not None

    def with_symmetric_start(self, last_shell: int) -> "AbInitioSettings":
        """Symmetry imposed from the first map, more shells in initial model and consensus refinement, and more starts.

        Args:
            last_shell: the last shell of the particles.
        """
        initial, refinement = self.initial_model, self.refinement
        furthest = min(int(_MAX_SHARED * last_shell), refinement.max_exhaustive_shell)
        reach = max(initial.last_shell, min(_SHELL_FACTOR * initial.last_shell, furthest))
        initial = replace(
            initial,
            symmetry=refinement.symmetry,
            first_shell=min(_SHELL_FACTOR * initial.first_shell, reach),
            last_shell=reach,
        )
        shells = tuple(max(shell, reach) for shell in refinement.consensus_shells)
        starts = self.min_starts if self.min_starts == 1 else max(self.min_starts, _MIN_STARTS)
        return replace(
            self,
            min_starts=starts,
            max_starts=max(self.max_starts, _MAX_STARTS if starts > 1 else 1),
            initial_model=initial,
            refinement=replace(refinement, consensus_shells=shells),
        )
