"""``cryoeq doctor``: check of the machine and the installation, with remedies for what is missing."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import cryoeq
from cryoeq.config.loading import packaged_file
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import ConfigError
from cryoeq.runtime.compiling import find_compiler

_DISTRIBUTIONS = (
    "torch", "numba", "numpy", "scipy", "mrcfile", "starfile", "gemmi", "pydantic",
    "pyfftw", "matplotlib", "typer", "rich",
)  # fmt: skip
# Packages that use compiled libraries: importing them shows whether those work.
_PACKAGES = ("cryoeq.equivariance", "cryoeq.io.particles", "cryoeq.physics.projection", "cryoeq.outputs.figure")
_PACKAGED_FILES = ("configs", "data_samples")
_INSTALL_AGAIN = "Install cryoeq again as the README says, with pip install --force-reinstall and its wheel or folder"
_GIB = 1024**3


@dataclass(frozen=True)
class Problem:
    """A missing or broken part of the installation.

    Args:
        what: the missing or broken part.
        remedy: how to mend it.
        is_fatal: whether cryoeq cannot work without it.
    """

    what: str
    remedy: str
    is_fatal: bool


@dataclass(frozen=True)
class Diagnosis:
    """Findings of the check.

    Args:
        sections: facts as label and value, by title.
        problems: missing or broken parts.
    """

    sections: Mapping[str, Mapping[str, str]]
    problems: tuple[Problem, ...]

    @property
    def is_usable(self) -> bool:
        """Whether cryoeq can work here."""
        return not any(problem.is_fatal for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Findings for JSON."""
        return {**asdict(self), "is_usable": self.is_usable}


def diagnose() -> Diagnosis:
    """Check the machine and the installation; missing parts are findings, not errors."""
    sections = {"Machine": _machine(), "Devices": _devices(), "Versions": _versions()}
    problems = (*_missing_distributions(), *_broken_packages(), *_missing_files(), *_slow_parts())
    return Diagnosis(sections, problems)


def report_diagnosis(diagnosis: Diagnosis) -> Iterator[Event]:
    """Report the findings.

    Yields:
        One report for each section, one note for each problem, and the verdict.
    """
    for title, facts in diagnosis.sections.items():
        yield Report(title, facts)
    for problem in diagnosis.problems:
        yield Note(f"{problem.what}. {problem.remedy}.", "warning" if problem.is_fatal else "info")
    if diagnosis.is_usable:
        yield Note("cryoeq can work here.")


def require_usable(diagnosis: Diagnosis) -> None:
    """Refuse an installation that cannot work.

    Raises:
        ConfigError: something that cryoeq needs is missing.
    """
    fatal = [problem for problem in diagnosis.problems if problem.is_fatal]
    if fatal:
        raise ConfigError(
            f"this installation cannot work: {'; '.join(problem.what for problem in fatal)}",
            "",
            fatal[0].remedy,
        )


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "System": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU cores": f"{_usable_cores()} usable, torch uses {torch.get_num_threads()}",
        "Memory": f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
        "Disk, here": f"{_free_gib(Path.cwd()):.1f} GiB free",
        "Disk, temporary": f"{_free_gib(Path(tempfile.gettempdir())):.1f} GiB free in {tempfile.gettempdir()}",
        "C++ compiler": find_compiler() or "none",
    }


def _devices() -> dict[str, str]:
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU only"
        )
        return {"cpu": "the default", "cuda": f"none ({built})"}
    devices = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices[f"cuda:{index}"] = f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    return devices


def _versions() -> dict[str, str]:
    versions = {"cryoeq": cryoeq.version_and_commit(), "Python": platform.python_version()}
    versions |= {name: _version(name) or "missing" for name in _DISTRIBUTIONS}
    return versions | {"CUDA of torch": torch.version.cuda or "none"}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing_distributions() -> Iterator[Problem]:
    for name in _DISTRIBUTIONS:
        if _version(name) is None:
            yield Problem(f"{name} is not installed", _INSTALL_AGAIN, is_fatal=True)


def _broken_packages() -> Iterator[Problem]:
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken library may raise anything, and finding it is the job
            yield Problem(
                f"{name} cannot be imported ({type(error).__name__}: {_first_line(error)})",
                _INSTALL_AGAIN,
                is_fatal=True,
            )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


def _missing_files() -> Iterator[Problem]:
    for name in _PACKAGED_FILES:
        try:
            packaged_file(name)
        except ConfigError as error:
            yield Problem(str(error).rstrip("."), _INSTALL_AGAIN, is_fatal=True)


def _slow_parts() -> Iterator[Problem]:
    if not torch.cuda.is_available():
        yield Problem(
            "No CUDA device",
            "All works on the CPU, large boxes slowly; for an NVIDIA GPU install its driver and torch's CUDA build",
            is_fatal=False,
        )
    if find_compiler() is None:
        yield Problem(
            "No C++ compiler", "Only encoder.compiled=true needs one (Debian: apt-get install g++)", is_fatal=False
        )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / _GIB
