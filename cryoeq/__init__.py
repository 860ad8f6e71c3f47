"""cryoeq: from a stack of cryo-EM particle images to a 3D map, without known poses."""

from pathlib import Path

__version__ = "0.2.0"


def version_and_commit() -> str:
    """The version, and the commit that the installed wheel was built from; an editable install does not say one."""
    path = Path(__file__).with_name("COMMIT")
    return f"{__version__} (commit {path.read_text('ascii').strip()})" if path.is_file() else __version__
