"""Where a reconstruction goes, and the record of the run that it resumes."""

from pathlib import Path
from typing import TYPE_CHECKING

from cryoeq.errors import ConfigError, DivergedError

if TYPE_CHECKING:
    from cryoeq.config.reconstruct import ReconstructConfig

_DEFAULT = "cryoeq_reconstruction"


def run_folder(output: Path | None, *, resumes: bool) -> Path:
    """The folder of ``-o``; without it the default's name, numbered where a new run finds it taken."""
    from cryoeq.outputs.run_folder import free_folder

    return output or (Path(_DEFAULT) if resumes else free_folder(_DEFAULT))


def record_to_resume(folder: Path, *, is_needed: bool) -> Path:
    """The ``job.json`` of a run; where it is not needed it may be missing, and a new run starts.

    Raises:
        ConfigError: it is needed, and missing or not the record of a run.
    """
    from cryoeq.config.loading import recorded_settings

    record = folder / "job.json"
    if is_needed and not record.is_file():
        raise ConfigError(f"{folder} holds no run to resume", "", "Check -o, or give PARTICLES to start a run")
    if is_needed and recorded_settings(record) is None:
        raise ConfigError(f"{record} is not the record of a run", "", "Restore it, or give PARTICLES to start a run")
    return record


def is_finished(config: "ReconstructConfig") -> bool:
    """Whether the run that is to be resumed has ended; says so, with its verdict, and writes nothing into its folder.

    Args:
        config: settings of the resumed run.

    Raises:
        ConfigError: the run had other settings.
        CheckpointError: there is no record of a run.
        DivergedError: the run found no structure.
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.domain.events import Note
    from cryoeq.outputs.run_folder import RunFolder
    from cryoeq.pipelines.reconstruct.checkpoints import is_done, require_same_settings

    require_same_settings(config)
    if not is_done(config.output):
        return False
    verdict = RunFolder(config.output).job().get("verdict", {})
    known = f" Verdict: {verdict['answer']}: {verdict['sentence']}" if verdict else ""
    draw(iter([Note(f"Nothing to resume: the run in {config.output} is done. Its files are left as they are.{known}")]))
    if verdict.get("answer") == "not found":
        raise DivergedError(f"the run in {config.output} found no structure", "", "Read its report.html")
    return True
