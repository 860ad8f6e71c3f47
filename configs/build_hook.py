"""Hook of the build: the wheel and the source archive say which commit they were made from."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMIT = "cryoeq/COMMIT"


class CommitHook(BuildHookInterface[Any]):
    """Adds ``cryoeq/COMMIT``: the commit of the checkout, ``-dirty`` where files differ from it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file; not to an editable install, whose commit changes, nor where there is no commit.

        Args:
            version: "standard", or "editable".
            build_data: what the build includes.
        """
        root = Path(self.root)
        if version == "editable" or (root / COMMIT).is_file():  # the latter: a source archive
            return
        commit = _git(root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
        if commit is None:
            return
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "COMMIT"
        path.write_text(f"{commit}\n", encoding="ascii")
        build_data["force_include"][str(path)] = COMMIT

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary file."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git about this folder; None where git is not installed or this is no checkout of its own."""
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
