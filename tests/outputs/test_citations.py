"""``cryoeq cite``: papers of the methods that a run used, and of no others."""

import re
from pathlib import Path

import pytest

from cryoeq.cli.main import run
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.io.text import write_json
from cryoeq.outputs.citations import METHODS, Paper, methods_of

# The papers that cryoeq grows from, by their numbers in the arXiv.
FOUNDATIONS = {
    "2409.08741", "2406.03946", "2406.01630", "2311.10156", "2311.08170", "2212.06096", "2210.13150", "2004.09691",
    "1911.08251",
}  # fmt: skip


def papers(settings: dict[str, object]) -> set[Paper]:
    config = load_config(ReconstructConfig, explicit={"particles": "a.star", "output": "b", **settings})
    return {paper for method in methods_of(config.model_dump(mode="json")) for paper in method.papers}


def numbers(found: set[Paper]) -> set[str]:
    return {paper.arxiv for paper in found if paper.arxiv}


def names(found: set[Paper]) -> set[str]:
    return {paper.key for paper in found}


def test_every_paper_can_be_found_and_has_a_key_of_its_own() -> None:
    every = {paper for method in METHODS for paper in method.papers}
    assert len({paper.key for paper in every}) == len(every)
    assert numbers(every) >= FOUNDATIONS
    for paper in every:
        assert bool(paper.doi) != bool(paper.arxiv), paper
        assert re.fullmatch(r"10\.\d{4,}/\S+|\d{4}\.\d{5}", paper.doi or paper.arxiv), paper
        assert 1990 < paper.year < 2030
        assert paper.key.isascii(), "BibTeX and \\cite of older engines read no other keys"
        for name in paper.authors.split(", "):
            assert re.fullmatch(r"[^\d,]+ [A-Z]{1,4}", name), name


def test_a_run_is_cited_for_what_it_did() -> None:
    search, hybrid = papers({}), papers({"pose_inference": "hybrid"})
    assert not numbers(search), "a search has no encoder"
    assert names(search) >= {"scheres2012bayesian", "punjani2017cryosparc", "scheres2012prevention"}
    assert search < hybrid
    assert numbers(hybrid) == {"2406.01630", "1911.08251", "2302.06091"}
    assert "scheres2007disentangling" in names(papers({"search.classes": 3}))
    assert "scheres2007disentangling" not in names(search)
    amortized = papers({"pose_inference": "amortized", "encoder.design.degree": "learnt"})
    assert numbers(amortized) == {"2406.01630", "1911.08251", "2302.06091", "2203.08138", "2406.03946"}
    assert "punjani2017cryosparc" not in names(amortized)
    known = papers({"pose_inference": "known"})
    assert names(known) == {"rosenthal2003optimal", "chen2013high"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = {"version": "0.1.0", "commit": "0123456789abcdef, with changes", "settings": {"pose_inference": "known"}}
    write_json(tmp_path / "job.json", job)
    assert run(["cite", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "version 0.1.0, commit 0123456789ab" in text
    assert "https://doi.org/10.1016/j.jmb.2003.07.013" in text
    assert "arxiv" not in text
    assert run(["cite", str(tmp_path), "--bibtex"]) == 0
    entries = capsys.readouterr().out
    assert re.findall(r"^@\w+{(\w+),$", entries, re.M) == ["cryoeq", "rosenthal2003optimal", "chen2013high"]
    assert "Rosenthal, P. B. and Henderson, R." in entries
    assert entries.count("{") == entries.count("}")
    assert run(["cite"]) == 0
    everything = capsys.readouterr().out
    assert all(method.name in everything for method in METHODS)


@pytest.mark.parametrize("job", [None, {"settings": {"snr": 0.1}}, {}])
def test_a_folder_that_is_no_reconstruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: dict[str, object] | None
) -> None:
    if job is not None:
        write_json(tmp_path / "job.json", job)
    assert run(["cite", str(tmp_path)]) == 2
    assert "holds no reconstruction" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"settings": [', "[]", '{"settings": ["search"]}'])
def test_a_record_that_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert run(["cite", str(tmp_path)]) == 2
    assert "holds no reconstruction" in capsys.readouterr().err
