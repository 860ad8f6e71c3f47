"""Folders of results."""

from pathlib import Path

from cryoeq.errors import OutputError


def make_folder(path: Path) -> Path:
    """Make a folder where it is missing, and keep what it holds; the same path.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made a folder ({error.strerror})", "", "Choose another -o") from error
    return path
