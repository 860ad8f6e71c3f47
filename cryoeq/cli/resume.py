"""Where a reconstruction goes, and the record of the run that it resumes."""

from pathlib import Path

from cryoeq.errors import ConfigError

_DEFAULT = "cryoeq_reconstruction"


def run_folder(output: Path | None, *, resumes: bool) -> Path:
    """The folder of ``-o``; without it the default's name, numbered where a new run finds it taken."""
    from cryoeq.outputs.run_folder import free_folder

    return output or (Path(_DEFAULT) if resumes else free_folder(_DEFAULT))


def record_to_resume(folder: Path, *, is_needed: bool) -> Path:
    """The ``job.json`` of a run; where it is not needed it may be missing, and a new run starts.

    Raises:
        ConfigError: it is needed and missing.
    """
    record = folder / "job.json"
    if is_needed and not record.is_file():
        raise ConfigError(f"{folder} holds no run to resume", "", "Check -o, or give PARTICLES to start a run")
    return record
