"""The first compilation is said; what was kept is not compiled again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cryoeq.domain.events import Progress
from cryoeq.pipelines.reconstruct.compiling import STAGE, compile_kernels
from cryoeq.reconstruction import kernel_cache

CPU = torch.device("cpu")


def test_compilation_is_said_where_there_is_no_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "is_compiled", lambda: False)
    assert list(compile_kernels(CPU)) == [Progress(STAGE, 0, 1), Progress(STAGE, 1, 1)]
    assert list(compile_kernels(torch.device("cuda:0"))) == []
    monkeypatch.undo()
    assert list(compile_kernels(CPU)) == []


def test_what_was_kept_is_found_by_the_next_process(tmp_path: Path) -> None:
    """A folder without it is not: the message depends on what is there."""
    kernel_cache.compile_now()
    program = "from cryoeq.reconstruction.kernel_cache import is_compiled; print(is_compiled())"

    def says(**environment: str) -> str:
        found = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
        )
        return found.stdout.strip()

    ours = dict(os.environ)
    assert says(**ours) == "True"
    assert says(**ours, NUMBA_CACHE_DIR=str(tmp_path)) == "False"
