"""The map that simulations start from."""

import pytest

from cryoeq.domain.volume import Volume
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom


@pytest.fixture(scope="session")
def phantom_map() -> Volume:
    return sample_atoms(chiral_phantom(60.0), 32, 5.0)
