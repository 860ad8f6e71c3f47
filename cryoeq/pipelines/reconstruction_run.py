"""The particles of a finished reconstruction, opened again as the run saw them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryoeq.config.loading import with_current_keys
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.errors import OutputError, ParticleFileError
from cryoeq.io.particles import ParticleStack, read_particles
from cryoeq.outputs.run_folder import RunFolder


def read_reconstruction_job(run: RunFolder, advice: str) -> dict[str, Any]:
    """The record of a reconstruction, its settings under today's keys.

    Args:
        run: its folder.
        advice: what to do where it is none.

    Raises:
        OutputError: there is no record, or it is not one of a reconstruction.
    """
    if not run.path("job.json").is_file():
        raise OutputError(f"{run.folder} holds no job.json", "Expected the folder of a reconstruction", advice)
    try:
        job = run.job()
        is_reconstruction = "pose_inference" in job["settings"]
    except (ValueError, KeyError, TypeError):  # not JSON, or the job.json of another program
        is_reconstruction = False
    if not is_reconstruction:
        raise OutputError(f"{run.path('job.json')} is not the record of a reconstruction", "", advice)
    settings = with_current_keys(ReconstructConfig, job["settings"], str(run.path("job.json")))
    return job | {"settings": settings}


def open_particles(
    job: Mapping[str, Any], datadir: Path | None, *, count: int, box_size_px: int, largest_px: int, cache_bytes: int = 0
) -> tuple[ParticleStack, ParticleDataset]:
    """The stack of a run, with the settings of the run.

    Args:
        job: its record.
        datadir: where to look first for the stacks; None for where the run looked.
        count: particles that the run had.
        box_size_px: their box.
        largest_px: larger boxes are cropped to this one.
        cache_bytes: largest size of the cropped stack that is kept in memory.

    Raises:
        ParticleFileError: the stack is not where or what it was.
    """
    given = job["settings"]["input"]
    source = Path(job["inputs"][0]["path"])
    told = datadir or (Path(given["datadir"]) if given["datadir"] else None)
    stack = read_particles(source, angpix=given["angpix"], datadir=told, ignore_ctf=not given["with_ctf"])
    box = stack.table.box_size_px
    if len(stack.table) != count or box != box_size_px:
        found = f"{source} holds {len(stack.table)} particles of {box} px now"
        raise ParticleFileError(found, f"Expected the {count} of {box_size_px} px that the run had")
    working = min(largest_px, box)
    return stack, ParticleDataset.open(
        stack, working_box_px=working, sign=CONTRAST_SIGNS[given["contrast"]], cache_bytes=cache_bytes
    )
