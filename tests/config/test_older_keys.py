"""Settings of version 0.1: each is read under today's name, with one note, or refused with the reason it is gone."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cryoeq.config.loading import load_config, with_current_keys
from cryoeq.config.older_keys import REMOVED, RENAMED
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.errors import ConfigError
from older_runs import flat, with_older_keys

# What version 0.1 wrote to config.yaml where only the particles and the folder were given.
VERSION_0_1 = """
particles: a.star
output: run
pose_inference: search
both_hands: false
in_plane_symmetry: false
seed: 0
device: auto
threads: null
input: {angpix: null, datadir: null, with_ctf: true, contrast: auto, shift_sigma_angstrom: null, scratch_dir: null,
  mask: null, reference: null, working_box_px: null}
search: {starts: 2, most_starts: 4, start_iterations: 150, batch_size: 200, first_shell: 3, start_shell: 7,
  settled_shells: [7, 7, 8, 8, 9, 9, 10, 10, 10], further_iterations: 24, settled_images: 4000, iterations: 3,
  searched_shell: 15, polishing_iterations: 5, trial_shifts: 4, particle_radius: 0.42, decoder_steps: 0, symmetry: C1}
hybrid: {held_out: 0.1, shell: 10, steps: null, final_steps: 300, batch_size: 256, rate: 0.01, sharpness: 2.0,
  first_noise: 0.2, least_confidence: 0.9, iterations: 5}
encoder: {group: d4, heads: 8, trunk: dense, channels: null, head: rows, kernel: analytic, sampler: uniform,
  degree: strict, samples: null, precision: float32, compiled: false}
decoder: {kind: voxel, width: 64}
loss: {symmetric: false, leak: 0.02, rendered_weight: 1.0}
training: {epochs: null, batch_size: 64, rendered_batch_size: 64, encoder_rate: 0.002, decoder_rate: null,
  images_from: 0.3, first_shell: 3.0, marching: 0.6, augment: false, checkpoint_seconds: 60.0}
"""
INPUT = {"particles": Path("a.star"), "output": Path("run")}
NEW = {  # since version 0.1
    "input.particle_diameter_angstrom", "search.classes", "full_box.iterations", "full_box.max_resolution_angstrom",
    "full_box.solvent_flattening", "refine.reference", "refine.ini_high_angstrom", "refine.local",
    "refine.keep_half_sets", "full_box.ctf_refinement", "full_box.non_uniform", "hybrid.posterior",
    "hybrid.projections", "search.e_step", "search.amortized.group", "search.amortized.channels",
    "search.amortized.likely_views", "search.amortized.random_views", "search.amortized.training_steps",
    "search.amortized.batch_size", "search.amortized.learning_rate",
}  # fmt: skip
# One valid value for each renamed key that is not its default.
OTHER_VALUES = {
    "input.reference": "truth.mrc",
    "search.starts": 3, "search.most_starts": 9, "search.start_iterations": 20, "search.batch_size": 70,
    "search.first_shell": 2, "search.start_shell": 6, "search.settled_shells": [5, 6], "search.further_iterations": 1,
    "search.settled_images": 500, "search.iterations": 2, "search.searched_shell": 12, "search.polishing_iterations": 1,
    "search.trial_shifts": 7, "search.particle_radius": 0.4, "encoder.trunk": "conv", "encoder.kernel": "implicit",
    "encoder.sampler": "adaptive", "encoder.samples": 6, "encoder.degree": "learnt", "hybrid.shell": 8,
    "hybrid.steps": 90, "hybrid.rate": 0.02,
    "hybrid.first_noise": 0.5, "loss.leak": 0.1,
    "loss.rendered_weight": 0.5, "training.rendered_batch_size": 16, "training.encoder_rate": 0.001,
    "training.decoder_rate": 0.03, "training.images_from": 0.1, "training.marching": 0.4,
}  # fmt: skip


def defaults() -> dict[str, Any]:
    return flat(ReconstructConfig(**INPUT).model_dump(mode="json"))


def test_every_key_of_version_0_1_is_known() -> None:
    """Unchanged, under another name, or gone for a reason; no name of today is read as an older one."""
    before, today = flat(yaml.safe_load(VERSION_0_1)), defaults()
    assert before.keys() - today.keys() == RENAMED.keys() | REMOVED.keys()
    assert set(RENAMED.values()) <= today.keys()
    assert len(set(RENAMED.values())) == len(RENAMED)
    assert not (RENAMED.keys() | REMOVED.keys()) & today.keys()
    assert OTHER_VALUES.keys() == RENAMED.keys()
    written = flat(with_older_keys(ReconstructConfig(**INPUT).model_dump(mode="json")))
    assert {key: value for key, value in written.items() if key not in NEW} == before


def test_a_settings_file_of_version_0_1_is_read(tmp_path: Path) -> None:
    """With its defaults, which are today's, and one note for each key that is called otherwise now."""
    file, notes = tmp_path / "config.yaml", list[str]()
    file.write_text(VERSION_0_1)
    assert load_config(ReconstructConfig, file=file, notes=notes) == ReconstructConfig(**INPUT)
    assert len(notes) == len(RENAMED)
    for (old, new), note in zip(RENAMED.items(), notes, strict=True):
        assert note.startswith(f"{file}: {old} is now called {new};")


@pytest.mark.parametrize("old", RENAMED)
def test_an_older_key_sets_todays_with_one_note(old: str) -> None:
    value, new, notes = OTHER_VALUES[old], RENAMED[old], list[str]()
    config = load_config(ReconstructConfig, overrides=[f"{old}={value}"], explicit=INPUT, notes=notes)
    assert config == load_config(ReconstructConfig, explicit=INPUT | {new: value})
    assert flat(config.model_dump(mode="json")) == defaults() | {new: value}
    assert notes[:1] == [f"--set: {old} is now called {new}; the old name is read for one more version."]


def test_todays_keys_need_no_note() -> None:
    notes: list[str] = []
    overrides = [f"{new}={value}" for new, value in defaults().items() if new not in INPUT and value is not None]
    assert load_config(ReconstructConfig, overrides=overrides, explicit=INPUT, notes=notes).model_dump() is not None
    assert not any("is now called" in note for note in notes)


def test_the_later_layer_wins_under_either_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for below, above in (("search.starts", "search.multi_start.min"), ("search.multi_start.min", "search.starts")):
        file.write_text(f"{below}: 5\n")
        config = load_config(ReconstructConfig, file=file, overrides=[f"{above}=3"], explicit=INPUT)
        assert config.search.multi_start.min == 3
        config = load_config(ReconstructConfig, file=file, explicit=INPUT)
        assert config.search.multi_start.min == 5


def test_todays_name_wins_beside_the_older_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("search: {starts: 5, multi_start: {min: 3}}\n")
    assert load_config(ReconstructConfig, file=file, explicit=INPUT).search.multi_start.min == 3


@pytest.mark.parametrize(("key", "wanted"), [("search.decoder_steps", 40), ("encoder.head", "columns")])
def test_a_setting_that_is_gone_is_refused_where_it_asks_for_something(key: str, wanted: object) -> None:
    notes: list[str] = []
    neutral = load_config(ReconstructConfig, overrides=[f"{key}={REMOVED[key].neutral}"], explicit=INPUT, notes=notes)
    assert neutral == ReconstructConfig(**INPUT)
    assert notes == []
    with pytest.raises(ConfigError, match=rf"--set: {key} is no longer a setting") as refused:
        load_config(ReconstructConfig, overrides=[f"{key}={wanted}"], explicit=INPUT)
    assert REMOVED[key].reason[1:] in str(refused.value)


@pytest.mark.parametrize("section", ["search", "encoder"])
def test_a_value_where_a_section_belongs_is_reported_as_such(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section} is 5"):
        load_config(ReconstructConfig, overrides=[f"{section}=5"], explicit=INPUT)


def test_a_wrong_value_is_reported_under_todays_name() -> None:
    with pytest.raises(ConfigError, match=r"search\.multi_start\.min is 0"):
        load_config(ReconstructConfig, overrides=["search.starts=0"], explicit=INPUT)


def test_recorded_settings_are_read_whatever_their_version() -> None:
    recorded = yaml.safe_load(VERSION_0_1)
    current = with_current_keys(ReconstructConfig, recorded, "job.json")
    assert flat(current) == {key: value for key, value in defaults().items() if key not in NEW}
    assert with_current_keys(ReconstructConfig, current, "job.json") == current
    assert flat(recorded) == flat(yaml.safe_load(VERSION_0_1)), "the record itself is not changed"
    with pytest.raises(ConfigError, match=r"job\.json: search\.decoder_steps is no longer a setting"):
        with_current_keys(ReconstructConfig, {"search": {"decoder_steps": 3}}, "job.json")


@pytest.mark.parametrize(("key", "wanted"), [("search.decoder_steps", 40), ("encoder.head", "columns")])
def test_a_finished_run_is_read_whatever_it_asked_for(key: str, wanted: object) -> None:
    """Who reads its report cannot leave a setting out of it."""
    section, name = key.split(".")
    recorded = {section: {name: wanted}, "seed": 3}
    with pytest.raises(ConfigError, match="no longer a setting"):
        with_current_keys(ReconstructConfig, recorded, "job.json")
    assert with_current_keys(ReconstructConfig, recorded, "job.json", is_finished=True) == {section: {}, "seed": 3}


def test_a_consensus_has_an_iteration() -> None:
    with pytest.raises(ConfigError, match=r"search\.consensus\.shells"):
        load_config(ReconstructConfig, overrides=["search.consensus.shells=[]"], explicit=INPUT)


def test_an_option_of_the_version_before_is_read_with_a_note() -> None:
    notes: list[str] = []
    config = load_config(ReconstructConfig, explicit=INPUT | {"input.reference": Path("truth.mrc")}, notes=notes)
    assert config.input.compare_to == Path("truth.mrc")
    assert notes == ["--reference is now called --compare-to; the old name is read for one more version."]
    notes.clear()
    load_config(ReconstructConfig, explicit=INPUT | {"input.reference": None}, notes=notes)
    assert notes == []
