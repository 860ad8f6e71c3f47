"""Fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest
import torch

_REFERENCE = Path(os.environ.get("CRYOEQ_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real and reference data; tests that use it are marked ``realdata``."""
    if not _REFERENCE.is_dir():
        pytest.skip(f"no reference data at {_REFERENCE}; set CRYOEQ_REFERENCE_DATA")
    return _REFERENCE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
