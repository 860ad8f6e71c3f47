"""The compiled sums of exact slices are torch's, bit by bit, and so are those of any number of points at a time."""

import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.simulation.slicing import FourierSampler


@pytest.mark.parametrize("n", [16, 17])
def test_compiled_sums_are_those_of_torch(n: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, plane = FourierSampler(torch.randn(n, n, n, generator=generator)), HalfPlane.up_to(n, (n - 1) / 2)
    rotations = random_rotations(30, generator)
    plain = sampler.slices(rotations, plane)
    monkeypatch.setattr("cryoeq.simulation.slicing._WORTH_COMPILING", 0)
    monkeypatch.setattr("cryoeq.simulation.slicing._POINTS_ON_CPU", 100)
    assert torch.equal(sampler.slices(rotations, plane), plain)
    assert plain.abs().min() > 0


def test_float64_is_summed_by_torch(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, rotations = torch.randn(12, 12, 12, generator=generator), random_rotations(5, generator)
    plane = HalfPlane.up_to(12, 5.5)
    monkeypatch.setattr("cryoeq.simulation.slicing._WORTH_COMPILING", 0)
    double = FourierSampler(volume.double()).slices(rotations.double(), plane)
    assert double.dtype == torch.complex128
    torch.testing.assert_close(double.to(torch.complex64), FourierSampler(volume).slices(rotations, plane))
