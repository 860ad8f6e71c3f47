"""A small molecule and its map, shared by these tests."""

import pytest
import torch

from cryoeq.domain.atoms import Atoms
from cryoeq.domain.volume import Volume
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom


@pytest.fixture(scope="session")
def phantom() -> Atoms:
    return chiral_phantom(60.0)


@pytest.fixture(scope="session")
def phantom_map(phantom: Atoms) -> Volume:
    return sample_atoms(phantom, 32, 5.0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
