"""Memory that this process may use: of the machine, its control group, its shell and its scheduler."""

import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 2**20
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """One limit on memory.

    Args:
        name: what sets it, for messages.
        limit: bytes.
        in_use: bytes of this process that count towards it.
        is_shared: whether all processes of this machine share it.
    """

    name: str
    limit: int
    in_use: int
    is_shared: bool = True


def memory_limits(environment: Mapping[str, str] = os.environ) -> list[MemoryLimit]:
    """All limits that are known, the tightest first.

    Args:
        environment: variables of the environment, of which SLURM's are read.
    """
    own, machine = psutil.Process().memory_info(), psutil.virtual_memory().total + psutil.swap_memory().total
    limits = [
        MemoryLimit(name, limit, own.rss)
        for name, limit in (
            ("the memory of this machine", machine),
            ("the memory of this container or control group", _control_group()),
            ("the memory that SLURM granted", _slurm(environment)),
        )
        if limit is not None
    ]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(MemoryLimit("the limit of this shell, ulimit -v", soft, own.vms, is_shared=False))
    return sorted(limits, key=lambda limit: limit.limit - limit.in_use)


def _control_group() -> int | None:
    """The tightest limit of this process's control group and those above it, of version 2 or 1."""
    found: list[int] = []
    for line in _lines(_OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        found += [limit for folder in (group, *group.parents) for limit in _numbers(folder / name)]
    return min((limit for limit in found if limit < 2**60), default=None)  # version 1 says 2^63 for none


def _slurm(environment: Mapping[str, str]) -> int | None:
    """Memory of the job on this node."""
    try:
        if (per_node := int(environment.get("SLURM_MEM_PER_NODE", "0"))) > 0:
            return per_node * _MIB
        per_cpu, cpus = (int(environment.get(f"SLURM_{name}", "0")) for name in ("MEM_PER_CPU", "CPUS_ON_NODE"))
    except ValueError:
        return None
    return per_cpu * cpus * _MIB or None


def _numbers(path: Path) -> Iterator[int]:
    yield from (int(line) for line in _lines(path) if line.isdecimal())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
