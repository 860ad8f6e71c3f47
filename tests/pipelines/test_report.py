"""``cryoeq report``: one page of a run of any kind, whatever is left of it, that a browser shows without a network."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.errors import DivergedError, OutputError
from cryoeq.evaluation.verdict import judge_run
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs import report as page
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct import reconstruct as pipeline
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.pipelines.report import read_run
from cryoeq.pipelines.run_classes import read_class
from older_runs import with_older_keys

SLICES = ("slice_z", "slice_y", "slice_x")

pytestmark = pytest.mark.usefixtures("one_thread")


class Outline(HTMLParser):
    """Ids, headings, links to other files, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self._skipped = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped = tag in {"script", "style"}
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in {"src", "href"} and value:
                self.sources.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skipped else data


@pytest.fixture(scope="module")
def known_run(tmp_path_factory: pytest.TempPathFactory, tiny_particles: Path) -> Path:
    folder = tmp_path_factory.mktemp("known") / "run"
    command = ["reconstruct", str(tiny_particles / "truth.star"), "-o", str(folder), "--pose-inference", "known"]
    assert run([*command, "--device", "cpu"]) == 0
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_a_search_leaves_its_report(searched_run: Path) -> None:
    outline = Outline(searched_run / "report.html")
    assert {"surface", *SLICES, "fsc", "orientations", "progress0", "figures"} <= outline.ids
    for said in (
        "one random start only",  # its settings ask for one
        "The half maps agree to",
        "Best",
        "Worst, worst first",
        "Notes of the run",
        "Log-likelihood per particle (higher is better)",
        "300 particles of 20 px",
        "search.initial_model.iterations",
        "SHA-256",
    ):
        assert said in outline.text, said
    assert outline.sources
    assert all(source.startswith("data:") for source in outline.sources)
    assert (searched_run / "report.html").stat().st_size < 6e6


def test_an_amortized_run_shows_its_losses(tiny_run: Path) -> None:
    contents = read_run(tiny_run)
    assert {name for row in contents.progress for name in row.metrics} >= {"loss", "synthetic_error_deg"}
    assert contents.verdict.level == "doubtful"
    outline = Outline(tiny_run / "report.html")
    assert {"progress0", "progress1", "progress2"} <= outline.ids
    assert "not gold-standard" in outline.text


def test_known_poses_predict_their_particles(known_run: Path) -> None:
    contents = read_run(known_run)
    (only,) = contents.classes
    assert not isinstance(only.particles, str)
    assert len(only.particles.fits.rows) == only.particles.total == 48
    assert float(only.particles.fits.correlations.median()) > 0.7
    assert "progress0" not in Outline(known_run / "report.html").ids


def test_the_stack_may_be_gone_or_moved(
    tmp_path: Path, known_run: Path, tiny_particles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(known_run, tmp_path)
    job = read_json(folder / "job.json")
    away = shutil.copytree(tiny_particles, tmp_path / "away")
    job["inputs"][0]["path"] = str(away / "truth.star")
    write_json(folder / "job.json", job)
    (away / "particles.mrcs").rename(tmp_path / "particles.mrcs")
    (tmp_path / "moved").mkdir()
    (tmp_path / "particles.mrcs").rename(tmp_path / "moved" / "particles.mrcs")
    assert run(["report", str(folder), "-o", str(tmp_path / "gone.html")]) == 0
    assert "Warning: Particle images cannot be shown" in capsys.readouterr().err
    assert "particles.mrcs" in Outline(tmp_path / "gone.html").text
    options = ["-o", str(tmp_path / "moved.html"), "--datadir", str(tmp_path / "moved")]
    assert run(["report", str(folder), *options]) == 0
    assert "cannot be shown" not in Outline(tmp_path / "moved.html").text
    assert "found: A map was made" in capsys.readouterr().out


def test_a_run_that_found_nothing_says_so(
    tmp_path: Path,
    searched_particles: Path,
    search_options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_nothing(*_: object) -> None:
        raise DivergedError("no structure was found twice: <4> random starts")

    monkeypatch.setattr(pipeline, "search_poses", find_nothing)
    command = ["reconstruct", str(searched_particles / "particles.star"), "-o", str(tmp_path / "run"), *search_options]
    assert run(command) == 4
    assert read_json(tmp_path / "run" / "job.json")["status"] == "failed"
    outline = Outline(tmp_path / "run" / "report.html")
    assert "no structure was found twice: <4> random starts" in outline.text  # escaped
    assert "surface" not in outline.ids
    assert "left no map" in outline.text
    assert run(command) == 4  # the folder of a run that left nothing may be used again


def test_a_run_in_the_middle(tmp_path: Path, tiny_run: Path) -> None:
    folder = copied(tiny_run, tmp_path)
    for name in ("run_class001.mrc", "run_data.star", "run_half1_class001_unfil.mrc", "report.html", "progress.csv"):
        (folder / name).unlink()
    job = read_json(folder / "job.json") | {"status": "stopped", "results": {}}
    write_json(folder / "job.json", {key: value for key, value in job.items() if key not in {"notes", "finished"}})
    assert run(["report", str(folder)]) == 0
    outline = Outline(folder / "report.html")
    assert "The run was stopped before it ended." in outline.text
    assert not {"surface", "fsc", "orientations", "progress0"} & outline.ids


@pytest.mark.parametrize("case", ["known_run", "tiny_run"])
def test_a_run_of_version_0_1_is_read(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """By its report, and by every other command that opens a reconstruction: settings under their older names."""
    folder = copied(request.getfixturevalue(case), tmp_path)
    today = read_reconstruction_job(RunFolder(folder), "")["settings"]
    job = read_json(folder / "job.json")
    write_json(folder / "job.json", job | {"settings": with_older_keys(job["settings"])})
    assert "trial_shifts" in read_json(folder / "job.json")["settings"]["search"]
    assert read_reconstruction_job(RunFolder(folder), "")["settings"] == today
    (folder / "report.html").unlink()
    assert run(["report", str(folder)]) == 0
    text = Outline(folder / "report.html").text
    assert "search.offset_samples" in text
    assert "trial_shifts" not in text


@pytest.mark.parametrize("holds", ["nothing", "another program", "a simulation", "no JSON"])
def test_other_folders_are_refused(
    tmp_path: Path, tiny_particles: Path, holds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_particles if holds == "a simulation" else tmp_path
    if holds in {"another program", "no JSON"}:
        (folder / "job.json").write_text("[]" if holds == "another program" else "{")
    assert run(["report", str(folder)]) == 2
    assert "cryoeq reconstruct -o" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ({"command": 7}, "command is 7"),
        ({"notes": [{"text": "a"}]}, "notes.0.level"),
        ({"started": 2026}, "started is"),
        ({"inputs": [{"path": True}]}, "inputs.0.path is True"),
    ],
)
def test_a_damaged_record_is_refused(
    tmp_path: Path, known_run: Path, capsys: pytest.CaptureFixture[str], damaged: dict[str, object], said: str
) -> None:
    folder = copied(known_run, tmp_path)
    write_json(folder / "job.json", read_json(folder / "job.json") | damaged)
    assert run(["report", str(folder)]) == 2
    assert f"job.json is damaged: {said}" in capsys.readouterr().err


def test_a_damaged_mask_is_named(tmp_path: Path, known_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(known_run, tmp_path)
    mask = read_map(folder / "run_class001.mrc")
    write_map(folder / "run_mask.mrc", replace(mask, values=torch.full_like(mask.values, 1000.0)))
    assert run(["report", str(folder)]) == 3
    assert "run_mask.mrc has values from 1000 to 1000" in capsys.readouterr().err


def test_a_map_of_another_box_is_named(tmp_path: Path, known_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(known_run, tmp_path)
    whole = read_map(folder / "run_class001.mrc")
    write_map(folder / "run_mask.mrc", replace(whole, values=torch.ones_like(whole.values)))
    write_map(folder / "run_postprocess.mrc", replace(whole, values=whole.values[2:, 2:, 2:].contiguous()))
    assert run(["report", str(folder)]) == 3
    assert "run_postprocess.mrc has a box of" in capsys.readouterr().err


def test_names_cannot_end_the_script(tmp_path: Path, known_run: Path) -> None:
    folder = copied(known_run, tmp_path).rename(tmp_path / "<b>run<b>")
    contents = read_run(folder)
    page.write_report(tmp_path / "report.html", contents)
    text = (tmp_path / "report.html").read_text()
    assert "<b>run" not in text
    figures = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert figures is not None
    assert set(json.loads(figures[1])) == {"surface", *SLICES, "fsc", "orientations"}


def test_a_narrow_page_does_not_scroll_sideways() -> None:
    """No column of a grid is wider than the page, and tables are stacked where they do not fit."""
    template = Path(page.__file__).parent / "templates" / "report.html"
    style = template.read_text(encoding="utf-8").split("</style>", maxsplit=1)[0]
    columns = re.findall(r"repeat\(auto-fi(?:t|ll), minmax\((.*?), 1fr\)\)", style)
    assert len(columns) == 4
    assert all(re.fullmatch(r"min\(100%, \d+px\)", column) for column in columns)
    narrow = style.split("@media (max-width: 600px)", maxsplit=1)[1]
    assert re.search(r"td, th \{ display: block; width: auto; white-space: normal;", narrow)


def browse(path: Path, folder: Path) -> tuple[str, list[str]]:
    """The page after its scripts ran in a Chromium that reaches no host, and what its console said."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    options = [
        "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--enable-logging=stderr", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1240,4000", "--virtual-time-budget=20000",
        f"--screenshot={folder / 'page.png'}", "--dump-dom",
    ]  # fmt: skip
    shown = subprocess.run([chromium, *options, path.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    said = [line for line in shown.stderr.splitlines() if ":CONSOLE:" in line]
    return shown.stdout, [line for line in said if "willReadFrequently" not in line]  # advice to plotly.js


@pytest.mark.slow
@pytest.mark.parametrize("case", ["searched_run", "class_run"])
def test_a_browser_shows_it(tmp_path: Path, case: str, request: pytest.FixtureRequest) -> None:
    """Every figure is drawn, nothing is said on the console, where a request to a host would be refused aloud."""
    report = request.getfixturevalue(case) / "report.html"
    page_after, console = browse(report, tmp_path)
    assert console == []
    drawn = re.findall(r'<div class="plot js-plotly-plot" id="(\w+)"', page_after)
    assert set(drawn) == Outline(report).ids - {"figures"}
    assert len(drawn) == len(set(drawn))
    assert page_after.count("main-svg") >= len(drawn)
    assert (tmp_path / "page.png").stat().st_size > 1e5
    text = report.read_text(encoding="utf-8")
    (tmp_path / "calls.html").write_text(text.replace("</main>", '<img src="http://example.org/x.png"></main>'))
    (tmp_path / "fails.html").write_text(text.replace("Plotly.newPlot(", "Plotly.newestPlot("))
    assert any("Content Security Policy" in line for line in browse(tmp_path / "calls.html", tmp_path)[1])
    assert any("TypeError" in line for line in browse(tmp_path / "fails.html", tmp_path)[1])


def test_damaged_notes_of_a_record_are_named(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "job.json", read_json(tiny_run / "job.json") | {"notes": [5]})
    with pytest.raises(OutputError, match=r"job\.json is damaged: notes"):
        RunFolder(tmp_path / "run").notes()


@pytest.mark.parametrize("search", [[], {"symmetry": 1}, {"multi_start": {"min": 2}}])
def test_settings_of_a_damaged_record_are_named(tiny_run: Path, tmp_path: Path, search: object) -> None:
    job = read_json(tiny_run / "job.json")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "job.json", job | {"settings": job["settings"] | {"search": search}})
    with pytest.raises(OutputError, match=r"job\.json is damaged: search"):
        read_reconstruction_job(RunFolder(tmp_path / "run"), "")


def test_a_refinement_shares_the_shells_that_were_searched_however_fine_its_map(known_run: Path) -> None:
    """A box of 16 px and 80 Å, of which 3 to 7 shells can be searched."""
    run = RunFolder(known_run)
    job = run.job()
    job["settings"]["pose_inference"] = "refine"
    for asked, shared in ((20.0, 20.0), (2.0, 80 / 7), (200.0, 80 / 3)):
        job["settings"]["refine"]["ini_high_angstrom"] = asked
        assert read_class(run, job, None, 1).facts.shared_angstrom == pytest.approx(shared)


@pytest.mark.parametrize(("keeps", "shared"), [(False, 20.0), (True, None)])
def test_half_sets_of_a_refinement_from_poses_share_these_unless_they_are_kept(
    known_run: Path, keeps: bool, shared: float | None
) -> None:
    run = RunFolder(known_run)
    job = run.job()
    job["settings"]["pose_inference"] = "refine"
    job["settings"]["refine"] |= {"local": True, "keep_half_sets": keeps, "ini_high_angstrom": 20.0}
    facts = read_class(run, job, None, 1).facts
    assert facts.shared_angstrom == (None if shared is None else pytest.approx(shared))
    (told,) = [reason.text for reason in judge_run(facts).reasons if reason.text.startswith("The half maps agree")]
    assert "shared a reference" not in told
    assert ("began with the poses of the particle file" in told) is not keeps


def test_the_particles_of_a_run_have_the_ctf_that_it_refined(known_run: Path) -> None:
    star, job = read_star(known_run / "run_data.star"), read_reconstruction_job(RunFolder(known_run), "")
    moved = np.char.mod("%.3f", np.asarray(star.floats("rlnDefocusU")) + 500)
    star = StarTable(star.optics, {**star.particles, "rlnDefocusU": moved})

    def defocus(*, is_refined: bool) -> torch.Tensor:
        job["settings"]["full_box"]["ctf_refinement"] = is_refined
        stack, dataset = open_particles(job, None, count=48, box_size_px=16, max_box_px=16, star=star)
        assert stack.table.ctf is not None
        assert dataset.table.ctf is not None
        assert torch.equal(dataset.table.ctf.defocus_u_angstrom, stack.table.ctf.defocus_u_angstrom)
        return stack.table.ctf.defocus_u_angstrom

    assert torch.allclose(defocus(is_refined=True) - defocus(is_refined=False), torch.tensor(500.0), atol=0.1)
