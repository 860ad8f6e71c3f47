"""``cryoeq settings``: every setting, its default as it can be pasted, by any word."""

import subprocess
import sys

import pytest

from cryoeq.cli.main import run
from cryoeq.config.listing import list_settings
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.config.simulate import SimulateConfig

SETTINGS = {setting.key: setting for section in list_settings(ReconstructConfig) for setting in section.settings}


@pytest.fixture
def listing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["settings"]) == 0
    return capsys.readouterr().out


def test_every_setting_is_listed_on_80_columns(listing: str) -> None:
    lines = listing.splitlines()
    for kind in (ReconstructConfig, SimulateConfig):
        for section in list_settings(kind):
            for setting in section.settings:
                assert f"  {setting.key}={setting.default}" in lines
                assert setting.description
    assert max(map(len, lines)) <= 80


def test_defaults_can_be_pasted(listing: str) -> None:
    """What the listing shows changes nothing where it is set."""
    shown = [line.strip() for line in listing.partition("cryoeq simulate")[0].splitlines() if line.startswith("  ")]
    pasted = [line for line in shown if line.partition("=")[0] in SETTINGS and not line.endswith("=")]
    assert len(pasted) == len(SETTINGS) - 2  # particles and output have no default
    plain = {"particles": "a.star", "output": "map"}
    assert load_config(ReconstructConfig, overrides=pasted, explicit=plain) == load_config(
        ReconstructConfig, explicit=plain
    )


@pytest.mark.parametrize(
    ("word", "shown", "hidden"),
    [
        ("half_sets", "search.half_sets.iterations=3", "hybrid.batch_size"),
        ("HEADS", "encoder.heads=8", "decoder.kind"),
        ("winner-takes-all", "loss.wta_epsilon", "loss.symmetric"),
        ("--box", "input.working_box_px=null", "input.angpix"),
        ("micrograph_px", "micrograph_px=1024", "cryoeq reconstruct"),
    ],
)
def test_a_word_selects(word: str, shown: str, hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", "--", word]) == 0
    text = capsys.readouterr().out
    assert shown in text
    assert hidden not in text


def test_a_word_that_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", "colour of the sky"]) == 2
    assert "`cryoeq settings` lists all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("encoder.heads", "integer from 1 to 64"),
        ("search.mask_radius", "number above 0.1 to 0.5"),
        ("hybrid.held_out", "number from 0 to 0.5"),
        ("search.consensus.shells", "list, each integer above 0"),
        ("pose_inference", "search|hybrid|amortized|known|refine"),
        ("training.batch_size", "integer above 0 or auto"),
        ("both_hands", "true|false"),
        ("seed", "integer from 0"),
        ("input.mask", "path"),
    ],
)
def test_ranges_and_choices_in_words(key: str, values: str) -> None:
    assert SETTINGS[key].values == values


def test_it_needs_no_torch() -> None:
    code = (
        "import sys\nfrom cryoeq.cli.main import run\ncode = run(['settings'])\n"
        "print('heavy:', sorted({'torch', 'scipy', 'matplotlib', 'numba'} & set(sys.modules)))\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(
    ("word", "now"),
    [
        ("hybrid.rate", "is now called hybrid.learning_rate"),
        ("search.decoder_steps", "is no longer a setting: an implicit decoder"),
    ],
)
def test_names_of_the_version_before_lead_to_todays(word: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", word]) == 0
    assert f"{word} {now}" in capsys.readouterr().out
