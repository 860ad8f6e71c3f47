"""Plugin of pytest, used where ``PRETENDED_CUDA`` is set: the devices are there before any test is imported."""

import pytest

from pretended_cuda.environment import install_from_environment
from pretended_cuda.machine import MACHINE, PretendedCudaError

install_from_environment()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What is said about a test is that test's."""
    MACHINE.complaints.clear()


@pytest.hookimpl(trylast=True)  # after fixtures, which may have asked for an error
def pytest_runtest_teardown() -> None:
    """Errors that a GPU would not tell (streams, pinned memory) fail the test in which they were seen."""
    if MACHINE.complaints:
        raise PretendedCudaError("; ".join(dict.fromkeys(MACHINE.complaints)))
