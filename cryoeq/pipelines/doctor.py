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
_LEAST_MEMORY_GIB, _LEAST_DISK_GIB = 2.0, 1.0  # what the demo takes, several times
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Problem:
    """A missing or broken part of the installation.

    Args:
        what: the missing or broken part.
        remedy: how to mend it.
        is_fatal: whether cryoeq cannot work without it.
        hinders: whether the machine could do more than it does for the lack of it.
    """

    what: str
    remedy: str
    is_fatal: bool
    hinders: bool = False

    @property
    def sentence(self) -> str:
        """What it is, and how to mend it."""
        return f"{self.what}. {self.remedy}."


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

    @property
    def summary(self) -> str:
        """In one line: what is wrong and how to mend it, the worst first, or that all is well."""
        fatal = [problem for problem in self.problems if problem.is_fatal]
        if fatal:
            more = f" {len(fatal) - 1} more below." if len(fatal) > 1 else ""
            return f"cryoeq cannot work here: {fatal[0].sentence}{more}"
        hindering = [problem.sentence for problem in self.problems if problem.hinders]
        if hindering:
            return f"cryoeq can work here, but: {' '.join(hindering)}"
        gpus = [value.partition(",")[0] for name, value in self.sections["Devices"].items() if name.startswith("cuda:")]
        free = self.sections["Machine"]["Memory"].partition(" of ")[0]
        here = f"on {gpus[0] if gpus else 'the CPU'}, threads: {torch.get_num_threads()}, memory: {free} GiB free"
        return f"All is well: cryoeq can work here, {here}."

    def as_dict(self) -> dict[str, Any]:
        """Findings for JSON."""
        return {"summary": self.summary, **asdict(self), "is_usable": self.is_usable}


def diagnose() -> Diagnosis:
    """Check the machine and the installation; missing parts are findings, not errors."""
    sections = {"Machine": _machine(), "Devices": _devices(), "Versions": _versions()}
    problems = (
        *_missing_distributions(), *_broken_packages(), *_missing_files(), *_little_room(), *_slow_parts()
    )  # fmt: skip
    return Diagnosis(sections, problems)


def report_diagnosis(diagnosis: Diagnosis) -> Iterator[Event]:
    """Report the findings.

    Yields:
        The summary, one report for each section, and one note for each problem.
    """
    yield Report(diagnosis.summary, {})
    for title, facts in diagnosis.sections.items():
        yield Report(title, facts)
    for problem in diagnosis.problems:
        yield Note(problem.sentence, "warning" if problem.is_fatal or problem.hinders else "info")


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


def _little_room() -> Iterator[Problem]:
    free = psutil.virtual_memory().available / _GIB
    if free < _LEAST_MEMORY_GIB:
        what = f"Only {free:.1f} GiB of memory are free"
        yield Problem(what, "End other programs, or use a machine with more", is_fatal=False, hinders=True)
    for what, folder, remedy in (
        ("in this folder", Path.cwd(), "Free some space, or work in another folder"),
        ("for temporary files", Path(tempfile.gettempdir()), "Free some space, or set TMPDIR to another folder"),
    ):
        if (free := _free_gib(folder)) < _LEAST_DISK_GIB:
            yield Problem(f"Only {free:.1f} GiB of disk are free {what}", remedy, is_fatal=False, hinders=True)


def _slow_parts() -> Iterator[Problem]:
    if not torch.cuda.is_available():
        yield _no_gpu()
    if find_compiler() is None:
        yield Problem(
            "No C++ compiler", "Only encoder.compiled=true needs one (Debian: apt-get install g++)", is_fatal=False
        )


def _no_gpu() -> Problem:
    """That there is none, or that torch does not use the one that is there."""
    if not _DRIVER.exists():
        remedy = "All works on the CPU, large boxes slowly; for an NVIDIA GPU install its driver and torch's CUDA build"
        return Problem("No CUDA device", remedy, is_fatal=False)
    what = "There is an NVIDIA driver, but torch finds no GPU"
    if torch.version.cuda is None:
        remedy = "This torch is for CPUs only; for the other: pip install --force-reinstall torch"
    else:
        remedy = (
            f"Its CUDA is {torch.version.cuda}: nvidia-smi tells what the driver has, and CUDA_VISIBLE_DEVICES hides"
        )
    return Problem(what, remedy, is_fatal=False, hinders=True)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_gib(folder: Path) -> float:
    return shutil.disk_usage(folder).free / _GIB
