"""The encoder by torch.compile: asked for, impossible, and (slow) the same numbers."""

import subprocess
import sys

import pytest
from torch import nn

from cryoeq.runtime import compiling
from cryoeq.runtime.compiling import compile_if_possible, find_compiler

SAME_NUMBERS = """
import torch
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.runtime.compiling import compile_if_possible
torch.set_num_threads(1)
found = []
for is_requested in (False, True):
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", 16, 2, (32,), trunk="dense")
    list(compile_if_possible(encoder, is_requested=is_requested))
    proposals = encoder(torch.randn(8, 16, 16))
    (proposals.rotations[..., 0, 0].sum() + proposals.shifts_px.square().sum()).backward()
    found.append((proposals.rotations, *(value.grad for value in encoder.parameters() if value.grad is not None)))
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
assert len(found[0]) == len(found[1]) > 2
for eager, compiled in zip(*found, strict=True):
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-3)
"""


def test_nothing_happens_unless_asked_for() -> None:
    layer = nn.Linear(2, 2)
    assert list(compile_if_possible(layer, is_requested=False)) == []
    assert layer._compiled_call_impl is None


def test_without_a_compiler_the_encoder_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert find_compiler() is None
    layer = nn.Linear(2, 2)
    (note,) = compile_if_possible(layer, is_requested=True)
    assert "torch.compile skipped: no C++ compiler found" in note.text
    assert layer._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when the compiler is imported
def test_parameters_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_compiler", lambda: "g++")
    layer = nn.Linear(2, 2)
    names = list(layer.state_dict())
    (note,) = compile_if_possible(layer, is_requested=True)
    assert "can take minutes" in note.text
    assert layer._compiled_call_impl is not None
    assert list(layer.state_dict()) == names


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_compiled_numbers_are_those_of_the_encoder() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAME_NUMBERS], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
