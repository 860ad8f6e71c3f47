"""pip alone installs the wheel: no compiler, no other installer, nothing overridden; and the locks serve it."""

import email.message
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import cryoeq

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "configs" / "cluster").glob("*.lock"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def files(built: Path) -> dict[str, bytes]:
    """The files of the wheel by name."""
    (wheel,) = built.glob("cryoeq-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(files: dict[str, bytes]) -> email.message.Message:
    return email.message_from_bytes(files[f"cryoeq-{cryoeq.__version__}.dist-info/METADATA"])


def needed(distribution: importlib.metadata.Distribution) -> Iterator[Requirement]:
    """What a distribution needs on this machine, without extras."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def test_everything_that_is_needed_is_installed_and_came_as_a_wheel(metadata: email.message.Message) -> None:
    """Of what was compiled here, the tag would be that of this machine only, such as linux_x86_64."""
    waiting = [Requirement(line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    seen: dict[str, str] = {}
    while waiting:
        requirement = waiting.pop()
        distribution = importlib.metadata.distribution(requirement.name)  # fails where an override left it out
        assert requirement.specifier.contains(distribution.version, prereleases=True), requirement
        if canonicalize_name(requirement.name) not in seen:
            tags = re.findall(r"^Tag: (\S+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
            assert tags, requirement.name
            assert all("-none-any" in tag or tag.split("-")[2] != "linux_x86_64" for tag in tags), (requirement, tags)
            seen[canonicalize_name(requirement.name)] = distribution.version
            waiting += needed(distribution)
    assert len(seen) > len(PROJECT["dependencies"])
    assert not {"escnn", "lie-learn", "py3nj", "joblib"} & seen.keys()


def test_the_metadata(metadata: email.message.Message, files: dict[str, bytes]) -> None:
    assert metadata["Version"] == cryoeq.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    pythons = [line for line in metadata.get_all("Classifier", []) if "Python :: 3" in line]
    assert pythons == [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)]
    assert set(metadata.get_all("Provides-Extra", [])) == {"test"}
    direct = [line for line in metadata.get_all("Requires-Dist", []) if " @ " in line]
    assert not direct, "an index would refuse it"
    folder = f"cryoeq-{cryoeq.__version__}.dist-info"
    assert b"cryoeq = cryoeq.cli.main:main" in files[f"{folder}/entry_points.txt"]
    assert files[f"{folder}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_holds_the_package_and_nothing_else(files: dict[str, bytes]) -> None:
    folder = f"cryoeq-{cryoeq.__version__}.dist-info/"
    assert {name.split("/")[0] for name in files} == {"cryoeq", folder.rstrip("/")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "cryoeq").rglob("*.py")}
    assert sources == {name for name in files if name.endswith(".py")}
    assert "cryoeq/py.typed" in files
    assert sum(map(len, files.values())) < 8 * 2**20


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_wheel_and_archive_say_their_commit(built: Path, files: dict[str, bytes]) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    said = files["cryoeq/COMMIT"].decode().strip()
    assert said.removesuffix("-dirty") == head.strip()
    with tarfile.open(built / f"cryoeq-{cryoeq.__version__}.tar.gz") as archive:
        member = archive.extractfile(f"cryoeq-{cryoeq.__version__}/cryoeq/COMMIT")
        assert member is not None
        assert member.read().decode().strip() == said
        names = set(archive.getnames())
    for name in ("LICENSE", "README.md", "configs/build_hook.py", "pyproject.toml", "tests/packaging/test_metadata.py"):
        assert f"cryoeq-{cryoeq.__version__}/{name}" in names


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_a_hash_of_everything_and_all_that_is_needed(lock: Path) -> None:
    text = re.sub(r"^#.*\n|^--extra-index-url .*\n", "", lock.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    pinned: dict[str, list[Version]] = {}
    for line in lines:
        requirement = Requirement(line.split("--hash")[0].strip())
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        pinned.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        versions = pinned[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement
    assert pinned["torch"][0].public == "2.13.0"


def test_there_are_two_locks() -> None:
    assert [lock.name for lock in LOCKS] == ["cpu.lock", "cuda.lock"]
