"""``cryoeq cite``: what to cite for a run, or for every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cryoeq.errors import OutputError
from cryoeq.io.text import read_json
from cryoeq.outputs.citations import METHODS, Method, methods_of, software


def cite(run: Path | None, *, as_bibtex: bool = False) -> str:
    """The text of ``cryoeq cite``.

    Args:
        run: folder of a reconstruction or a refinement; None for all methods.
        as_bibtex: BibTeX entries in the place of a list by methods.

    Raises:
        OutputError: the folder holds no run, or a run of another command.
    """
    if run is None:
        return _text(software(), METHODS, as_bibtex=as_bibtex)
    job = _job(run)
    settings = job.get("settings")
    methods = [*methods_of(settings)] if isinstance(settings, Mapping) else []
    if not methods:
        raise OutputError(
            f"{run} holds no reconstruction", "Expected a folder of cryoeq reconstruct or refine",
            "cryoeq cite without a folder lists all methods",
        )  # fmt: skip
    commit, version = (str(job.get(key) or "") for key in ("commit", "version"))
    return _text(software(commit.partition(",")[0] or None, version), methods, as_bibtex=as_bibtex)


def _job(run: Path) -> Mapping[str, object]:
    """The record of a run; empty where there is none, or where it is not one."""
    try:
        job: object = read_json(run / "job.json") if (run / "job.json").is_file() else {}
    except ValueError:  # not JSON
        return {}
    return job if isinstance(job, Mapping) else {}


def _text(own: str, methods: Sequence[Method], *, as_bibtex: bool) -> str:
    if as_bibtex:
        papers = dict.fromkeys(paper for method in methods for paper in method.papers)
        note = f"@misc{{cryoeq,\n  title = {{{{{own}}}}},\n}}"
        return "\n\n".join([note, *(paper.bibtex() for paper in papers)]) + "\n"
    lines = [own, ""]
    for method in methods:
        lines += [f"{method.name}:", *(f"  {paper.reference()}" for paper in method.papers), ""]
    return "\n".join(lines)
