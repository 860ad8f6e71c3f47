"""Limits on memory: of the machine, control groups of both versions, the shell and SLURM."""

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cryoeq.runtime import memory_limits as module
from cryoeq.runtime.memory_limits import memory_limits

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, and a process in none of them."""
    own = tmp_path / "own"
    own.touch()
    monkeypatch.setattr(module, "_OWN_GROUPS", own)
    monkeypatch.setattr(module, "_GROUPS", tmp_path / "groups")
    return tmp_path


def by_name(word: str, environment: dict[str, str] | None = None) -> list[int]:
    return [limit.limit for limit in memory_limits(environment or {}) if word in limit.name]


def test_the_machine_is_a_limit(groups: Path) -> None:
    del groups
    assert by_name("machine") == [psutil.virtual_memory().total + psutil.swap_memory().total]


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/user/job", {"user/job/memory.max": "max", "user/memory.max": str(3 * GIB)}, [3 * GIB]),
        ("0::/", {"memory.max": str(2 * GIB)}, [2 * GIB]),
        ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": str(GIB)}, [GIB]),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": str(2**63 - 4096)}, []),
        ("2:cpu:/job", {"memory/job/memory.limit_in_bytes": str(GIB)}, []),
        ("0::/gone", {}, []),
    ],
)
def test_control_groups(groups: Path, own: str, files: dict[str, str], expected: list[int]) -> None:
    (groups / "own").write_text(own + "\n")
    for name, content in files.items():
        path = groups / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert by_name("control group") == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, [4 * GIB]),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "8"}, [8 * GIB]),
        ({"SLURM_MEM_PER_NODE": "0"}, []),  # all of the node
        ({"SLURM_MEM_PER_NODE": "much"}, []),
    ],
)
def test_slurm(groups: Path, environment: dict[str, str], expected: list[int]) -> None:
    del groups
    assert by_name("SLURM", environment) == expected


def test_the_shell_and_the_tightest_limit_first() -> None:
    """A limit on address space counts all that the process has mapped."""
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({4 * GIB}, {4 * GIB}))\n"
        "from cryoeq.runtime.memory_limits import memory_limits\n"
        "first = memory_limits({'SLURM_MEM_PER_NODE': '8192'})[0]\n"
        "print(first.limit, first.in_use > 0, first.is_shared, 'ulimit' in first.name)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(4 * GIB), "True", "False", "True"]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 4 * GIB
