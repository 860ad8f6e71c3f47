"""Record and particles of an earlier reconstruction, opened with the settings of that run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from cryoeq.config.loading import with_current_keys
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import CONTRAST_SIGNS
from cryoeq.errors import OutputError, ParticleFileError
from cryoeq.io.particles import ParticleStack, read_particles, star_ctf
from cryoeq.io.star import StarTable
from cryoeq.outputs.run_folder import RunFolder


class _Note(BaseModel):
    text: str
    level: str


class _InputFile(BaseModel):
    path: str


class _Class(BaseModel):
    number: int
    particles: int
    share: float
    symmetry: str = "C1"
    reproduced: float | None = None
    nonspherical_share: float | None = None
    nonspherical_resolution_angstrom: float | None = None
    unexplained_share: float | None = None
    explained_signal_share: float | None = None
    hand_t: float | None = None
    hand_probability: float | None = None


class _Results(BaseModel):
    classes: list[_Class] | None = None
    class_agreement: float | None = None
    class_moves: list[list[int]] | None = None


class _Record(BaseModel):
    """What the readers of ``job.json`` rely on; it holds more."""

    status: str
    started: str = ""
    settings: dict[str, Any]
    command: list[str] = []
    inputs: list[_InputFile] = []
    results: _Results = _Results()
    notes: list[_Note] = []
    resumed: list[str] = []


class _MultiStart(BaseModel):
    min: int


class _Consensus(BaseModel):
    shells: list[int] = Field(min_length=1)


class _Search(BaseModel):
    symmetry: str
    multi_start: _MultiStart
    consensus: _Consensus


class _Input(BaseModel):
    angpix: float | None
    datadir: str | None
    with_ctf: bool
    contrast: str
    particle_diameter_angstrom: float | None = None


class _Settings(BaseModel):
    """Settings of the run, under current keys, that its readers rely on."""

    pose_inference: str
    search: _Search
    input: _Input


def read_reconstruction_job(run: RunFolder, advice: str) -> dict[str, Any]:
    """The ``job.json`` of a reconstruction, its settings under current keys.

    Args:
        run: folder of the run.
        advice: last sentence of the error where the folder holds no reconstruction.

    Raises:
        OutputError: there is no record, it is not one of a reconstruction, or it is damaged; the message names the
            value.
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
    _require_sound(_Record, job, run)
    settings = with_current_keys(ReconstructConfig, job["settings"], str(run.path("job.json")), is_finished=True)
    _require_sound(_Settings, settings, run)
    return job | {"settings": settings}


def _require_sound(model: type[BaseModel], record: Mapping[str, Any], run: RunFolder) -> None:
    try:
        model.model_validate(record, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f"{run.path('job.json')} is damaged: {where} is {first['input']!r:.100}"
        raise OutputError(found, first["msg"], "Restore the file") from error


def open_particles(
    job: Mapping[str, Any],
    datadir: Path | None,
    *,
    count: int,
    box_size_px: int,
    max_box_px: int,
    cache_bytes: int = 0,
    rows: Int[Tensor, " rows"] | None = None,
    star: StarTable | None = None,
) -> tuple[ParticleStack, ParticleDataset]:
    """The stack of a run, read with the settings of the run.

    Args:
        job: record of the run.
        datadir: folder in which the stacks are looked for first; None for that of the run.
        count: number of particles in the run.
        box_size_px: box of the particles in the run.
        max_box_px: size to which larger boxes are cropped in Fourier space.
        cache_bytes: maximum size of the cropped stack that is kept in memory.
        rows: rows of the particles to open, as of one class; None for all.
        star: these rows of ``run_data.star``, whose CTF counts where the run refined it; None for that of the stack.

    Raises:
        ParticleFileError: the stack was moved or changed since.
    """
    settings = job["settings"]["input"]
    if not job.get("inputs"):
        raise ParticleFileError("the record of the run (job.json) names no particles", "", "Restore the file")
    source = Path(job["inputs"][0]["path"])
    folder = datadir or (Path(settings["datadir"]) if settings["datadir"] else None)
    stack = read_particles(source, angpix=settings["angpix"], datadir=folder, ignore_ctf=not settings["with_ctf"])
    box = stack.table.box_size_px
    if len(stack.table) != count or box != box_size_px:
        found = f"{source} holds {len(stack.table)} particles of {box} px now"
        raise ParticleFileError(
            found, f"The results of the run (run_data.star, run_class001.mrc) are of {count} of {box_size_px} px"
        )
    working_box_px = min(max_box_px, box)
    stack = stack if rows is None else stack.rows(rows)
    if star is not None and stack.table.ctf is not None and job["settings"].get("full_box", {}).get("ctf_refinement"):
        refined, stated = star_ctf(star), stack.table.ctf
        ctf = None if refined is None else replace(refined, flipped_by=stated)
        stack = replace(stack, table=replace(stack.table, ctf=ctf))
    return stack, ParticleDataset.open(
        stack, working_box_px=working_box_px, sign=CONTRAST_SIGNS[settings["contrast"]], cache_bytes=cache_bytes,
        particle_diameter_angstrom=settings.get("particle_diameter_angstrom"),
    )  # fmt: skip
