"""The Dockerfile: what its last stage holds, and (slow) that it builds and that the demo runs in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def stages() -> list[list[str]]:
    """The instructions of each stage, lines joined; comments and what precedes the first stage left out."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_the_last_stage_only_copies_what_was_installed() -> None:
    build, last = stages()
    assert build[0] == "FROM ${BASE_IMAGE} AS build"
    assert last[0] == "FROM ${BASE_IMAGE}"
    assert any(line.startswith("COPY --from=build /opt/venv") for line in last)
    assert not any(word in line for line in last for word in ("apt", "pip install", "COPY ."))
    installs = [line for line in build if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-index --no-deps /opt/cryoeq-*.whl" in installs[1]
    assert any(line.startswith("COPY dist/cryoeq-*.whl") for line in build)
    kinds = {line.split()[0]: line for line in last}
    assert kinds["ENTRYPOINT"] == 'ENTRYPOINT ["cryoeq"]'
    assert kinds["HEALTHCHECK"].endswith('CMD ["cryoeq", "doctor"]')
    assert kinds["USER"] == "USER cryoeq"
    assert "org.opencontainers.image.licenses" in kinds["LABEL"]


def _buildah(*arguments: str, timeout_s: float = 1800) -> str:
    command = ["buildah", "--storage-driver", "vfs", *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s)
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0, reason="a container is built as root")
@pytest.mark.skipif(not (shutil.which("buildah") and shutil.which("debootstrap")), reason="no buildah or debootstrap")
def test_the_image_builds_and_the_demo_runs_in_it(tmp_path: Path) -> None:
    """``CRYOEQ_BUILD_OPTIONS``: options of ``buildah bud`` that this machine needs, such as volumes of a mirror."""
    packages = "--include=python3,python3-venv,ca-certificates"
    bootstrap = ["debootstrap", "--variant=minbase", packages, "bookworm", str(tmp_path / "root")]
    subprocess.run(bootstrap, check=True, capture_output=True, timeout=1200)
    base = _buildah("from", "scratch")
    _buildah("add", base, str(tmp_path / "root"), "/")
    _buildah("commit", "--rm", base, "localhost/cryoeq-base")
    context = tmp_path / "context"
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(context / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, context)
    shutil.copytree(ROOT / "configs" / "cluster", context / "configs" / "cluster")
    more = shlex.split(os.environ.get("CRYOEQ_BUILD_OPTIONS", ""))
    options = ["--isolation", "chroot", "--format", "docker", "--build-arg", "BASE_IMAGE=localhost/cryoeq-base"]
    _buildah("bud", *options, "--build-arg", "LOCK=cpu", *more, "-t", "localhost/cryoeq", str(context))
    container = _buildah("from", "localhost/cryoeq")
    try:
        inside = ["run", "--isolation", "chroot", container, "--"]
        assert _buildah(*inside, "id", "-un") == "cryoeq"
        assert re.fullmatch(r"cryoeq \S+ \(commit [0-9a-f]{40}(-dirty)?\)", _buildah(*inside, "cryoeq", "--version"))
        doctor = _buildah(*inside, "cryoeq", "doctor")
        assert "C++ compiler" in doctor
        assert "none" in doctor.split("C++ compiler")[1].splitlines()[0]
        said = _buildah(*inside, "cryoeq", "demo", "--quick", "-o", "/tmp/demo")
        assert "found" in said
    finally:
        _buildah("rm", container)
        _buildah("rmi", "localhost/cryoeq", "localhost/cryoeq-base")
