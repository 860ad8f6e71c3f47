"""A function of a test's own file, called in several processes of one job."""

from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

# Its result goes to a file.
CHILD = """
import os, runpy, sys, torch, warnings
os.environ.update({environment!r})
torch.set_num_threads(1)
sys.stderr = sys.stdout = open({said!r}, "a", buffering=1)
from cryoeq.runtime.distributed import process_group
with process_group(torch.device("cpu")):
    result = runpy.run_path({file!r})[{name!r}](*{arguments!r})
    torch.save(result, {result!r})
"""


@pytest.fixture
def together(
    start_code: Callable[[str], ForkServerProcess], environments: Callable[[int], list[dict[str, str]]],
    codes_of: Callable[..., list[int]], tmp_path: Path,
) -> Callable[..., list[Any]]:  # fmt: skip
    """Calls a function of a test's file in several processes; their results by rank."""

    def run(count: int, file: str, name: str, *arguments: object) -> list[Any]:
        folder = tmp_path / f"{name}_{count}"
        folder.mkdir()
        processes = [
            start_code(
                CHILD.format(
                    environment=environment, said=str(folder / f"said_{rank}"), file=file, name=name,
                    arguments=arguments, result=str(folder / f"result_{rank}"),
                )
            )
            for rank, environment in enumerate(environments(count))
        ]  # fmt: skip
        said = [folder / f"said_{rank}" for rank in range(count)]
        assert codes_of(processes) == [0] * count, "\n".join(path.read_text() for path in said if path.exists())
        return [torch.load(folder / f"result_{rank}", weights_only=True) for rank in range(count)]

    return run
